"""Lengths -> plan: which sequence goes to which row of which shape. Numpy only.

XLA compiles a program per shape, so shapes are few and fixed at start (the ladder). One plan type serves two
planners: packed rows (several sequences one behind the other) and one sequence a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

MIN_TOKENS = 16
# Each shape is a program to compile for every task of an instance.
MAX_SHAPES = 12
# Up to which lengths there are steps between the powers of two, where there is no room for all of them.
HALVES = (256, 128)
# What a token costs in a small batch, of one in a full one: measured on CPUs (docs/performance.md); a chip reads all
# weights for each batch, however small.
CPU_SMALL_COST, CHIP_SMALL_COST = 1.25, 2.0


@dataclass(frozen=True, order=True)
class Shape:
    """A batch's shape: R `rows` of T `tokens` with up to M `places` for sequences each."""

    tokens: int
    rows: int
    places: int

    @property
    def area(self) -> int:
        """Tokens that the program computes, padding included."""
        return self.rows * self.tokens


@dataclass(frozen=True)
class Plan:
    """One batch: `members` [R, M] holds the numbers of the sequences in each row, in order, and -1 behind them."""

    shape: Shape
    members: np.ndarray

    @cached_property
    def numbers(self) -> list[int]:
        """Of the sequences in the batch, row by row."""
        return self.members[self.members >= 0].tolist()


