"""Programs compiled ahead of time for TPUs that are not there, on any machine that has libtpu (docs/tpu.md)."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxpool.batching import Shape
from jaxpool.params import Tree, abstract, unstack_specs
from jaxpool.placement import keeps_stacks
from jaxpool.program import device_specs, make_program
from jaxpool.recipe import Recipe
from jaxpool.runner import Replica, Stats
from jaxpool.sharding import make_mesh, param_sharding

# What libtpu asks of the machine that it believes to run on.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def missing() -> str | None:
    """Why nothing can be compiled for TPUs here, or None."""
    if "TPU_LIBRARY_PATH" in os.environ or find_spec("libtpu"):
        return None
    return "libtpu is not installed, and TPU_LIBRARY_PATH names no libtpu.so: see docs/tpu.md"


def prepare() -> None:
    """Tells this process to compile for TPUs and to look for none. Before JAX's first use."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def mesh_of(topology: str, tensor_parallel: int = 1) -> Mesh:
    """A mesh over all chips of e.g. "v5e:2x4"."""
    # A single chip is less than the host that libtpu assumes by default.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    return make_mesh(topologies.get_topology_desc(topology, "tpu", **bounds).devices, tensor_parallel)


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
