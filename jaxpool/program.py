"""What is compiled: backbone → token modules → pooling → head → last step, one program a task."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxpool.batch import Inputs, by_token, unfold
from jaxpool.heads import FINAL, apply_chain, chain_specs
from jaxpool.params import Tree
from jaxpool.poolers import pool
from jaxpool.quantization import quantised_specs
from jaxpool.recipe import Recipe
from jaxpool.runner import Program
from jaxpool.tasks import EMBED, PER_TOKEN, TOKEN_EMBED


def param_specs(recipe: Recipe) -> Tree:
    """All parameters as a checkpoint has them: `backbone`, and `tokens` and `head` where there are such modules."""
    parts = {
        "backbone": recipe.family.param_specs(recipe.config),
        "tokens": chain_specs(recipe.token_modules),
        "head": chain_specs(recipe.modules),
    }
    return {name: specs for name, specs in parts.items() if specs}


def device_specs(recipe: Recipe) -> Tree:
    """`param_specs` as a program takes them: with the backbone's kernels quantised, where the recipe says so."""
    specs = param_specs(recipe)
    return specs | {"backbone": quantised_specs(specs["backbone"], recipe.quantization)}


def make_program(recipe: Recipe, task: str) -> Program:
    """The function to compile for one of the recipe's tasks.

    What a request may choose (dimensions, whether the last step is done, the adapter) are arrays beside the ids, so
    one program serves every mixture.

    Returns:
        (params, inputs) -> float32 [R, M, C], or [R, T, C] for a task that answers for every token.
    """
    final = FINAL[recipe.final]

    def program(params: Tree, inputs: Inputs) -> jax.Array:
        batch = unfold(inputs)
        x = recipe.family.run(params["backbone"], batch, recipe.config).hidden.astype(jnp.float32)
        x = apply_chain(recipe.token_modules, params.get("tokens", {}), x)
        spread = lambda values: values  # noqa: E731
        if task in PER_TOKEN:
            spread = lambda values: by_token(batch, values)  # noqa: E731
        else:
            x = pool(x, batch, recipe.pooling)
        x = apply_chain(recipe.modules, params.get("head", {}), x)
        if task in (EMBED, TOKEN_EMBED):
            x = jnp.where(jnp.arange(x.shape[-1]) < spread(inputs.dimensions)[..., None], x, 0)
        with jax.named_scope(recipe.final):
            x = jnp.where((spread(inputs.activate) > 0)[..., None], final(x), x)
        return x[..., : recipe.truncate_dim]

    return program
