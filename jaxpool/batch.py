"""What a program takes: token ids and lengths cross to the device, everything else is worked out there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclass(frozen=True)
class Sequence:
    """One tokenised input, on the host.

    Attributes:
        ids: int32 [length], at least one token.
        owners: numbers of the inputs that it answers (several where a text came more than once).
        skip, dimensions, normalise: as in `Inputs`.
        truncated: whether the text was cut.
    """

    ids: np.ndarray
    owners: tuple[int, ...]
    skip: int
    dimensions: int
    normalise: bool
    truncated: bool


@partial(
    jax.tree_util.register_dataclass, data_fields=["ids", "lengths", "skip", "dimensions", "normalise"], meta_fields=[]
)
@dataclass(frozen=True)
class Inputs:
    """The arrays of one batch: numpy's before the upload, JAX's inside the program.

    A row holds up to M sequences one behind the other, then padding.

    Attributes:
        ids: int32 [R, T] token ids.
        lengths: int32 [R, M] tokens of each sequence; 0 for an unused place (always behind the used ones).
        skip: int32 [R, M] leading tokens that pooling leaves out (a prompt, where `include_prompt` is false).
        dimensions: int32 [R, M] entries of the vector to keep.
        normalise: int32 [R, M] 1 to bring the vector to length 1.
    """

    ids: Any
    lengths: Any
    skip: Any
    dimensions: Any
    normalise: Any

    @classmethod
    def of_shape(cls, rows: int, tokens: int, places: int, array: Callable[[tuple[int, int]], Any]) -> Inputs:
        """Inputs with `array(shape)` for every field, so that a new option needs no change where they are made."""
        return cls(array((rows, tokens)), *(array((rows, places)) for _ in fields(cls)[1:]))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids", "segments", "positions", "starts", "lengths", "skip"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Batch:
    """`Inputs` unfolded on the device: what backbones and poolers read.

    Attributes:
        ids: int32 [R, T].
        segments: int32 [R, T]: 1 … M by sequence, 0 for padding.
        positions: int32 [R, T]: 0, 1, … within each sequence; 0 for padding.
        starts: int32 [R, M]: index in the row of each sequence's first token.
        lengths, skip: int32 [R, M], as in `Inputs`.
    """

    ids: Array
    segments: Array
    positions: Array
    starts: Array
    lengths: Array
    skip: Array


def unfold(inputs: Inputs) -> Batch:
    """Derives segments and positions from the lengths (inside the program: only ids and lengths are uploaded)."""
    ends = jnp.cumsum(inputs.lengths, axis=1)
    starts = ends - inputs.lengths
    index = jnp.arange(inputs.ids.shape[1], dtype=jnp.int32)
    place = (index[None, :, None] >= ends[:, None, :]).sum(-1, dtype=jnp.int32)  # [R, T]: sequences already ended
    real = index[None, :] < ends[:, -1:]
    own = jnp.minimum(place, inputs.lengths.shape[1] - 1)
    positions = jnp.where(real, index[None, :] - jnp.take_along_axis(starts, own, axis=1), 0)
    return Batch(inputs.ids, jnp.where(real, place + 1, 0), positions, starts, inputs.lengths, inputs.skip)


def by_token(batch: Batch, values: Array) -> Array:
    """[R, M] values of sequences -> [R, T]: each token that of its sequence (padding: that of the first)."""
    return jnp.take_along_axis(values, jnp.maximum(batch.segments - 1, 0), axis=1)


def positions_after_padding_id(batch: Batch, padding_id: int) -> Array:
    """RoBERTa-style position ids [R, T]: they start at `padding_id` + 1 and count only other tokens.

    A token that *is* the padding id (the text may spell it) keeps position `padding_id` and is not counted:
    transformers' `create_position_ids_from_input_ids`.
    """
    counted = (batch.ids != padding_id).astype(jnp.int32)
    running = jnp.cumsum(counted, axis=1)
    before = running - counted
    own = jnp.maximum(batch.segments - 1, 0)
    at_start = jnp.take_along_axis(before, jnp.clip(batch.starts, 0, batch.ids.shape[1] - 1), axis=1)
    return (running - jnp.take_along_axis(at_start, own, axis=1)) * counted + padding_id
