"""A recipe's weights onto devices: each reads its own part only, and the host holds a few layers of it at a time."""

from __future__ import annotations

import ctypes
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpool import native
from jaxpool.converters.rules import Leaf
from jaxpool.converters.transforms import Index
from jaxpool.loading import load
from jaxpool.packing import pack, packs
from jaxpool.params import ParamSpec, Tree, flatten, one_layer, stacked_depth, unflatten, unstack_layers
from jaxpool.program import device_specs, param_specs
from jaxpool.quantization import QuantArray, quantise
from jaxpool.recipe import Recipe
from jaxpool.sharding import param_sharding

# Layers from which on a CPU's programs take too long to compile unstacked, and those of our own kernels, which are
# little more than calls; kinds of TPU that copy stacks.
DEEP, DEEP_OF_KERNELS, COPIES_STACKS = 12, 128, ("TPU7x", "TPU v7")
# Leaves read at a time: files are read by threads of their own, and a disk serves a few.
THREADS = 4
# A stack of more bytes is put together on the devices, layer by layer, and never whole on the host.
LARGE = 2**26
# Bytes of parameters, as the devices hold them, that are read at a time: while they are turned into the model's own
# layout, the host holds two or three times as many.
ON_THE_WAY = 2**27

Read = Callable[[Index], np.ndarray]
Declared = ParamSpec | QuantArray
Progress = Callable[[int], Any]


def keeps_stacks(recipe: Recipe, mesh: Mesh) -> bool:
    """Whether a program takes its layers stacked: compiled once for all, unless it would copy them on every call.

    XLA copies whole stacks on TPU7x and, on other TPUs too, where kinds of layer alternate (docs/tpu.md); on GPUs and
    CPUs it copies each layer out of its stack, and on CPUs programs of few layers compile nearly as fast without.
    """
    device, depth = mesh.devices.flat[0], stacked_depth(param_specs(recipe)["backbone"])
    if depth == 0:
        return True
    if device.platform == "cpu":
        return depth > (DEEP_OF_KERNELS if mesh.size == 1 and native.exist() else DEEP)
    alternating = len(getattr(recipe.config, "pattern", ())) > 1
    return device.platform == "tpu" and not (device.device_kind.startswith(COPIES_STACKS) or alternating)


def load_to_mesh(
    recipe: Recipe,
    mesh: Mesh,
    dtype: Any,
    *,
    fsdp: bool = False,
    stacked: bool = True,
    extras: bool = False,
    progress: Progress = lambda size: None,
) -> Tree:
    """The parameters on a mesh in the compute dtype (heads in float32), each device reading its own part only.

    Kernels that the recipe quantises are quantised on the way, a layer at a time. Errors as `loading.stored`.

    Args:
        recipe: whose.
        mesh: where they go.
        dtype: the compute dtype.
        fsdp: as `sharding.param_sharding`.
        stacked: whether layers are stacked, or stand one by one as `params.unstack_layers` puts them.
        extras: as `loading.stored`.
        progress: called with the bytes of what has been placed, from several threads.
    """
    specs, target, room = flatten(device_specs(recipe)), _Target(mesh, dtype, fsdp), _Room(ON_THE_WAY)

    def place(path: str, leaf: Leaf, read: Read) -> Any:
        spec = specs.get(path, leaf.spec)
        layered = leaf.spec.axes[:1] == ("layers",) and not (stacked and _size(leaf.spec, dtype) <= LARGE)
        size = _size(one_layer(leaf.spec) if layered else leaf.spec, dtype)

        @contextmanager
        def counted() -> Iterator[None]:
            with room.taken(size):
                yield
            progress(size)

        if not layered:
            with counted():
                return target.place(spec, read)
        layers = _layers(target, spec, read, leaf.spec.shape[0], counted)
        return target.stack(spec, layers) if stacked else list(layers)

    # Processes that share a mesh start their programs in one order, so each has one thread for them.
    params = load(recipe, place, extras=extras, threads=1 if mesh.is_multi_process else THREADS)
    return params if stacked else params | {"backbone": unstack_layers(params["backbone"])}


def packed(params: Tree, recipe: Recipe, mesh: Mesh) -> Tree:
    """The same parameters, with the layers' kernels laid out for our own products on CPUs, where there are some.

    Args:
        params: on the mesh; kernels that are packed are not kept there.
        recipe: whose.
        mesh: of the programs that take them.
    """
    declared, left = flatten(device_specs(recipe)["backbone"]), flatten(params["backbone"])
    others = {name: part for name, part in params.items() if name != "backbone"}
    del params  # the last to hold them, if the caller has let go: so one kernel at a time lies here twice

    def of(path: str, leaf: Any) -> Any:
        of_all = re.sub(r"\blayers/\d+/", "layers/", path)
        spec, kernel = declared.get(of_all), leaf
        if isinstance(spec, QuantArray):
            if not spec.activations:
                return leaf
            spec, kernel = spec.values, leaf.values
        if spec is None or not spec.inputs or spec.axes[0] != "layers" or not packs(mesh, kernel.dtype):
            return leaf
        tiles = jax.device_put(
            pack(np.asarray(kernel), spec.inputs, stacked=of_all == path), NamedSharding(mesh, PartitionSpec())
        )
        return replace(leaf, values=tiles) if isinstance(leaf, QuantArray) else tiles

    return others | {"backbone": unflatten({path: of(path, left.pop(path)) for path in list(left)})}


