"""A task = pooler + heads, inside one program. The only place below `LLM` that knows tasks by name."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpool.batch import Inputs, by_token, unfold
from jaxpool.heads import apply_chain, chain_specs
from jaxpool.layers import l2_normalise
from jaxpool.params import Tree
from jaxpool.poolers import pool
from jaxpool.recipe import Recipe

Program = Callable[[Tree, Inputs], jax.Array]

TASKS = ("embed",)
# Names that users give for them.
ALIASES = {"embedding": "embed", "auto": "embed"}

ALL = ("all",)


def resolve_task(task: str) -> str:
    """The task's own name.

    Raises:
        ValueError: no such task.
    """
    name = ALIASES.get(task, task)
    if name not in TASKS:
        raise ValueError(f"Unsupported task: {task!r} Supported tasks: {(*TASKS, *ALIASES)}")
    return name


def param_specs(recipe: Recipe) -> Tree:
    """All parameters of a recipe: `backbone`, and `tokens` and `head` where the recipe has such modules."""
    parts = {
        "backbone": recipe.family.param_specs(recipe.config),
        "tokens": chain_specs(recipe.token_modules),
        "head": chain_specs(recipe.modules),
    }
    return {name: specs for name, specs in parts.items() if specs}


def embed_program(recipe: Recipe) -> Program:
    """Backbone → token modules → pooling → modules → cut → normalise, as one function to compile.

    A request's own dimensions and normalisation are arrays beside the ids, so one program serves every mixture.

    Returns:
        (params, inputs) -> float32 [R, M, D'], or [R, T, D'] where every token's vector is kept.
    """

    def program(params: Tree, inputs: Inputs) -> jax.Array:
        batch = unfold(inputs)
        x = recipe.family.run(params["backbone"], batch, recipe.config).hidden.astype(jnp.float32)
        x = apply_chain(recipe.token_modules, params.get("tokens", {}), x)
        if recipe.pooling != ALL:
            x = pool(x, batch, recipe.pooling)
        switched = recipe.modules[:-1] if recipe.ends_normalised else recipe.modules
        x = apply_chain(switched, params.get("head", {}), x)
        keep, activate = inputs.dimensions, inputs.activate > 0
        if recipe.pooling == ALL:
            keep, activate = by_token(batch, keep), by_token(batch, activate)
        x = jnp.where(jnp.arange(x.shape[-1]) < keep[..., None], x, 0)
        x = jnp.where(activate[..., None], l2_normalise(x), x)
        return x[..., : recipe.truncate_dim]

    return program
