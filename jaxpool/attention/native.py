"""Attention by kernels of our own for x86 CPUs (`native/`): scores never leave the cache, and nothing is computed
between a row's sequences, so that a row costs what its sequences do.

XLA's CPU backend has no fused attention. Sums are float32. In bfloat16, where the CPU has AMX, the weights are rounded
to bfloat16 before their product with the values, as by the einsums.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.attention import plain
from jaxpool.attention.mask import AttentionMask, Options
from jaxpool.log import once

Array = jax.Array

TARGET = "jaxpool_attention"
DTYPES = (jnp.float32, jnp.bfloat16)


@cache
def kernels() -> tuple[str, ...]:
    """What this CPU can run, best first; () where the module is not built, or XLA does not take it."""
    try:
        from jaxpool import _native
    except ImportError:
        return ()
    try:
        jax.ffi.register_ffi_target(TARGET, _native.attention(), platform="cpu")
    except Exception as error:  # XLA's own kinds, by the version
        once(
            "attention: XLA does not take jaxpool's kernels, which were built with a newer jaxlib's headers; "
            f"upgrade jax, or install jaxpool with --no-build-isolation ({error})"
        )
        return ()
    return tuple(_native.kernels())


def unsupported(q: Array, k: Array, mask: AttentionMask, bias: Array | None, options: Options) -> str | None:
    """Why not, or None."""
    devices = jax.sharding.get_abstract_mesh().size
    reasons = {
        "its kernels are not built for this machine": not kernels(),
        f"the program is for {devices} devices": devices > 1,
        f"dtypes are {q.dtype} and {k.dtype}": q.dtype != k.dtype or q.dtype not in DTYPES,
        "scores have a bias": bias is not None,
        "scores have a soft cap": options.soft_cap is not None,
        "the scale is not a positive number": not isinstance(options.scale, int | float) or options.scale <= 0,
        "the window is negative": min(mask.window or (0,)) < 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def attend(
    q: Array, k: Array, v: Array, mask: AttentionMask, bias: None, options: Options, *, kernel: str = "auto"
) -> Array:
    """`attention` by the best kernel of the CPU that runs it, or by the one named; float32 [R, T, N, H].

    Rows of padding are zero. A sequence's result does not depend on where in a row it stands.
    """
    kernels()  # registers them, if nobody has asked before
    return _call(q, k, v, mask.segments, options.scale, mask.causal, mask.window, kernel)


@partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6, 7))
def _call(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    scale: float,
    causal: bool,
    window: tuple[int, int] | None,
    kernel: str,
) -> Array:
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(q.shape, jnp.float32), vmap_method="sequential")
    left, right = window or (q.shape[1], q.shape[1])
    sides = {"left": np.int64(left), "right": np.int64(0 if causal else right)}
    return call(q, k, v, segments.astype(jnp.int32), scale=np.float32(scale), kernel=kernel, **sides)


@_call.defjvp
def _derivative(
    scale: float,
    causal: bool,
    window: tuple[int, int] | None,
    kernel: str,
    primals: tuple[Array, ...],
    tangents: tuple[Array, ...],
) -> tuple[Array, Array]:
    """By the einsums: training is not what the kernels are for."""
    *_, segments = primals
    mask, options = AttentionMask(segments, causal, window), Options(scale, None)
    _, change = jax.jvp(lambda q, k, v: plain.attend(q, k, v, mask, None, options), primals[:3], tangents[:3])
    return _call(*primals, scale, causal, window, kernel), change
