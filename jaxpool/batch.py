"""What a program takes: token ids and lengths cross to the device, everything else is worked out there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class ArraySpec(NamedTuple):
    """What goes with every token beside its id: the shape of one token's values, and their dtype."""

    shape: tuple[int, ...]
    dtype: Any


Arrays = Mapping[str, ArraySpec]
# Values of every token [R, T, …] -> those of the wanted ones [R, W, …].
Pick = Callable[[Array], Array]
# Among the arrays of a picture's patches: what they look like.
PIXELS = "pixels"
# Among those of a text with pictures: the rows that stand in their tokens' places; where rotary positions take a token
# to be, where that is not its place in the text: [3] time, line, column.
FEATURES, PLACES = "features", "places"
NONE: Arrays = MappingProxyType({})


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
        arrays: what goes with every token beside its id, by name: [length, …] (a picture's patches, say).
        pictures: that stand among the tokens and have not been looked at yet (`images.picture`).
        skip, second, dimensions, activate, adapter: as in `Inputs`.
    """

    ids: np.ndarray
    owners: tuple[int, ...]
    truncated: bool = False
    step_tag_id: int | None = None
    part: Part | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    pictures: tuple[Any, ...] = ()
    skip: int = 0
    second: int = 0
    dimensions: int = 0
    activate: bool = False
    adapter: int = 0


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids", "lengths", "skip", "second", "dimensions", "activate", "adapter", "arrays"],
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
        arrays: [R, T, …] by name, of a program that takes more of a token than its id.
    """

    ids: Any
    lengths: Any
    skip: Any
    second: Any
    dimensions: Any
    activate: Any
    adapter: Any
    arrays: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_shape(cls, rows: int, tokens: int, places: int, array: Callable[..., Any], arrays: Arrays = NONE) -> Inputs:
        """Inputs with `array(shape)` for every field, so that a new option needs no change where they are made.

        `array(shape, dtype=dtype)` makes those of `arrays`.
        """
        values = {name: array((rows, places)) for name in ("lengths", *OPTIONS)}
        more = {name: array((rows, tokens, *spec.shape), dtype=spec.dtype) for name, spec in arrays.items()}
        return cls(array((rows, tokens)), **values, arrays=more)


# What goes with each sequence beside its ids and length.
OPTIONS = tuple(f.name for f in fields(Inputs) if f.name not in ("ids", "lengths", "arrays"))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids", "segments", "positions", "starts", "lengths", "skip", "second", "adapter", "arrays", "wanted"],
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
        arrays: [R, T, …] by name, as in `Inputs`.
        wanted: int32 [R, W] indices, below T, of the row's tokens whose last hidden state is wanted; None for all.
    """

    ids: Array
    segments: Array
    positions: Array
    starts: Array
    lengths: Array
    skip: Array
    second: Array
    adapter: Array
    arrays: dict[str, Array] = field(default_factory=dict)
    wanted: Array | None = None

    @property
    def pick(self) -> Pick | None:
        """What picks the wanted tokens; None where all are wanted."""
        return None if self.wanted is None else partial(take, index=self.wanted)


def take(values: Array, index: Array) -> Array:
    """[R, T, …] at index [R, W] -> [R, W, …]. A program that guards against indices out of a row takes more memory."""
    index = index.reshape(*index.shape, *[1] * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1, mode="promise_in_bounds")


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
        arrays=inputs.arrays,
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
