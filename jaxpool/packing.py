"""Kernels laid out for the CPU's vector or matrix unit, and the products that take them so (`native/product.cc`).

XLA lays a kernel out anew on every call, at the cost of a fifth of the product over 512 tokens, and writes sums out
in float32 before bias, activation and rounding, each a pass over memory. Here a kernel is laid out once, when it is
loaded, and the rest happens to sums that are still in the cache (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpool import native

Array = jax.Array

# Of kernels that can be packed.
DTYPES = ("float32", "bfloat16", "int8")
# Outputs of a panel. An AMX tile has 16 rows, in which each of 16 outputs has 4 bytes; a panel is as wide as two.
PANEL, ROWS, COLUMN_BYTES, TILES = 32, 16, 4, 2
# Hugging Face's names of the activations that a product has at its end -> the kernel's.
ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "identity": "identity",
}


@partial(jax.tree_util.register_dataclass, data_fields=["panels"], meta_fields=["inputs", "outputs"])
@dataclass(frozen=True)
class PackedArray:
    """A kernel in panels of 32 outputs.

    Attributes:
        panels: float32 [layers, panels, inputs, 32] (inside a layer, without `layers`). In bfloat16 and int8 as tiles,
            [layers, panels, steps, 2, 16, 16, n]: for every 16 · n inputs, two tiles of 16 outputs, whose rows hold
            n inputs (4 bytes) of each, as AMX takes them. Vector units widen them (`native/operands.h`).
        inputs: the sizes of the axes that are summed over.
        outputs: those of the others.
    """

    panels: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def dtype(self) -> Any:
        """Of the kernel's numbers."""
        return self.panels.dtype


def packs(mesh: Mesh, dtype: Any) -> bool:
    """Whether kernels of a dtype are to be packed for programs on a mesh."""
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return False
    return jnp.dtype(dtype).name in DTYPES and native.exist()


def pack(kernel: np.ndarray, inputs: int, stacked: bool = False) -> PackedArray:
    """A kernel [*in, *out], or with layers in front, in panels.

    Args:
        kernel: float32, bfloat16 or int8.
        inputs: how many axes are inputs.
        stacked: whether the first axis is that of layers.
    """
    layers, sizes = kernel.shape[:stacked], kernel.shape[stacked:]
    ins, outs = sizes[:inputs], sizes[inputs:]
    each = COLUMN_BYTES // kernel.itemsize
    depth = ROWS * each if each > 1 else 1
    matrix = kernel.reshape(*layers, math.prod(ins), math.prod(outs))
    missing = [(0, -matrix.shape[-2] % depth), (0, -matrix.shape[-1] % PANEL)]
    raw = matrix.view(f"u{kernel.itemsize}")
    if any(behind for _, behind in missing):
        raw = np.pad(raw, [(0, 0)] * len(layers) + missing)
    steps, panels = raw.shape[-2] // depth, raw.shape[-1] // PANEL
    cut: tuple[int, ...] = (steps, panels, PANEL)
    order: tuple[int, ...] = (1, 0, 2)
    if each > 1:
        cut, order = (steps, ROWS, each, panels, TILES, PANEL // TILES), (3, 0, 4, 1, 5, 2)
    axes = (*range(len(layers)), *(axis + len(layers) for axis in order))
    packed = np.ascontiguousarray(raw.reshape(*layers, *cut).transpose(axes))
    return PackedArray(packed.view(kernel.dtype), ins, outs)


def product(
    x: Array,
    kernel: PackedArray,
    *,
    bias: Array | None = None,
    activation: str = "identity",
    times: Array | None = None,
    add: Array | None = None,
    dtype: Any = jnp.float32,
    scales: tuple[Array, Array] | None = None,
    by: str = "auto",
) -> Array:
    """activation(x · kernel + bias) · times + add, summed in float32.

    Args:
        x: [..., *in] in the kernel's dtype.
        kernel: the kernel.
        bias: [*out].
        activation: the kernel's name of it.
        times, add: [..., *out], float32 or bfloat16; one of them at most.
        dtype: of the result, float32 or bfloat16.
        scales: of 8-bit operands, summed in int32: those of x's rows [...], and of outputs [*out].
        by: the instruction set ("avx2"), or the best that there is.

    Returns:
        [..., *out].
    """
    rows = x.shape[: x.ndim - len(kernel.inputs)]
    of_rows, of_outputs = scales or (None, None)
    shape = math.prod(rows), math.prod(kernel.outputs)
    other = next((array.reshape(shape) for array in (times, add) if array is not None), jnp.zeros(0, jnp.float32))
    y = native.call(
        "product",
        jax.ShapeDtypeStruct(shape, dtype),
        x.reshape(-1, math.prod(kernel.inputs)),
        kernel.panels,
        *(_vector(value) for value in (of_rows, of_outputs, bias)),
        other,
        multiplies=times is not None,
        kernel=by,
        activation=activation,
    )
    return y.reshape(*rows, *kernel.outputs)


def _vector(value: Array | None) -> Array:
    return jnp.zeros(0, jnp.float32) if value is None else value.astype(jnp.float32).reshape(-1)
