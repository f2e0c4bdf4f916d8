"""The small parts that model families share.

Letters: R rows, T tokens, W wanted ones of them (`Batch.wanted`), D model, N heads, H head dim, F mlp.

Numerics (the same everywhere): matrix products take operands in the compute dtype and accumulate in float32,
float32 means float32 on every backend (`Precision.HIGHEST`), norms and activations are float32. On GPUs alone a dense
layer's sums in 16 bits, with their bias, are rounded before anything follows (`_sums_are_rounded`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool import packing
from jaxpool.batch import Pick
from jaxpool.equations import in_kernel_order
from jaxpool.packing import PackedArray
from jaxpool.params import Tree
from jaxpool.quantization import QuantArray, round_rows
from jaxpool.sharding import axis_size, constrain, platform

Array = jax.Array


def einsum(equation: str, x: Array, y: Array | QuantArray, dtype: Any = None, *, result: Any = jnp.float32) -> Array:
    """`jnp.einsum` in the compute dtype (default: that of `y`, the weights), summed in float32.

    Args:
        equation: of two operands.
        x, y: the operands; y may be a kernel in 8 bits.
        dtype: the compute dtype.
        result: the result's dtype, to which sums are rounded.

    A kernel quantised with activations computes by itself; one that is for memory is widened to `x`'s dtype.

    `preferred_element_type=float32` is the right arithmetic for the MXU and tensor cores, and on CPU it is what
    keeps a bf16 product in the bf16 unit instead of a conversion to float32.
    """
    if _is_packed(y):
        return _packed_dense(x, y)
    if isinstance(y, QuantArray):
        return y.product(equation, x) if y.activations else einsum(equation, x, y.values, x.dtype) * y.scale
    dtype = jnp.dtype(dtype or y.dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    return jnp.einsum(
        in_kernel_order(equation),
        x.astype(dtype),
        y.astype(dtype),
        preferred_element_type=result,
        precision=precision,
    )


def dense(
    params: Tree,
    x: Array,
    equation: str = "...d,df->...f",
    *,
    activation: str = "identity",
    times: Array | None = None,
    add: Array | None = None,
    dtype: Any = jnp.float32,
) -> Array:
    """Dense layer and what follows it, in float32: activation(x · kernel + bias) · times + add.

    Args:
        params: `kernel`, and `bias` if there is one.
        x: the axes that `equation` says.
        equation: names the kernel's axes where there are more than two.
        activation: a name in `ACTIVATIONS`.
        times, add: of the result's shape; one of them at most.
        dtype: of the result.
    """
    kernel, bias = params["kernel"], params.get("bias")
    if _is_packed(kernel):
        return _packed_dense(x, kernel, bias, activation, times, add, dtype)
    if not isinstance(kernel, QuantArray) and _sums_are_rounded(kernel.dtype):
        y, bias = _rounded_product(equation, x, kernel, bias).astype(jnp.float32), None
    else:
        y = einsum(equation, x, kernel)
    return finish(y, bias, activation, times, add, dtype)


def _sums_are_rounded(dtype: Any) -> bool:
    """Whether sums of a product in 16 bits are rounded before anything follows.

    On GPUs products are calls of a library. A result in float32 would be written out, twice as large, for another
    kernel to read it and round it (docs/gpu.md); it is what torch does there, too.
    """
    return platform() == "gpu" and dtype != jnp.float32


def _rounded_product(equation: str, x: Array, kernel: Array, bias: Array | None) -> Array:
    """x · kernel + bias in the kernel's dtype, as one call of the library where XLA sees it.

    It does where the bias has one dimension, and no device has a part of it: joining axes would gather what is split.
    """
    y = einsum(equation, x, kernel, result=kernel.dtype)
    if bias is None:
        return y
    bias = bias.astype(y.dtype)
    if axis_size("heads") > 1:
        return y + bias
    return (y.reshape(*y.shape[: y.ndim - bias.ndim], -1) + bias.reshape(-1)).reshape(y.shape)


def finish(
    y: Array,
    bias: Array | None,
    activation: str = "identity",
    times: Array | None = None,
    add: Array | None = None,
    dtype: Any = jnp.float32,
) -> Array:
    """What follows a product, float32 [..., *out]; arguments and result as `dense`'s."""
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    y = ACTIVATIONS[activation](y)
    if times is not None:
        y = y * times
    if add is not None:
        y = y + add
    return y.astype(dtype)


def _is_packed(kernel: Any) -> bool:
    return isinstance(kernel.values if isinstance(kernel, QuantArray) else kernel, PackedArray)


