"""Attention by our own kernels for x86 CPUs: scores never leave the cache, and nothing is computed
between a row's sequences, so that a row costs what its sequences do.

XLA's CPU backend has no fused attention. Sums are float32. In bfloat16, where the CPU multiplies it, the weights are
rounded to bfloat16 before their product with the values, as by the einsums.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.attention import plain
from jaxpool.attention.mask import AttentionMask, Options
from jaxpool.native import DTYPES, call, exist

Array = jax.Array


def unsupported(q: Array, k: Array, mask: AttentionMask, bias: Array | None, options: Options) -> str | None:
    """Why not, or None."""
    devices = jax.sharding.get_abstract_mesh().size
    reasons = {
        "its kernels are not built for this machine": not exist(),
        f"the program is for {devices} devices": devices > 1,
        f"dtypes are {q.dtype} and {k.dtype}": q.dtype != k.dtype or q.dtype not in DTYPES,
        "scores have a bias": bias is not None,
        "scores have a soft cap": options.soft_cap is not None,
        f"the result is {options.dtype}": options.dtype not in DTYPES,
        "the scale is not a positive number": not isinstance(options.scale, int | float) or options.scale <= 0,
        "the window is negative": min(mask.window or (0,)) < 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def attend(
    q: Array, k: Array, v: Array, mask: AttentionMask, bias: None, options: Options, *, kernel: str = "auto"
) -> Array:
    """`attention` by the best kernel of the CPU that runs it, or by the one named; [R, T, N, H] in the options' dtype.

    Rows of padding are zero. A sequence's result does not depend on where in a row it stands.
    """
    return _call(q, k, v, mask.segments, options.scale, mask.causal, mask.window, kernel, jnp.dtype(options.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6, 7, 8))
def _call(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    scale: float,
    causal: bool,
    window: tuple[int, int] | None,
    kernel: str,
    dtype: Any,
) -> Array:
    left, right = window or (q.shape[1], q.shape[1])
    sides = {"left": np.int64(left), "right": np.int64(0 if causal else right)}
    operands = (q, k, v, segments.astype(jnp.int32))
    return call(
        "attention", jax.ShapeDtypeStruct(q.shape, dtype), *operands, scale=np.float32(scale), kernel=kernel, **sides
    )


@_call.defjvp
def _derivative(
    scale: float,
    causal: bool,
    window: tuple[int, int] | None,
    kernel: str,
    dtype: Any,
    primals: tuple[Array, ...],
    tangents: tuple[Array, ...],
) -> tuple[Array, Array]:
    mask, options = AttentionMask(primals[3], causal, window), Options(scale, None, dtype)
    return _call(*primals, scale, causal, window, kernel, dtype), plain.derivative(primals, tangents, mask, options)
