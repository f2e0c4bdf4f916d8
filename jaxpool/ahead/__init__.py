"""Programs compiled ahead of time for chips that are not there, on any machine that has a compiler for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import jax
from jax.sharding import Mesh

from jaxpool.ahead import gpu, tpu
from jaxpool.batching import Shape
from jaxpool.params import Tree, abstract, unstack_specs
from jaxpool.placement import keeps_stacks
from jaxpool.program import device_specs, make_program
from jaxpool.recipe import Recipe
from jaxpool.runner import Replica, Stats
from jaxpool.sharding import make_mesh, param_sharding
from jaxpool.slices import Slice


class Compiler(NamedTuple):
    """A platform's compiler.

    Attributes:
        missing: () -> why it is not here, or None.
        devices: slice -> its chips, which need not be there.
        environment: what it asks of the machine that it believes to run on.
    """

    missing: Callable[[], str | None]
    devices: Callable[[Slice], Sequence[Any]]
    environment: Mapping[str, str]


COMPILERS: Mapping[str, Compiler] = {
    "tpu": Compiler(tpu.missing, tpu.devices, tpu.ENVIRONMENT),
    "gpu": Compiler(gpu.missing, gpu.devices, {}),
}


def missing(platform: str) -> str | None:
    """Why nothing can be compiled for a platform here, or None."""
    return COMPILERS[platform].missing()


def prepare(platform: str) -> None:
    """Tells this process to compile for a platform and to look for no chip. Before JAX's first use."""
    for name, value in COMPILERS[platform].environment.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def mesh_of(where: Slice, tensor_parallel: int = 1) -> Mesh:
    """A mesh over all chips of e.g. "v5e:2x4" or "h100:8".

    Raises:
        jax.errors.JaxRuntimeError: the compiler does not know the slice.
    """
    return make_mesh(COMPILERS[where.chip.platform].devices(where), tensor_parallel)


def compile_for(
    recipe: Recipe, mesh: Mesh, shape: Shape, dtype: Any, *, fsdp: bool = False
) -> tuple[jax.stages.Compiled, Tree]:
    """The program of the recipe's task for batches of a shape, as the engine compiles it; no weights are allocated.

    Args:
        recipe: whose.
        mesh: of chips that need not be there.
        shape: with the rows of all processes.
        dtype: of the weights.
        fsdp: as `sharding.param_sharding`.

    Returns:
        The executable, and the parameters that it takes, without values.

    Raises:
        jax.errors.JaxRuntimeError: it does not fit the chips' memory, as the compiler sees it.
    """
    specs = device_specs(recipe)
    taken = specs if keeps_stacks(recipe, mesh) else specs | {"backbone": unstack_specs(specs["backbone"])}
    params = abstract(taken, dtype, partial(param_sharding, mesh=mesh, fsdp=fsdp))
    replica = Replica(mesh, params, {recipe.task: make_program(recipe, recipe.task)}, Stats())
    own = replace(shape, rows=replica.rows.of_own(shape.rows))
    return cast(jax.stages.Compiled, replica.compile(recipe.task, own)), params