def _packed_dense(
    x: Array,
    kernel: Any,
    bias: Array | None = None,
    activation: str = "identity",
    times: Array | None = None,
    add: Array | None = None,
    dtype: Any = jnp.float32,
) -> Array:
    """`dense` where the kernel lies as our own kernels for CPUs take it."""
    own = packing.ACTIVATIONS.get(activation)
    if own is None:
        return finish(_packed_dense(x, kernel), bias, activation, times, add, dtype)
    end = {"bias": bias, "activation": own, "times": times, "add": add, "dtype": dtype}
    if not isinstance(kernel, QuantArray):
        return packing.product(x.astype(kernel.dtype), kernel, **end)
    rounded, step = round_rows(x, len(kernel.values.inputs))
    return packing.product(rounded, kernel.values, scales=(step, kernel.scale), **end)


def l2_normalise(x: Array, epsilon: float = 1e-12) -> Array:
    """x / max(‖x‖₂, ε) over the last axis: `torch.nn.functional.normalize`."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), epsilon)


def _gelu(x: Array) -> Array:
    """By erf, as torch does; `jax.nn.gelu`'s erfc takes a CPU two to three times as long (docs/performance.md)."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _quick_gelu(x: Array) -> Array:
    """CLIP's own approximation."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    # Hugging Face's `hidden_act` names.
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
}


def keep(capture: tuple[str, ...], **values: Array) -> dict[str, Array]:
    """The values whose names were asked for: what a stage returns for `capture=`."""
    return {name: value for name, value in values.items() if name in capture}


Layer = Callable[[Array, Tree, Pick], tuple[Array, dict[str, Array]]]


def _every(values: Array) -> Array:
    return values


def apply_layers(
    pattern: Sequence[Layer], layers: Tree, x: Array, pick: Pick | None = None
) -> tuple[Array, dict[str, Array]]:
    """Runs a stack of layers, `layer(x, params, pick) -> (x, captured)`.

    A layer picks what goes on behind its attention, which needs every token's keys and values: in the last one the
    tokens that are wanted, in others all. Whatever else it reads of a token there, it picks too.

    Args:
        pattern: what layers 0, 1, … compute, repeating: one function for a uniform stack, several where kinds of
            layer alternate (local and global attention). `lax.scan` runs over whole repeats, the rest one by one.
        layers: stacked leaves [L, …], or a dict of "0" … "L-1".
        x: [R, T, D].
        pick: the last layer's (`Batch.pick`); None where all tokens are wanted. Nothing can be captured with it.

    Between layers x [R, T, D] lies as `sharding.RULES` says.

    Returns:
        The last x [R, W, D], and each captured value stacked [L, …].
    """
    if "0" in layers:
        return _in_turn(pattern, [layers[str(i)] for i in range(len(layers))], x, pick)
    depth, period = jax.tree.leaves(layers)[0].shape[0], len(pattern)
    # A last layer that picks is not like the others, so its repeat is none.
    repeats = (depth if pick is None else depth - 1) // period
    if repeats == 0:
        return _in_turn(pattern, [_layer(layers, i) for i in range(depth)], x, pick)

    # Layers are taken from the stack by number: stacks cut or reshaped into repeats would be copied on every call.
    def group(x: Array, first: Array) -> tuple[Array, dict[str, Array]]:
        return _in_turn(pattern, [_layer(layers, first + i) for i in range(period)], x)

    x, captured = jax.lax.scan(group, x, jnp.arange(repeats) * period)
    captured = jax.tree.map(lambda leaf: leaf.reshape(repeats * period, *leaf.shape[2:]), captured)
    if depth == repeats * period:
        return x, captured
    rest = [_layer(layers, i) for i in range(repeats * period, depth)]
    if pick is not None:
        # Alone: else a TPU's compiler lays out the stacks for them, and copies those on every call, not one layer.
        rest = jax.lax.optimization_barrier(rest)
    x, last = _in_turn(pattern, rest, x, pick)
    return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), captured, last)


def _layer(layers: Tree, number: int | Array) -> Tree:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), layers)


def _in_turn(
    pattern: Sequence[Layer], layers: Sequence[Tree], x: Array, pick: Pick | None = None
) -> tuple[Array, dict[str, Array]]:
    captured = []
    for i, params in enumerate(layers):
        own = _every if pick is None or i < len(layers) - 1 else pick
        x, values = pattern[i % len(pattern)](constrain(x, ("rows", "tokens", None)), params, own)
        captured.append(values)
    x = constrain(x, ("rows", "tokens" if pick is None else None, None))
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *captured)
