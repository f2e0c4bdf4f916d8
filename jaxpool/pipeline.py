"""Tokenise ‖ compute ‖ copy back, with bounded memory: windows of texts in, rows out as they are ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxpool.batch import Sequence
from jaxpool.batching import Plan, balance, plan
from jaxpool.hosts import Alone, Schedule
from jaxpool.images.picture import show, tiles
from jaxpool.program import IMAGE, program_for
from jaxpool.recipe import Recipe
from jaxpool.runner import Runner

T = TypeVar("T")
Answer = tuple[Sequence, np.ndarray]

# Texts that are planned together: the first window is small, so that the first results come early.
FIRST_WINDOW, WINDOW = 64, 1024
_WINDOWS_AHEAD = 2
# How far batches may get ahead of one that takes long: answers that are wanted in order wait for it that long.
_WINDOWS_APART = 8


class _Batch(NamedTuple):
    """A planned batch: the name of its program, the sequences that the plan numbers, and the window that they end."""

    program: str
    plan: Plan
    sequences: list[Sequence]
    window: int = 0


class _Flight:
    """Batches that are computed at this moment: started in one order, read in whichever they are done.

    A long one keeps the others from nothing, and there are never more than the replicas need to be busy.

    Args:
        runner: what computes them.
        schedule: whether other processes have a say.
    """

    def __init__(self, runner: Runner, schedule: Schedule) -> None:
        self._runner, self._schedule = runner, schedule
        self._limit = 2 * len(runner.replicas) + 1
        self._running: dict[Future[np.ndarray], _Batch] = {}  # oldest first
        self._done: SimpleQueue[Future[np.ndarray]] = SimpleQueue()

    def start(self, batch: _Batch) -> None:
        """Starts a batch at once."""
        future = self._runner.submit(batch.program, batch.plan, batch.sequences)
        self._running[future] = batch
        future.add_done_callback(self._done.put)

    def run(self, batch: _Batch) -> Iterator[Answer]:
        """Starts a batch when there is room for it; the answers that are there by then."""
        while not (self._done.empty() and self._has_room(batch)):
            yield from self._next()
        self.start(batch)

    def rest(self) -> Iterator[Answer]:
        """The answers of all that were started."""
        while self._running:
            yield from self._next()

    def cancel(self) -> None:
        """Gives up what nobody has begun to compute."""
        for future in self._running:
            future.cancel()

    def _has_room(self, batch: _Batch) -> bool:
        oldest = next(iter(self._running.values()), batch)
        return len(self._running) < self._limit and batch.window - oldest.window <= _WINDOWS_APART

    def _next(self) -> Iterator[Answer]:
        future = self._schedule.next(self._done)
        batch = self._running.pop(future)
        per_token = self._runner.program(batch.program).per_token
        yield from unpack(batch.plan, batch.sequences, future.result(), per_token)


def windows(
    items: Iterable[T], first: int = FIRST_WINDOW, size: int = WINDOW, weight: Callable[[T], int] = lambda item: 1
) -> Iterator[tuple[int, list[T]]]:
    """Cuts a stream into lists of growing weight, each with the number of its first item."""
    start, heavy = 0, 0
    window: list[T] = []
    for item in items:
        window.append(item)
        heavy += weight(item)
        if heavy >= first:
            yield start, window
            start, heavy, window = start + len(window), 0, []
            first = min(2 * first, size)
    if window:
        yield start, window


def ahead(executor: Executor, work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Generator[T, None, None]:
    """`work(*a)` for each a in order, a few calls ahead of the reader, in the executor's threads.

    The arguments themselves are drawn in the reader's thread: a database cursor may stand behind them.
    """
    pending: deque[Future[T]] = deque()
    depth = 0  # the first result is handed on at once; then the lead grows
    try:
        for args in arguments:
            pending.append(executor.submit(work, *args))
            if len(pending) > depth:
                yield pending.popleft().result()
                depth = min(depth + 1, _WINDOWS_AHEAD)
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def execute(
    tokenised: Iterable[list[Sequence]], runner: Runner, task: str, schedule: Schedule, total: int | None = None
) -> Generator[Answer, None, None]:
    """Runs windows of sequences and yields (sequence, its float32 rows) as batches finish, in no fixed order.

    The rows are [C], or for a task that answers for every token [T, C].

    A batch that would go out unfilled waits for the next window, once. The last window's batches are balanced over the
    replicas.

    Args:
        tokenised: the windows.
        runner: what runs them.
        task: of the recipe's.
        schedule: whether other processes have a say.
        total: how many requests there are in all windows, if that is known: it tells which is the last.
    """
    flight = _Flight(runner, schedule)
    planned: deque[_Batch] = deque()
    held: dict[str, list[Sequence]] = {}

    def submit(program: str, sequences: list[Sequence], flush: list[bool] | None, window: int) -> Iterator[Answer]:
        lengths, ladder = [len(s.ids) for s in sequences], runner.ladder_of(program)
        plans, kept = plan(lengths, ladder, flush=flush)
        if flush is None:
            plans = balance(plans, lengths, ladder, len(runner.replicas))
        held[program] = [sequences[i] for i in kept]
        planned.extend(_Batch(program, batch, sequences, window) for batch in schedule.agree(plans))
        runner.prepare(program, [batch.plan.shape for batch in list(planned)[1:]])
        while planned:
            yield from flight.run(planned[0])
            planned.popleft()

    try:
        for number, (window, last) in enumerate(schedule.windows(tokenised, total)):
            runner.stats.add(truncated=sum(s.truncated * len(s.owners) for s in window))
            own: dict[str, list[Sequence]] = {task: []}  # of this one always: other processes may have some
            for sequence in window:
                own.setdefault(program_for(task, sequence), []).append(sequence)
            for program in {**own, **held}:
                waiting, new = held.get(program, []), own.get(program, [])
                flush = None if last else [True] * len(waiting) + [False] * len(new)
                yield from submit(program, waiting + new, flush, number)
        yield from flight.rest()
    finally:
        if schedule.binding:
            for batch in planned:
                flight.start(batch)
        else:
            flight.cancel()


def look(runner: Runner, sequences: list[Sequence], recipe: Recipe) -> list[Sequence]:
    """The sequences with what the tower sees of their pictures, in the caller's thread."""
    found = tiles(sequences)
    if not found:
        return sequences
    lengths, ladder = [len(tile.ids) for tile in found], runner.ladder_of(IMAGE)
    plans = balance(plan(lengths, ladder)[0], lengths, ladder, len(runner.replicas))
    return show(sequences, _seen(runner, plans, found), recipe.config.image_token)


def _seen(runner: Runner, plans: list[Plan], found: list[Sequence]) -> Iterator[Answer]:
    """The tower's answers, a few batches ahead of the reader."""
    flight = _Flight(runner, Alone())
    try:
        for batch in plans:
            yield from flight.run(_Batch(IMAGE, batch, found))
        yield from flight.rest()
    finally:
        flight.cancel()


def unpack(batch: Plan, sequences: list[Sequence], output: np.ndarray, per_token: bool) -> Iterator[Answer]:
    """A batch's (sequence, its rows), views into `output`, of the sequences that somebody here waits for.

    A tower that puts k patches together answers for every k of a sequence.
    """
    step = batch.shape.tokens // output.shape[1] if per_token else 1
    for r, row in enumerate(batch.members):
        start = 0
        for m, i in enumerate(row):
            if i < 0:
                break
            sequence = sequences[i]
            stop = start + len(sequence.ids)
            if sequence.owners:  # else another process waits for it
                yield sequence, output[r, start // step : stop // step] if per_token else output[r, m]
            start = stop
