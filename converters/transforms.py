"""How one tensor of a checkpoint becomes a leaf of the param tree, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

Index = tuple[slice, ...]
Fetch = Callable[[Index], np.ndarray]


class CheckpointError(ValueError):
    """A checkpoint whose tensors do not fit the model; the message lists every problem."""


@dataclass(frozen=True)
class Transform:
    """How a checkpoint's tensor becomes a leaf, as an einops-like pattern: "(n h) d -> d n h".

    The left side names the tensor's dimensions, a bracket for several axes in one; the right side names the
    leaf's dimensions in order. An empty pattern leaves the tensor as it is.
    """

    pattern: str = ""

    @cached_property
    def _groups(self) -> list[list[str]]:
        left = self.pattern.split("->")[0]
        return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", left)]

    @cached_property
    def _order(self) -> list[str]:
        return self.pattern.split("->")[1].split()

    def source_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The checkpoint's shape for a leaf of `shape`."""
        if not self.pattern:
            return tuple(shape)
        size = dict(zip(self._order, shape, strict=True))
        return tuple(math.prod(size[axis] for axis in group) for group in self._groups)

    def read(self, fetch: Fetch, shape: Sequence[int], index: Index | None = None) -> np.ndarray:
        """The leaf (or the part of it under `index`), fetching only the rows of the tensor that it needs.

        Args:
            fetch: index into the checkpoint's tensor -> array.
            shape: the leaf's whole shape.
            index: slices of step 1 into the leaf; None for all of it.
        """
        index = index or (slice(None),) * len(shape)
        if not self.pattern:
            return fetch(index)
        size = dict(zip(self._order, shape, strict=True))
        part = dict(zip(self._order, index, strict=True))
        source, axes, inner = [], [], []
        for group in self._groups:
            first, *rest = group
            start, stop, _ = part[first].indices(size[first])
            block = math.prod(size[axis] for axis in rest)
            source.append(slice(start * block, stop * block))
            axes += [stop - start, *(size[axis] for axis in rest)]
            inner += [slice(None), *(part[axis] for axis in rest)]
        split = fetch(tuple(source)).reshape(axes)[tuple(inner)]
        names = [axis for group in self._groups for axis in group]
        return np.ascontiguousarray(split.transpose([names.index(axis) for axis in self._order]))

    def invert(self, leaf: np.ndarray) -> np.ndarray:
        """The checkpoint's tensor that `read` makes this leaf from."""
        if not self.pattern:
            return leaf
        names = [axis for group in self._groups for axis in group]
        restored = leaf.transpose([self._order.index(axis) for axis in names])
        return np.ascontiguousarray(restored).reshape(self.source_shape(leaf.shape))


UNCHANGED = Transform()


@dataclass(frozen=True)
class TokenRows:
    """A small head cut out of the language model's: the rows of a few tokens, [D, K], or [D, 1] their difference.

    Softmax over two tokens is the sigmoid of their difference, so one row of it, taken in float32, does the work of
    the whole [V, D] head (in bfloat16 the rows of "yes" and "no" would cancel).

    Attributes:
        ids: the tokens; for a difference (false, true).
        vocab: rows of the stored matrix.
        difference: whether the leaf is the second row minus the first.
    """

    ids: tuple[int, ...]
    vocab: int
    difference: bool = False

    def source_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The checkpoint's shape for a leaf of `shape`."""
        return (self.vocab, shape[0])

    def read(self, fetch: Fetch, shape: Sequence[int], index: Index | None = None) -> np.ndarray:
        """The leaf, or the part of it under `index`, in float32. Arguments as `Transform.read`."""
        rows = np.concatenate([fetch((slice(i, i + 1), slice(None))) for i in self.ids]).astype(np.float32)
        leaf = (rows[1:] - rows[:1] if self.difference else rows).T
        return np.ascontiguousarray(leaf[index] if index else leaf)

    def invert(self, leaf: np.ndarray) -> np.ndarray:
        """There is no way back.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError("a head cut out of a language model's head cannot be written back under its name")


class Part(NamedTuple):
    """One of `of` equal blocks, of a tensor's first dimension, that are leaves of their own.

    Checkpoints fuse products of the same x: queries, keys and values; the two of a gated MLP. Their leaves lie apart:
    a TPU's program would lay out a fused one anew on every call, and what follows a part could not be fused with it.
    (InternLM2's are mixed group by group, and jina's have adapters over the whole: those stay one leaf.)
    """

    number: int
    of: int

    def within(self, fetch: Fetch, rows: int) -> Fetch:
        """`fetch` of the whole tensor as a `fetch` of this block, which has `rows` rows."""

        def own(index: Index) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            before = self.number * rows
            return fetch((slice(before + start, before + stop), *index[1:]))

        return own


WHOLE = Part(0, 1)
