"""Kernels as 8-bit integers: what `LLM(quantization=)` does to the weights, and how a product reads them.

Only the kernels of a backbone's layers are quantised: embeddings, norms, biases and heads stay as they are, and so does
the arithmetic of attention, norms and activations.

Activations have a few features that are far larger than the others, and a row's 8 bits would be spent on them. So both
operands are rotated first, by blocks of a Hadamard matrix H, which spreads a feature over its block and leaves the
product as it is, as H·H = 1: QuaRot (Ashkboos et al. 2024, arXiv:2404.00456). What it brings: docs/performance.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool import native
from jaxpool.equations import in_kernel_order
from jaxpool.params import ParamSpec, Tree, map_leaves

Array = jax.Array

# The largest 8-bit integer that has its negative.
LARGEST = 127
# Features that are rotated together, at most.
BLOCK = 16

# `LLM(quantization=)` -> whether products take 8-bit activations too (W8A8), or the weights alone are 8-bit.
KINDS: Mapping[str, bool] = {"int8": True, "int8_weight_only": False}


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["activations"])
@dataclass(frozen=True)
class QuantArray:
    """A kernel as `values` · `scale`.

    Attributes:
        values: int8 [layers, *in, *out]; inside a layer, [*in, *out].
        scale: float32 [layers, *out]: one number an output channel.
        activations: whether products round their other operand to 8 bits too, with a scale a row; then `values` are
            rotated over their inputs.
    """

    values: Any
    scale: Any
    activations: bool

    def product(self, equation: str, x: Array) -> Array:
        """`jnp.einsum(equation, x, kernel)` in float32, of 8-bit activations (`activations` is set).

        Args:
            equation: whose first operand ends with the axes that are summed over, and whose result ends with the
                kernel's others: "rtnh,nhd->rtd".
            x: in any float dtype.
        """
        kernel, result = equation.split(",")[1].split("->")
        summed = sum(axis not in result for axis in kernel)
        rounded, step = round_rows(x, summed)
        y = jnp.einsum(in_kernel_order(equation), rounded, self.values, preferred_element_type=jnp.int32)
        y = y.astype(jnp.float32)
        return y * step.reshape(*step.shape[:-summed], *(1,) * (len(kernel) - summed)) * self.scale


def round_rows(x: Array, axes: int, by: str = "auto") -> tuple[Array, Array]:
    """Activations, rotated, as 8-bit integers, and each row's scale; a row is the last `axes` axes, then of size 1.

    `by` is the instruction set of our own kernel, where there is one; by itself the best.
    """
    if native.here() and x.dtype in native.DTYPES:
        rows = x.shape[: x.ndim - axes]
        whole = jax.ShapeDtypeStruct((math.prod(rows), math.prod(x.shape[x.ndim - axes :])), jnp.int8)
        each = jax.ShapeDtypeStruct(whole.shape[:1], jnp.float32)
        rounded, step = native.call(
            "quantise", (whole, each), x.reshape(whole.shape), block=np.int64(_block(x)), kernel=by
        )
        return rounded.reshape(x.shape), step.reshape(*rows, *(1,) * axes)
    with jax.default_matmul_precision("highest"):  # float32 is float32 on every platform
        x = rotate(x.astype(jnp.float32))
    largest = jnp.abs(x).max(tuple(range(-axes, 0)), keepdims=True)
    step = jnp.maximum(largest / LARGEST, jnp.finfo(jnp.float32).tiny)
    return jnp.round(x / step).astype(jnp.int8), step


def check_kind(kind: str | None) -> str | None:
    """The kind itself.

    Raises:
        ValueError: it is none of `KINDS`.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"quantization is {kind!r}, expected one of {[None, *KINDS]}")
    return kind


def rotate(x: Any) -> Any:
    """[…, n] times a block-diagonal matrix of equal Hadamard blocks; a second time gives `x` back."""
    block = _block(x)
    mixed = x.reshape(*x.shape[:-1], -1, block) @ _hadamard(block)
    return mixed.reshape(x.shape)


def _block(x: Any) -> int:
    return math.gcd(x.shape[-1], BLOCK)


@cache
def _hadamard(size: int) -> np.ndarray:
    """Sylvester's: symmetric, orthogonal, entries ±1/√size; `size` is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(math.sqrt(size))


def quantise(kernel: np.ndarray, inputs: int, rotated: bool) -> tuple[np.ndarray, np.ndarray]:
    """A layer's kernel -> (int8 values, float32 scale): each output channel's largest entry becomes ±127.

    Args:
        kernel: [*in, *out].
        inputs: how many axes are inputs.
        rotated: whether to rotate it over the last of them first.
    """
    kernel = kernel.astype(np.float32)
    if rotated:
        kernel = np.moveaxis(rotate(np.moveaxis(kernel, inputs - 1, -1)), -1, inputs - 1)
    scale = np.abs(kernel).max(axis=tuple(range(inputs))) / LARGEST
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(kernel / scale).astype(np.int8), scale


def quantised_specs(specs: Tree, kind: str | None) -> Tree:
    """A model's declarations with the kernels of its stacked layers as `QuantArray`s of declarations."""
    if kind is None:
        return specs

    def quantised(spec: ParamSpec) -> ParamSpec | QuantArray:
        if not spec.inputs or spec.dtype or spec.axes[0] != "layers":
            return spec
        outputs = (0, *range(1 + spec.inputs, len(spec.shape)))
        scale = ParamSpec(
            tuple(spec.shape[i] for i in outputs), tuple(spec.axes[i] for i in outputs), "float32", "ones"
        )
        return QuantArray(replace(spec, dtype="int8"), scale, KINDS[kind])

    return map_leaves(quantised, specs)
