"""Attention over packed rows: a structured mask, and the table of backends that compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpool.layers import einsum

Array = jax.Array

# Finite, so that a row with no key at all (a pad row) stays finite: exp(0) over equal scores, never NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


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


def _einsum_attention(q: Array, k: Array, v: Array, mask: AttentionMask, bias: Array | None, scale: float) -> Array:
    scores = einsum("rtnh,rsnh->rnts", q, k) * scale
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    scores = jnp.where(mask.dense(), scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    return einsum("rnts,rsnh->rtnh", weights, v)


BACKENDS: Mapping[str, Callable[..., Array]] = {"einsum": _einsum_attention}


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: AttentionMask,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    backend: str = "einsum",
) -> Array:
    """Softmax attention within segments.

    Args:
        q, k, v: [R, T, N, H] in the compute dtype.
        bias: added to the scaled scores, broadcastable to [R, N, T, S].
        scale: of the scores, H**-0.5 by default.

    Returns:
        float32 [R, T, N, H].
    """
    return BACKENDS[backend](q, k, v, mask, bias, q.shape[-1] ** -0.5 if scale is None else scale)
