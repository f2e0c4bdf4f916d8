"""Poolers: hidden states of packed rows [R, T, D] -> one vector a sequence [R, M, D], in float32.

Those that read one token of a sequence say which before the backbone runs (`wanting`), and it leaves out the others.

The six modes of sentence-transformers, over the tokens behind each sequence's `skip`. Padding never enters:
pad rows are replaced by `where`, not multiplied away, since NaN × 0 is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxpool.batch import Batch, take
from jaxpool.layers import einsum

Array = jax.Array


def membership(batch: Batch) -> Array:
    """float32 [R, T, M]: 1 where a token belongs to a sequence and is pooled. Sums over it run on the matrix unit."""
    places = jnp.arange(1, batch.lengths.shape[1] + 1, dtype=jnp.int32)
    own = batch.segments[..., None] == places
    return (own & (batch.positions[..., None] >= batch.skip[:, None, :])).astype(jnp.float32)


def _clean(hidden: Array, batch: Batch) -> Array:
    return jnp.where((batch.segments > 0)[..., None], hidden.astype(jnp.float32), 0.0)


def _first(batch: Batch) -> Array:
    return batch.starts + jnp.minimum(batch.skip, batch.lengths - 1)


def _last(batch: Batch) -> Array:
    return batch.starts + batch.lengths - 1


# Of the poolers that read one token of a sequence: its index in the row [R, M]; of unused places any number.
_ONE_TOKEN: Mapping[str, Callable[[Batch], Array]] = {"cls": _first, "lasttoken": _last}


def _index(mode: str, batch: Batch) -> Array:
    return jnp.clip(_ONE_TOKEN[mode](batch), 0, batch.ids.shape[1] - 1)


def cls(hidden: Array, batch: Batch) -> Array:
    """The first pooled token."""
    return take(hidden.astype(jnp.float32), _index("cls", batch))


def lasttoken(hidden: Array, batch: Batch) -> Array:
    """The last token."""
    return take(hidden.astype(jnp.float32), _index("lasttoken", batch))


def _sums(hidden: Array, batch: Batch, weights: Array) -> Array:
    return einsum("rtm,rtd->rmd", weights, _clean(hidden, batch))


def mean(hidden: Array, batch: Batch) -> Array:
    """Sum over tokens / number of tokens."""
    weights = membership(batch)
    return _sums(hidden, batch, weights) / jnp.maximum(weights.sum(1), 1e-9)[..., None]


def mean_sqrt_len_tokens(hidden: Array, batch: Batch) -> Array:
    """Sum over tokens / √(number of tokens)."""
    weights = membership(batch)
    return _sums(hidden, batch, weights) / jnp.sqrt(jnp.maximum(weights.sum(1), 1e-9))[..., None]


def weightedmean(hidden: Array, batch: Batch) -> Array:
    """Mean weighted by the 1-based position in the sequence (prompt included in the count)."""
    weights = membership(batch) * (batch.positions + 1).astype(jnp.float32)[..., None]
    return _sums(hidden, batch, weights) / jnp.maximum(weights.sum(1), 1e-9)[..., None]


def max(hidden: Array, batch: Batch) -> Array:
    """Largest value of each feature."""
    rows, _, width = hidden.shape
    places = batch.lengths.shape[1]
    pooled = (batch.segments > 0) & (membership(batch).sum(-1) > 0)
    # Tokens that are not pooled go to one extra bin behind the last.
    bins = jnp.where(pooled, jnp.arange(rows)[:, None] * places + batch.segments - 1, rows * places)
    largest = jax.ops.segment_max(
        hidden.astype(jnp.float32).reshape(-1, width), bins.reshape(-1), num_segments=rows * places + 1
    )
    largest = largest[:-1].reshape(rows, places, width)
    return jnp.where((batch.lengths > 0)[..., None], largest, 0.0)


# In the order in which sentence-transformers concatenates several.
POOLERS: Mapping[str, Callable[[Array, Batch], Array]] = {
    "cls": cls,
    "max": max,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len_tokens,
    "weightedmean": weightedmean,
    "lasttoken": lasttoken,
}


def wanting(batch: Batch, modes: tuple[str, ...]) -> Batch:
    """The batch for a backbone whose states `modes` pool: where they read one token of a sequence, it wants that."""
    if len(modes) > 1 or modes[0] not in _ONE_TOKEN:
        return batch
    return replace(batch, wanted=_index(modes[0], batch))


def pool(hidden: Array, batch: Batch, modes: tuple[str, ...]) -> Array:
    """Pools by each mode and concatenates: float32 [R, M, len(modes) · D].

    Args:
        hidden: of every token [R, T, D], or of a batch that is `wanting` by the same modes [R, M, D].
        batch: whose.
        modes: names in `POOLERS`.
    """
    if batch.wanted is not None:
        return hidden.astype(jnp.float32)
    with jax.named_scope("pool"):
        return jnp.concatenate([POOLERS[mode](hidden, batch) for mode in modes], axis=-1)
