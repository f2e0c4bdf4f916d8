"""Meshes, and the table from logical axes to mesh axes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpool.log import logger
from jaxpool.params import ParamSpec

DATA, MODEL = "data", "model"

# Logical axis -> mesh axis: of parameters, and of what a program computes ("rows", "tokens").
RULES: Mapping[str, str | None] = {
    "vocab": MODEL,
    "embed": None,
    "heads": MODEL,
    "kv_heads": MODEL,
    "head_dim": None,
    "mlp": MODEL,
    "parts": None,  # of a fused kernel: q, k and v of jina, a group's of InternLM2
    "layers": None,
    "pooled": None,
    "pixels": None,  # of a patch: colours, frames, lines, columns
    "rows": DATA,
    "tokens": None,
}
# What is kept whole on every device where it does not divide: a look-up table, and keys that several heads share.
WHOLE_IF_UNEVEN = frozenset({"vocab", "kv_heads"})
# Put over RULES where the data axis shares out the parameters too (FSDP): each layer's are gathered when it runs.
FSDP: Mapping[str, str | None] = {"embed": DATA}
# Put over RULES where norms and residuals are split along the sequence.
BY_SEQUENCE: Mapping[str, str | None] = {"tokens": MODEL}

# More CPU streams than this have not been measured to help.
MAX_CPU_STREAMS = 8

_activation_rules: ContextVar[Mapping[str, str | None]] = ContextVar("activation_rules", default=RULES)


def partition(
    axes: Sequence[str | None],
    mesh: Any,
    sizes: Sequence[int] | None = None,
    rules: Mapping[str, str | None] = RULES,
) -> PartitionSpec:
    """Logical axes -> the mesh axes that they are sharded over.

    Args:
        axes: logical names; None is never sharded.
        mesh: a mesh, concrete or abstract.
        sizes: of the dimensions, if it is to be seen to that they divide.
        rules: the table.

    Raises:
        ValueError: a dimension does not divide over its mesh axis, and cannot be kept whole.
    """
    found: list[str | None] = []
    for number, axis in enumerate(axes):
        name = rules[axis] if axis is not None else None
        shards = mesh.shape.get(name, 1) if name else 1
        if sizes is not None and sizes[number] % shards:
            if axis not in WHOLE_IF_UNEVEN:
                raise ValueError(f"{axis}: {sizes[number]} do not divide over {shards} devices (mesh axis {name!r})")
            name = None
        found.append(name if name in mesh.shape else None)
    return PartitionSpec(*found)


def param_partition(spec: ParamSpec, mesh: Any, *, fsdp: bool = False) -> PartitionSpec:
    """Over which axes of a mesh a parameter is split.

    Args:
        spec: the parameter.
        mesh: concrete or abstract, with a "data" axis and, where the model is split, a "model" axis.
        fsdp: whether kernels and tables are shared out over the data axis too. Vectors stay whole.

    Raises:
        ValueError: as `partition`.
    """
    matrix = len([axis for axis in spec.axes if axis != "layers"]) > 1
    rules = {**RULES, **FSDP} if fsdp and matrix and spec.dtype != "float32" else RULES
    return partition(spec.axes, mesh, spec.shape, rules)


def param_sharding(spec: ParamSpec, mesh: Mesh, *, fsdp: bool = False) -> NamedSharding:
    """Where a parameter's shards lie: `param_partition` on a mesh of devices."""
    return NamedSharding(mesh, param_partition(spec, mesh, fsdp=fsdp))


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Where a batch's rows lie: split over the data axis."""
    return NamedSharding(mesh, partition(("rows",), mesh))


def platform() -> str | None:
    """Of the mesh in context; None without one.

    The mesh's own, not `jax.default_backend()`: a program may be compiled for chips that are elsewhere.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else None


def axis_size(axis: str) -> int:
    """Over how many devices a logical axis is split on the mesh in context (`jax.set_mesh`); 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(RULES[axis], 1)