def shared(params: Tree, mesh: Mesh) -> Tree:
    """The same parameters on another mesh; on one CPU device the very same memory, so that streams hold weights once.

    JAX copies an array from one device to another, also where both are the host's; a numpy view of it, it only keeps.
    Nobody may delete or donate either.
    """
    there = jax.tree.map(lambda leaf: NamedSharding(mesh, leaf.sharding.spec), params)
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        params = jax.tree.map(np.asarray, params)
    return jax.device_put(params, there)


def give_back_freed() -> None:
    """Memory that loading has freed goes back to the system; glibc keeps it otherwise (docs/performance.md)."""
    with suppress(AttributeError, OSError, TypeError):  # another C library, another system
        ctypes.CDLL(None).malloc_trim(0)


def stored_bytes(recipe: Recipe, dtype: Any) -> int:
    """What `progress` will have been told in all."""
    return sum(_size(spec, dtype) for spec in flatten(param_specs(recipe)).values())


def _layers(
    target: _Target, spec: Declared, read: Read, depth: int, counted: Callable[[], AbstractContextManager[None]]
) -> Iterator[jax.Array | QuantArray]:
    layer = jax.tree.map(one_layer, spec)
    for number in range(depth):
        with counted():
            yield target.place(layer, partial(_of_layer, read, number))


def _of_layer(read: Read, layer: int, index: Index) -> np.ndarray:
    return read((slice(layer, layer + 1), *index))[0]


def _size(spec: ParamSpec, dtype: Any) -> int:
    return math.prod(spec.shape) * spec.dtype_or(dtype).itemsize


class _Room:
    """So many bytes may be on their way at a time; what is larger goes alone."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


@dataclass(frozen=True)
class _Target:
    """Where parameters go."""

    mesh: Mesh
    dtype: Any
    fsdp: bool

    def sharding(self, spec: ParamSpec) -> NamedSharding:
        return param_sharding(spec, self.mesh, fsdp=self.fsdp)

    def place(self, spec: Declared, read: Read) -> jax.Array | QuantArray:
        """One parameter, whole; `read(index)` gives the part of it that is asked for."""
        if isinstance(spec, QuantArray):
            return _quantised(spec, self._array, read)
        return self._array(spec, read)

    def stack(self, spec: Declared, layers: Iterator[jax.Array | QuantArray]) -> jax.Array | QuantArray:
        """Layers, each on the devices, into one array there."""
        whole = jax.tree.map(self._empty, spec)
        for number, layer in enumerate(layers):
            # Waited for: layers that are read ahead of it would pile up on the host.
            whole = jax.block_until_ready(_put(whole, layer, number))
        return whole

    def _empty(self, spec: ParamSpec) -> jax.Array:
        make = jax.jit(lambda: jnp.zeros(spec.shape, spec.dtype_or(self.dtype)), out_shardings=self.sharding(spec))
        return make()

    def _array(self, spec: ParamSpec, read: Read) -> jax.Array:
        dtype = spec.dtype_or(self.dtype)
        pieces: dict[Any, np.ndarray] = {}  # devices with the same part share one reading

        def part(index: Index | None) -> np.ndarray:
            index = index or ()
            key = tuple((s.start, s.stop) for s in index)
            if key not in pieces:
                pieces[key] = read(index).astype(dtype, copy=False)
            return pieces[key]

        return jax.make_array_from_callback(spec.shape, self.sharding(spec), part)


@partial(jax.jit, donate_argnums=0)
def _put(whole: Any, layer: Any, number: int) -> Any:
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, number, 0), whole, layer)


def _quantised(spec: QuantArray, array: Callable[[ParamSpec, Read], jax.Array], read: Read) -> QuantArray:
    """Values and scales. A scale needs all inputs of its channel, also where they lie on other devices."""
    inputs, stacked = spec.values.inputs, int(spec.values.axes[0] == "layers")
    all_inputs = (slice(None),) * inputs

    def layers(which: Index, outputs: Index) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not which:
            yield quantise(read((*all_inputs, *outputs)), inputs, rotated=spec.activations)
            return
        for layer in range(*which[0].indices(spec.values.shape[0])):  # one at a time: each is in float32 meanwhile
            kernel = read((slice(layer, layer + 1), *all_inputs, *outputs))[0]
            yield quantise(kernel, inputs, rotated=spec.activations)

    def together(found: list[np.ndarray]) -> np.ndarray:
        return np.stack(found) if stacked else found[0]

    def values(index: Index) -> np.ndarray:
        which, own, outputs = index[:stacked], index[stacked : stacked + inputs], index[stacked + inputs :]
        return together([values[own] for values, _ in layers(which, outputs)])

    def scale(index: Index) -> np.ndarray:
        return together([scale for _, scale in layers(index[:stacked], index[stacked:])])

    return QuantArray(array(spec.values, values), array(spec.scale, scale), spec.activations)