@dataclass(frozen=True)
class Ladder:
    """The fixed shapes of an engine.

    Attributes:
        full: token length -> the shape that batches of that row length normally have.
        small: token length -> the shape for what is left over, with as few rows as the mesh allows.
        packed: whether rows hold several sequences.
        small_cost: what a token costs in a small batch, of one in a full one.
    """

    full: dict[int, Shape]
    small: dict[int, Shape]
    packed: bool
    small_cost: float = CPU_SMALL_COST

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Every shape, small ones first."""
        return tuple(sorted({*self.full.values(), *self.small.values()}))

    def with_rows(self, rows: Callable[[int], int]) -> Ladder:
        """The ladder with `rows(R)` where it has R."""
        full, small = (
            {t: replace(s, rows=rows(s.rows)) for t, s in shapes.items()} for shapes in (self.full, self.small)
        )
        return replace(self, full=full, small=small)

    def row_length(self, length: int, lengths: Sequence[int]) -> int:
        """The shortest of `lengths` (ascending) that holds `length` tokens."""
        return lengths[bisect_left(lengths, length)]


def make_ladder(
    max_length: int,
    budget: int,
    *,
    packed: bool = True,
    row_multiple: int = 1,
    packed_row: int = 128,
    lanes: int = MIN_TOKENS,
    small_cost: float = CPU_SMALL_COST,
) -> Ladder:
    """The shapes for sequences of up to `max_length` tokens and batches of about `budget` tokens.

    Args:
        max_length: most tokens of a sequence.
        budget: tokens of a batch, padding included; a longer sequence gets a batch of its own.
        packed: several sequences a row, or one.
        row_multiple: rows are a multiple of this (the size of the mesh's data axis).
        packed_row: the shortest row that full packed batches have.
        lanes: the longest row is a multiple of this, where it is longer than four of them.
        small_cost: as `Ladder` has it.
    """

    def shape(tokens: int, rows: int) -> Shape:
        rows = max(row_multiple, rows // row_multiple * row_multiple)
        return Shape(tokens, rows, max(1, min(64, tokens // 4)) if packed else 1)

    if not packed:
        # Single sequences want steps between the powers of two, if that makes no more shapes than there may be.
        lengths = _lengths(max_length, lanes, halves=max_length)
        if len(lengths) > MAX_SHAPES:
            lengths = _lengths(max_length, lanes)[-MAX_SHAPES:]
        full = {t: shape(t, budget // t) for t in lengths}
        return Ladder(full, dict(full), packed, small_cost)
    lengths = _lengths(max_length, lanes)
    full = {t: shape(t, budget // t) for t in lengths if t >= min(packed_row, lengths[-1])}
    # What is left over wants steps between the powers of two as well, where rows may have any length, and between short
    # ones first; where that makes too many shapes, every second or third length only.
    between = (max_length, *HALVES) if lanes == MIN_TOKENS else ()
    steps = [_lengths(max_length, lanes, halves=up_to) for up_to in between]
    steps += [lengths[::every] for every in range(1, len(lengths) + 1)]
    ladders = (Ladder(full, {t: shape(t, 1) for t in {*own, lengths[-1]}}, packed, small_cost) for own in steps)
    only_full = Ladder(full, dict(full), packed, small_cost)
    return next((ladder for ladder in ladders if len(ladder.shapes) <= MAX_SHAPES), only_full)


def _lengths(max_length: int, lanes: int, halves: int = 0) -> list[int]:
    """Row lengths: powers of two up to `max_length` rounded up, and below `halves` those half-way between."""
    lengths = [MIN_TOKENS]
    while lengths[-1] < max_length:
        step = lengths[-1]
        between = [step + step // 2] if step >= 2 * MIN_TOKENS and step + step // 2 < halves else []
        lengths += [*between, 2 * step]
    multiple = lanes if max_length > 4 * lanes else MIN_TOKENS
    lengths[-1] = max(MIN_TOKENS, -(-max_length // multiple) * multiple)
    return lengths


def plan(
    lengths: Sequence[int], ladder: Ladder, *, flush: Sequence[bool] | None = None
) -> tuple[list[Plan], list[int]]:
    """Places sequences into batches.

    Args:
        lengths: tokens of each sequence, at least 1 and at most the ladder's longest.
        ladder: the shapes to use.
        flush: for each sequence, whether it must be placed now; None for all. Batches that would go out
            unfilled with none such in them are held back.

    Returns:
        The plans, and the numbers of the sequences held back for a next call.
    """
    urgent = [True] * len(lengths) if flush is None else flush
    rows = _pack(lengths, ladder) if ladder.packed else _one_a_row(lengths, ladder)
    plans: list[Plan] = []
    held: list[int] = []
    for tokens, members in sorted(rows.items(), reverse=True):
        shape = ladder.full[tokens]
        whole = len(members) // shape.rows * shape.rows
        plans += [_plan(shape, members[i : i + shape.rows]) for i in range(0, whole, shape.rows)]
        rest = members[whole:]
        if any(urgent[i] for row in rest for i in row):
            plans += _leftover(rest, shape, lengths, ladder)
        else:
            held += [i for row in rest for i in row]
    return plans, held


def _pack(lengths: Sequence[int], ladder: Ladder) -> dict[int, list[list[int]]]:
    """Best-fit decreasing: each sequence into the open row with the least room that holds it."""
    full = sorted(ladder.full)
    rows: dict[int, list[list[int]]] = defaultdict(list)
    open_rows: list[tuple[int, int, int, list[int]]] = []  # (room left, tie-break, places left, members), ascending
    for number, i in enumerate(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))):
        length = lengths[i]
        at = bisect_left(open_rows, (length, -1))
        if at < len(open_rows):
            room, _, places, members = open_rows.pop(at)
        else:
            shape = ladder.full[ladder.row_length(length, full)]
            room, places, members = shape.tokens, shape.places, []
            rows[room].append(members)
        members.append(i)
        if room > length and places > 1:
            insort(open_rows, (room - length, number, places - 1, members))
    return rows


def _one_a_row(lengths: Sequence[int], ladder: Ladder) -> dict[int, list[list[int]]]:
    full = sorted(ladder.full)
    rows: dict[int, list[list[int]]] = defaultdict(list)
    for i, length in enumerate(lengths):
        rows[ladder.row_length(length, full)].append([i])
    return rows


def _leftover(rows: list[list[int]], shape: Shape, lengths: Sequence[int], ladder: Ladder) -> list[Plan]:
    """Rows too few for a full batch: small batches, unless they would cost as much as the full one."""
    small = sorted(ladder.small)
    used = [ladder.small[ladder.row_length(sum(lengths[i] for i in row), small)] for row in rows]
    step = used[0].rows
    batches = [(max(used[i : i + step]), rows[i : i + step]) for i in range(0, len(rows), step)]
    if len(batches) > 1 and ladder.small_cost * sum(s.area for s, _ in batches) > shape.area:
        return [_plan(shape, rows)]
    return [_plan(s if s.places >= max(map(len, r)) else shape, r) for s, r in batches]


def balance(plans: Sequence[Plan], lengths: Sequence[int], ladder: Ladder, streams: int) -> list[Plan]:
    """The last plans of a call, some of the full ones cut into small ones, so that no stream waits long for another.

    Args:
        plans: in the order in which they will be run, each by the stream that falls free first.
        lengths: as `plan` takes them.
        ladder: the shapes to use.
        streams: how many run at once.
    """
    cuts = [list(plans)]
    for _ in range(streams if streams > 1 else 0):
        whole = cuts[-1]
        pieces = ((i, _pieces(whole[i], lengths, ladder)) for i in range(len(whole) - 1, -1, -1))
        at, cut = next(((i, cut) for i, cut in pieces if cut), (0, []))
        if not cut:
            break
        cuts.append([*whole[:at], *whole[at + 1 :], *cut])
    return min(cuts, key=lambda plans: _makespan(plans, ladder, streams))


def _pieces(plan: Plan, lengths: Sequence[int], ladder: Ladder) -> list[Plan]:
    """A full batch as small ones; none if the ladder has no smaller ones."""
    rows = [[int(i) for i in row if i >= 0] for row in plan.members if row[0] >= 0]
    small = sorted(ladder.small)
    shapes = [ladder.small[ladder.row_length(sum(lengths[i] for i in row), small)] for row in rows]
    fits = all(shape.places >= len(row) for shape, row in zip(shapes, rows, strict=True))
    if not fits or sum(shape.area for shape in shapes) > plan.shape.area or shapes[0].rows > 1 or len(rows) < 2:
        return []
    return [_plan(shape, [row]) for shape, row in zip(shapes, rows, strict=True)]


def _makespan(plans: Sequence[Plan], ladder: Ladder, streams: int) -> float:
    ends = [0.0] * streams
    for p in plans:
        full = p.shape == ladder.full.get(p.shape.tokens)
        ends[ends.index(min(ends))] += p.shape.area * (1.0 if full else ladder.small_cost)
    return max(ends)


def _plan(shape: Shape, rows: list[list[int]]) -> Plan:
    members = np.full((shape.rows, shape.places), -1, np.int32)
    for r, row in enumerate(rows):
        members[r, : len(row)] = row
    return Plan(shape, members)
