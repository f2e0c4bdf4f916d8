"""Meshes, and the table from logical axes to mesh axes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpool.log import logger
from jaxpool.params import ParamSpec

DATA, MODEL = "data", "model"

# Logical axis -> mesh axis. All parameters are replicated until tensor parallelism is there.
RULES: Mapping[str, str | None] = {
    "vocab": None,
    "embed": None,
    "heads": None,
    "kv_heads": None,
    "head_dim": None,
    "mlp": None,
    "parts": None,  # of a fused kernel: q, k and v; a gated MLP's two
    "layers": None,
    "pooled": None,
    "rows": DATA,
}

# More CPU streams than this have not been measured to help.
MAX_CPU_STREAMS = 8


def partition(axes: Sequence[str | None]) -> PartitionSpec:
    """Logical axes -> the mesh axes that they are sharded over."""
    return PartitionSpec(*(RULES[axis] if axis is not None else None for axis in axes))


def axis_size(axis: str) -> int:
    """Over how many devices a logical axis is split on the mesh in context (`jax.set_mesh`); 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(RULES[axis], 1)


def param_sharding(spec: ParamSpec, mesh: Mesh) -> NamedSharding:
    """Where a parameter's shards lie."""
    return NamedSharding(mesh, partition(spec.axes))


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Where a batch's rows lie: split over the data axis."""
    return NamedSharding(mesh, partition(("rows",)))


def make_mesh(devices: Sequence[Any]) -> Mesh:
    """A data-parallel mesh ("data", "model") over `devices`."""
    return jax.make_mesh((len(devices), 1), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replica_meshes(data_parallel_size: int | None, mesh: Mesh | None) -> list[Mesh]:
    """The sub-meshes that batches are handed to as they fall free.

    On chips one SPMD replica over all of them; on CPU one replica a core, since XLA's own thread pool scales
    poorly (see docs/performance.md), or one SPMD replica where a size was asked for.

    Args:
        data_parallel_size: devices that share one batch's rows, or None for the default.
        mesh: use exactly this mesh, with a "data" axis.

    Raises:
        ValueError: more devices asked for than there are.
    """
    if mesh is not None:
        if DATA not in mesh.axis_names:
            raise ValueError(f"mesh: has axes {mesh.axis_names}, expected one named {DATA!r}")
        return [mesh]
    streams = _start_cpu_streams()
    devices = jax.local_devices()
    if data_parallel_size is not None:
        if not 1 <= data_parallel_size <= len(devices):
            raise ValueError(f"data_parallel_size is {data_parallel_size}, but there are {len(devices)} devices")
        return [make_mesh(devices[:data_parallel_size])]
    if devices[0].platform == "cpu":
        return [make_mesh([device]) for device in devices[:streams]]
    return [make_mesh(devices)]


@cache
def _start_cpu_streams() -> int:
    """One CPU device a core, if JAX has not started and nobody chose a number; returns the streams to use."""
    if (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or getattr(jax.config, "jax_num_cpu_devices", -1) > 0
    ):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    streams = min(cores, MAX_CPU_STREAMS)
    try:
        jax.config.update("jax_num_cpu_devices", streams)
    except RuntimeError:
        logger.info("JAX had started before the first LLM(): its CPU devices stay as they are, one stream")
        return 1
    return streams
