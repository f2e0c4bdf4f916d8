"""Attention over packed rows: a structured mask, and the table of backends that compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpool.layers import einsum

Array = jax.Array

# Finite, so that a row with no key at all (a pad row) stays finite: exp(0) over equal scores, never NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


class Options(NamedTuple):
    """What changes the scores before the mask: see `attention`."""

    scale: float
    soft_cap: float | None


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query may see, as structure: a backend reads the fields, only the plain one builds a matrix.

    Attributes:
        segments: [R, T] int, 0 for padding; tokens attend within their own segment only.
        causal: a query sees no later key.
        window: (left, right): how many earlier and later keys a query sees, or None for all.
    """

    segments: Array
    causal: bool = False
    window: tuple[int, int] | None = None

    def dense(self) -> Array:
        """The mask as bool [R, 1, T, S]. Row-local: positions may be compared by index, as segments are contiguous."""
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        visible = (query == key) & (query > 0)
        index = jnp.arange(self.segments.shape[1])
        ahead = index[None, :] - index[:, None]
        if self.causal:
            visible &= ahead <= 0
        if self.window is not None:
            left, right = self.window
            visible &= (ahead >= -left) & (ahead <= right)
        return visible[:, None]


def _einsum_attention(q: Array, k: Array, v: Array, mask: AttentionMask, bias: Array | None, options: Options) -> Array:
    rows, length, heads, width = q.shape
    kv_heads = k.shape[2]
    # Grouped queries share their key: letters K for kv heads, G for queries a kv head.
    q = q.reshape(rows, length, kv_heads, heads // kv_heads, width)
    scores = einsum("rtkgh,rskh->rkgts", q, k) * options.scale
    if options.soft_cap is not None:
        scores = jnp.tanh(scores / options.soft_cap) * options.soft_cap
    if bias is not None:
        scores = scores + bias.astype(jnp.float32).reshape(-1, kv_heads, heads // kv_heads, *bias.shape[-2:])
    scores = jnp.where(mask.dense()[:, :, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    return einsum("rkgts,rskh->rtkgh", weights, v).reshape(rows, length, heads, width)


BACKENDS: Mapping[str, Callable[..., Array]] = {"einsum": _einsum_attention}


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: AttentionMask,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    backend: str = "einsum",
) -> Array:
    """Softmax attention within segments.

    Args:
        q: [R, T, N, H] in the compute dtype.
        k, v: [R, T, K, H]; N is a multiple of K.
        bias: added to the scaled scores, broadcastable to [R, N, T, S] with its heads written out.
        scale: of the scores, H**-0.5 by default.
        soft_cap: scores s become soft_cap · tanh(s / soft_cap) (Gemma 2).

    Returns:
        float32 [R, T, N, H].
    """
    options = Options(q.shape[-1] ** -0.5 if scale is None else scale, soft_cap)
    return BACKENDS[backend](q, k, v, mask, bias, options)
