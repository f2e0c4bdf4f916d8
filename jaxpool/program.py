"""What is compiled: backbone → token modules → pooling → head → last step, one program a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.batch import NONE, PIXELS, Arrays, Batch, Inputs, Sequence, by_token, unfold
from jaxpool.heads import FINAL, apply_chain, chain_specs
from jaxpool.models.family import Tower
from jaxpool.params import Tree
from jaxpool.poolers import pool, wanting
from jaxpool.quantization import quantised_specs
from jaxpool.recipe import Recipe
from jaxpool.runner import Program
from jaxpool.tasks import EMBED, PER_TOKEN, TOKEN_EMBED

# Values of sequences -> values of what is answered.
Spread = Callable[[jax.Array], jax.Array]


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


# The program of a tower; and of the tasks whose texts have pictures in them.
IMAGE = "image"


def with_images(task: str) -> str:
    """The name of the program that answers a task for texts with pictures."""
    return f"{task} with images"


def program_for(task: str, sequence: Sequence) -> str:
    """The name of the program that a sequence is for."""
    if not sequence.arrays:
        return task
    return IMAGE if PIXELS in sequence.arrays else with_images(task)


def make_programs(recipe: Recipe, dtype: Any) -> dict[str, Program]:
    """Every program of an engine, by name: the recipe's tasks, and of a family that sees what that takes."""
    programs = {task: make_program(recipe, task) for task in recipe.tasks}
    tower = recipe.family.tower
    if tower is not None:
        programs[IMAGE] = make_tower_program(recipe, tower, dtype)
    if tower is not None and tower.text is not None:
        arrays = tower.text(recipe.config, dtype)
        programs |= {with_images(task): make_program(recipe, task, arrays) for task in recipe.tasks}
    return programs


def make_program(recipe: Recipe, task: str, arrays: Arrays = NONE) -> Program:
    """The function to compile for one of the recipe's tasks.

    What a request may choose (dimensions, whether the last step is done, the adapter) are arrays beside the ids, so
    one program serves every mixture.

    Args:
        recipe: the model.
        task: of its tasks.
        arrays: what goes with every token beside its id.

    Returns:
        (params, inputs) -> float32 [R, M, C], or [R, T, C] for a task that answers for every token.
    """

    def program(params: Tree, inputs: Inputs) -> jax.Array:
        batch = unfold_for(recipe, task, inputs)
        x = recipe.family.run(params["backbone"], batch, recipe.config).hidden.astype(jnp.float32)
        x = apply_chain(recipe.token_modules, params.get("tokens", {}), x)
        spread = lambda values: values  # noqa: E731
        if task in PER_TOKEN:
            spread = lambda values: by_token(batch, values)  # noqa: E731
        else:
            x = pool(x, batch, recipe.pooling)
        return _answer(recipe, task, params, inputs, x, spread)

    return Program(program, arrays, per_token=task in PER_TOKEN)


def unfold_for(recipe: Recipe, task: str, inputs: Inputs) -> Batch:
    """The batch that the backbone gets for a task: wanted is what the task's pooler reads, or all."""
    batch = unfold(inputs)
    return batch if task in PER_TOKEN else wanting(batch, recipe.pooling)


def make_tower_program(recipe: Recipe, tower: Tower, dtype: Any) -> Program:
    """The function to compile for pictures: their answers, where they have some by themselves, or rows for a text.

    Returns:
        (params, inputs) -> float32 [R, M, C], or rows [R, P / k, D] in the compute dtype.
    """
    patches = tower.patches(recipe.config, recipe.picture_format)

    def program(params: Tree, inputs: Inputs) -> jax.Array:
        with jax.named_scope("pixels"):
            pixels = inputs.arrays[PIXELS]
            if pixels.dtype == jnp.uint8:  # else the reader of the pictures has done it
                pixels = recipe.pictures.normalise(pixels)
            pixels = pixels.astype(dtype)
        batch = unfold(replace(inputs, arrays=inputs.arrays | {PIXELS: pixels}))
        x = tower.forward(params["backbone"], batch, recipe.config).hidden
        if not tower.answers:
            return x.astype(dtype)
        return _answer(recipe, EMBED, params, inputs, x.astype(jnp.float32), lambda values: values)

    return Program(program, patches.arrays, per_token=not tower.answers)


def _answer(recipe: Recipe, task: str, params: Tree, inputs: Inputs, x: jax.Array, spread: Spread) -> jax.Array:
    """Pooled (or every token's) float32 vectors -> what a request gets: modules, dimensions, the last step."""
    final = FINAL[recipe.final]
    x = apply_chain(recipe.modules, params.get("head", {}), x)
    if task in (EMBED, TOKEN_EMBED):
        x = jnp.where(jnp.arange(x.shape[-1]) < spread(inputs.dimensions)[..., None], x, 0)
    with jax.named_scope(recipe.final):
        x = jnp.where((spread(inputs.activate) > 0)[..., None], final(x), x)
    return x[..., : recipe.truncate_dim]