@contextmanager
def split_sequences(split: bool) -> Iterator[None]:
    """While a program is traced: whether `constrain` splits "tokens" over the model axis."""
    token = _activation_rules.set({**RULES, **BY_SEQUENCE} if split else RULES)
    try:
        yield
    finally:
        _activation_rules.reset(token)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Says inside a program where an array's shards lie; nothing without a mesh of several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    rules = _activation_rules.get()
    even = [a if a is None or x.shape[i] % mesh.shape.get(rules[a], 1) == 0 else None for i, a in enumerate(axes)]
    return jax.lax.with_sharding_constraint(x, partition(even, mesh, rules=rules))


def own_device(mesh: Mesh) -> Any:
    """One of a mesh's devices that this process can ask; all are of a kind."""
    return next(device for device in mesh.devices.flat if device.process_index == jax.process_index())


def make_mesh(devices: Sequence[Any], tensor_parallel: int = 1) -> Mesh:
    """A mesh ("data", "model") over `devices`, `tensor_parallel` of them side by side on the model axis."""
    shape = (len(devices) // tensor_parallel, tensor_parallel)
    return jax.make_mesh(shape, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replica_meshes(data_parallel_size: int | None, mesh: Mesh | None, tensor_parallel_size: int = 1) -> list[Mesh]:
    """The sub-meshes that batches are handed to as they fall free.

    Of this process's own devices, unless the sizes ask for more: then one mesh over those of all processes.
    On chips one SPMD replica over all of them; on CPU one replica a core, since XLA's own thread pool scales
    poorly (see docs/performance.md), or one SPMD replica where a size was asked for.

    Args:
        data_parallel_size: groups of devices that share one batch's rows, or None for as many as there are.
        mesh: use exactly this mesh, with a "data" axis, and a "model" axis if the model is to be split.
        tensor_parallel_size: devices that share each layer.

    Raises:
        ValueError: more devices asked for than there are, or sizes beside a mesh.
    """
    if mesh is not None:
        if DATA not in mesh.axis_names:
            raise ValueError(f"mesh: has axes {mesh.axis_names}, expected one named {DATA!r}")
        if tensor_parallel_size != 1 or data_parallel_size is not None:
            raise ValueError("mesh: says the sizes itself; leave tensor_parallel_size and data_parallel_size out")
        return [mesh]
    if tensor_parallel_size < 1:
        raise ValueError(f"tensor_parallel_size is {tensor_parallel_size}, expected at least 1")
    streams = _start_cpu_streams()
    devices = jax.local_devices()
    if max(1, data_parallel_size or 1) * tensor_parallel_size > len(devices):
        devices = jax.devices()  # those of all processes, which then work together
    there = f"there are {len(devices)} devices"
    if tensor_parallel_size > len(devices):
        raise ValueError(f"tensor_parallel_size is {tensor_parallel_size}, but {there}")
    if data_parallel_size is not None:
        wanted = data_parallel_size * tensor_parallel_size
        of = f" times tensor_parallel_size {tensor_parallel_size}" if tensor_parallel_size > 1 else ""
        if data_parallel_size < 1 or wanted > len(devices):
            raise ValueError(f"data_parallel_size is {data_parallel_size}{of}, but {there}")
        _check_all_take_part(devices[:wanted], f"data_parallel_size is {data_parallel_size}{of}")
        return [make_mesh(devices[:wanted], tensor_parallel_size)]
    if devices[0].platform == "cpu" and tensor_parallel_size == 1:
        return [make_mesh([device]) for device in devices[:streams]]
    groups = len(devices) // tensor_parallel_size
    _check_all_take_part(devices[: groups * tensor_parallel_size], f"tensor_parallel_size is {tensor_parallel_size}")
    return [make_mesh(devices[: groups * tensor_parallel_size], tensor_parallel_size)]


def _check_all_take_part(devices: Sequence[Any], asked: str) -> None:
    taken = len({device.process_index for device in devices})
    if 1 < taken < jax.process_count():
        raise ValueError(f"{asked}: that takes devices of {taken} processes, but there are {jax.process_count()}")


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
