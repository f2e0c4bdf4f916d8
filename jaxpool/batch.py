"""What a program takes: token ids and lengths cross to the device, everything else is worked out there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Part(NamedTuple):
    """Which part of a longer sequence a sequence is: `number` of `parts`, of `whole`."""

    whole: Sequence
    number: int
    parts: int


@dataclass(frozen=True)
class Sequence:
    """One tokenised input, on the host.

    Attributes:
        ids: int32 [length], at least one token.
        owners: numbers of the inputs that it answers (several where a text came more than once).
        truncated: whether the text was cut.
        step_tag_id: of a program that answers for every token: the token whose answers are wanted; None for all.
        part: set on a part of a sequence that is computed in several.
        skip, second, dimensions, activate, adapter: as in `Inputs`.
    """

    ids: np.ndarray
    owners: tuple[int, ...]
    truncated: bool = False
    step_tag_id: int | None = None
    part: Part | None = None
    skip: int = 0
    second: int = 0
    dimensions: int = 0
    activate: bool = False
    adapter: int = 0


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids", "lengths", "skip", "second", "dimensions", "activate", "adapter"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Inputs:
    """The arrays of one batch: numpy's before the upload, JAX's inside the program.

    A row holds up to M sequences one behind the other, then padding.

    Attributes:
        ids: int32 [R, T] token ids.
        lengths: int32 [R, M] tokens of each sequence; 0 for an unused place (always behind the used ones).
        skip: int32 [R, M] leading tokens that pooling leaves out (a prompt, where `include_prompt` is false).
        second: int32 [R, M] tokens at the end that belong to a pair's second text (BERT's token type 1).
        dimensions: int32 [R, M] entries of the vector to keep.
        activate: int32 [R, M] 1 to apply the head's last step: normalisation, or a classifier's activation.
        adapter: int32 [R, M] number of the adapter to compute with, 1, 2, …; 0 for none.
    """

    ids: Any
    lengths: Any
    skip: Any
    second: Any
    dimensions: Any
    activate: Any
    adapter: Any

    @classmethod
    def of_shape(cls, rows: int, tokens: int, places: int, array: Callable[[tuple[int, int]], Any]) -> Inputs:
        """Inputs with `array(shape)` for every field, so that a new option needs no change where they are made."""
        return cls(array((rows, tokens)), *(array((rows, places)) for _ in fields(cls)[1:]))


# What goes with each sequence beside its ids and length.
OPTIONS = tuple(f.name for f in fields(Inputs) if f.name not in ("ids", "lengths"))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids", "segments", "positions", "starts", "lengths", "skip", "second", "adapter"],
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
        lengths, skip, second, adapter: int32 [R, M], as in `Inputs`.
    """

    ids: Array
    segments: Array
    positions: Array
    starts: Array
    lengths: Array
    skip: Array
    second: Array
    adapter: Array


def unfold(inputs: Inputs) -> Batch:
    """Derives segments and positions from the lengths (inside the program: only ids and lengths are uploaded)."""
    ends = jnp.cumsum(inputs.lengths, axis=1)
    starts = ends - inputs.lengths
    index = jnp.arange(inputs.ids.shape[1], dtype=jnp.int32)
    place = (index[None, :, None] >= ends[:, None, :]).sum(-1, dtype=jnp.int32)  # [R, T]: sequences already ended
    real = index[None, :] < ends[:, -1:]
    own = jnp.minimum(place, inputs.lengths.shape[1] - 1)
    positions = jnp.where(real, index[None, :] - jnp.take_along_axis(starts, own, axis=1), 0)
    return Batch(
        ids=inputs.ids,
        segments=jnp.where(real, place + 1, 0),
        positions=positions,
        starts=starts,
        lengths=inputs.lengths,
        skip=inputs.skip,
        second=inputs.second,
        adapter=inputs.adapter,
    )


def by_token(batch: Batch, values: Array) -> Array:
    """[R, M] values of sequences -> [R, T]: each token that of its sequence (padding: that of the first)."""
    return jnp.take_along_axis(values, jnp.maximum(batch.segments - 1, 0), axis=1)


def token_types(batch: Batch) -> Array:
    """BERT's token types [R, T]: 1 for the tokens of a pair's second text, else 0."""
    return (batch.positions >= by_token(batch, batch.lengths - batch.second)).astype(jnp.int32)


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
