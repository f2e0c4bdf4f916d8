"""Attention as two products around a softmax: every case, every platform; the scores [R, N, T, S] are written out."""

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
    q, k, v = heads_in_front(q, k, v)
    added = jnp.where(mask.dense(), 0.0, MASKED)[:, None, None]
    if bias is not None:
        added = added + bias.astype(jnp.float32).reshape(-1, *q.shape[1:3], *bias.shape[-2:])
    return tokens_in_front(softmax_product(q, k, v, added, options))


def derivative(primals: tuple[Array, ...], tangents: tuple[Array, ...], mask: AttentionMask, options: Options) -> Array:
    """How the result changes with q, k and v: for kernels that have no derivative of their own."""
    _, change = jax.jvp(
        lambda q, k, v: attend(q, k, v, mask, None, options).astype(options.dtype), primals[:3], tangents[:3]
    )
    return change


def heads_in_front(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Queries [R, K, G, T, H], and keys and values [R, K, S, H]; G queries share a key.

    A CPU takes a quarter to a half less time over products of whole [T, H] matrices (docs/performance.md); chips lay
    them out as they like.
    """
    rows, length, heads, width = q.shape
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    return q.reshape(rows, k.shape[1], heads // k.shape[1], length, width), k, v


def tokens_in_front(mixed: Array) -> Array:
    """[R, K, G, T, H] -> [R, T, N, H]."""
    rows, _, _, length, width = mixed.shape
    return jnp.moveaxis(mixed.reshape(rows, -1, length, width), 1, 2)


def softmax_product(q: Array, k: Array, v: Array, added: Array, options: Options) -> Array:
    """softmax(scale · q·k + added)·v over the last axes, float32 [..., G, T, H].

    Args:
        q: [..., G, T, H].
        k, v: [..., S, H].
        added: to the scores [..., G, T, S]: the mask and the bias.
    """
    scores = einsum("...gth,...sh->...gts", q, k) * options.scale
    if options.soft_cap is not None:
        scores = jnp.tanh(scores / options.soft_cap) * options.soft_cap
    scores = scores + added
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    # Divided behind the product: H numbers a query instead of S.
    return einsum("...gts,...sh->...gth", weights, v) / weights.sum(-1, keepdims=True)
