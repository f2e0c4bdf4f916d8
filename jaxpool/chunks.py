"""Texts longer than the model: computed in parts, and averaged by the parts' numbers of tokens, as vLLM does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from jaxpool.batch import Part, Sequence


def split(sequence: Sequence, limit: int) -> list[Sequence]:
    """A sequence in parts of `limit` tokens; itself, where it is no longer than that."""
    if len(sequence.ids) <= limit:
        return [sequence]
    starts = range(0, len(sequence.ids), limit)
    return [
        replace(
            sequence,
            ids=sequence.ids[start : start + limit],
            truncated=sequence.truncated and start == 0,  # counted once
            skip=sequence.skip if start == 0 else 0,
            part=Part(sequence, number, len(starts)),
        )
        for number, start in enumerate(starts)
    ]


def merge(results: Iterable[tuple[Sequence, np.ndarray]], *, normalised: bool) -> Iterator[tuple[Sequence, np.ndarray]]:
    """Joins the parts' vectors: Σ tokens · vector / Σ tokens, as soon as all parts of a text are there.

    Args:
        results: (sequence or part of one, float32 [D]), in any order.
        normalised: whether `Sequence.activate` means vectors of length 1; then the average is brought to it too.
    """
    waiting: dict[tuple[int, ...], dict[int, tuple[int, np.ndarray]]] = {}
    for sequence, vector in results:
        part = sequence.part
        if part is None:
            yield sequence, vector
            continue
        parts = waiting.setdefault(sequence.owners, {})
        parts[part.number] = (len(sequence.ids), vector.astype(np.float64))
        if len(parts) == part.parts:
            del waiting[sequence.owners]
            yield part.whole, _average([parts[i] for i in range(part.parts)], normalised and sequence.activate)


def _average(parts: list[tuple[int, np.ndarray]], normalise: bool) -> np.ndarray:
    mean = sum(tokens * vector for tokens, vector in parts) / sum(tokens for tokens, _ in parts)
    if normalise:
        mean = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return np.asarray(mean, np.float32)
