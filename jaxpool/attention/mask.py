"""Who sees whom, as structure, and what else changes the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpool.batch import Batch

Array = jax.Array


class Options(NamedTuple):
    """What changes the scores before the mask, and the result's dtype: see `attention`."""

    scale: float
    soft_cap: float | None
    dtype: Any = jnp.float32


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query may see, as structure: a backend reads the fields, only the plain one builds a matrix.

    Attributes:
        segments: [R, T] int, 0 for padding; tokens attend within their own segment only.
        causal: a query sees no later key.
        window: (left, right): how many earlier and later keys a query sees, or None for all.
        lengths: [R, M] int, tokens of each sequence, or None if not known. M = 1 says that a row holds one sequence,
            which is all that some kernels can mask.
    """

    segments: Array
    causal: bool = False
    window: tuple[int, int] | None = None
    lengths: Array | None = None

    @classmethod
    def of(cls, batch: Batch, *, causal: bool = False, window: tuple[int, int] | None = None) -> AttentionMask:
        """The mask of a batch's rows."""
        return cls(batch.segments, causal, window, batch.lengths)

    def dense(self) -> Array:
        """The mask as bool [R, T, S]. Row-local: positions may be compared by index, as segments are contiguous."""
        everywhere = jnp.arange(self.segments.shape[1])
        return self.visible(everywhere, everywhere)

    def visible(self, queries: Array, keys: Array) -> Array:
        """The part [R, Q, S] of it for queries and keys at these indices [Q] and [S]."""
        query, key = self.segments[:, queries, None], self.segments[:, None, keys]
        visible = (query == key) & (query > 0)
        ahead = keys[None, :] - queries[:, None]
        if self.causal:
            visible &= ahead <= 0
        if self.window is not None:
            left, right = self.window
            visible &= (ahead >= -left) & (ahead <= right)
        return visible
