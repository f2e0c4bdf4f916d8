"""Attention as three products: every case, every platform; the scores [R, N, T, S] are written out in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxpool.attention.mask import AttentionMask, Options
from jaxpool.layers import einsum

Array = jax.Array

# Finite, so that a row with no key at all (a pad row) stays finite: exp(0) over equal scores, never NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def unsupported(q: Array, k: Array, mask: AttentionMask, bias: Array | None, options: Options) -> None:
    """Nothing is."""


def attend(q: Array, k: Array, v: Array, mask: AttentionMask, bias: Array | None, options: Options) -> Array:
    """`attention` by einsums; float32 [R, T, N, H]."""
    rows, length, heads, width = q.shape
    kv_heads = k.shape[2]
    # Heads in front: a CPU takes a quarter to a half less time over products of whole [T, H] matrices (measured in
    # docs/performance.md); chips lay them out as they like. Grouped queries share their key: letters K for kv heads,
    # G for queries a kv head.
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    q = q.reshape(rows, kv_heads, heads // kv_heads, length, width)
    scores = einsum("rkgth,rksh->rkgts", q, k) * options.scale
    if options.soft_cap is not None:
        scores = jnp.tanh(scores / options.soft_cap) * options.soft_cap
    if bias is not None:
        scores = scores + bias.astype(jnp.float32).reshape(-1, kv_heads, heads // kv_heads, *bias.shape[-2:])
    scores = jnp.where(mask.dense()[:, :, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = einsum("rkgts,rksh->rkgth", weights, v).reshape(rows, heads, length, width)
    return jnp.moveaxis(mixed, 1, 2)
