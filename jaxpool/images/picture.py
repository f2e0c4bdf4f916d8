"""A picture as the engine takes it, and how the rows that a tower makes of it get among a text's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from jaxpool.batch import FEATURES, PIXELS
from jaxpool.batch import Sequence as TokenSequence


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, cut up for a tower.

    Attributes:
        tiles: what the tower sees one by one: of each, what its patches have ([P, …] by name; `ids` number places).
        rows: int32 [n]: which of the rows that the tower makes of the tiles, one tile behind the other, stand in a
            text, in order; empty for a picture that is answered by itself.
        grid: (lines, columns) of those rows, where a family places them by it.
    """

    tiles: tuple[Mapping[str, np.ndarray], ...]
    rows: np.ndarray
    grid: tuple[int, int] = (0, 0)

    def sequences(self, owners: tuple[int, ...], **options: Any) -> Iterator[TokenSequence]:
        """The tiles as what is planned and computed."""
        for tile in self.tiles:
            arrays = {name: values for name, values in tile.items() if name != "ids"}
            ids = tile.get("ids")
            ids = np.zeros(len(tile[PIXELS]), np.int32) if ids is None else ids
            yield TokenSequence(ids, owners, arrays=arrays, **options)


class Reader(Protocol):
    """How a family reads pictures: `images/<family>.py` makes one."""

    def read(self, image: Any, options: Mapping[str, Any]) -> Picture:
        """Cuts up a picture (`PIL.Image.Image`, RGB); `options` are vLLM's `mm_processor_kwargs`.

        Raises:
            ValueError: a picture of a shape that the model does not take, or options that it does not know.
        """

    def write(self, text: str, count: int) -> str:
        """A prompt in which every picture is one special token.

        Raises:
            ValueError: it does not name `count` pictures.
        """

    def place(self, ids: np.ndarray, pictures: Sequence[Picture]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """A prompt's ids with room for each picture's rows, and what goes with its tokens but the rows themselves."""


def spread(ids: np.ndarray, token: int, pictures: Sequence[Picture]) -> np.ndarray:
    """Each `token` in `ids` as often as its picture has rows.

    Raises:
        ValueError: there are not as many as pictures.
    """
    if (found := int((ids == token).sum())) != len(pictures):
        raise ValueError(f"the prompt has places for {found} pictures, and {len(pictures)} were given")
    times = np.ones(len(ids), np.int64)
    times[ids == token] = [len(picture.rows) for picture in pictures]
    return np.repeat(ids, times)


def tiles(sequences: Iterable[TokenSequence]) -> list[TokenSequence]:
    """What the tower has to see before these can be computed, owned by its number in the list."""
    found: list[TokenSequence] = []
    for sequence in sequences:
        for picture in sequence.pictures:
            for tile in picture.sequences(()):
                found.append(replace(tile, owners=(len(found),)))
    return found


def show(
    sequences: Iterable[TokenSequence], seen: Iterable[tuple[TokenSequence, np.ndarray]], token: int
) -> list[TokenSequence]:
    """The sequences with what the tower has seen.

    Args:
        sequences: as `tiles` got them.
        seen: the tower's answers to the tiles, in any order.
        token: that stands where a picture's rows belong.
    """
    rows = {tile.owners[0]: values for tile, values in seen}
    number = 0
    shown = []
    for sequence in sequences:
        if sequence.pictures:
            parts = []
            for picture in sequence.pictures:
                own = [rows[number + i] for i in range(len(picture.tiles))]
                number += len(own)
                parts.append(np.concatenate(own)[picture.rows])
            features = np.concatenate(parts)
            values = np.zeros((len(sequence.ids), features.shape[-1]), features.dtype)
            values[sequence.ids == token] = features
            sequence = replace(sequence, arrays={**sequence.arrays, FEATURES: values}, pictures=())
        shown.append(sequence)
    return shown
