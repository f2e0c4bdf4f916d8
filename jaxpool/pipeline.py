"""Tokenise ‖ compute ‖ copy back, with bounded memory: windows of texts in, rows out as they are ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from jaxpool.batch import Sequence
from jaxpool.batching import Plan, balance, plan
from jaxpool.hosts import Schedule
from jaxpool.runner import Runner
from jaxpool.tasks import PER_TOKEN

T = TypeVar("T")

# Texts that are planned together: the first window is small, so that the first results come early.
FIRST_WINDOW, WINDOW = 64, 1024
_WINDOWS_AHEAD = 2


def windows(items: Iterable[T], first: int = FIRST_WINDOW, size: int = WINDOW) -> Iterator[tuple[int, list[T]]]:
    """Cuts a stream into lists of growing length, each with the number of its first item."""
    iterator = iter(items)
    start = 0
    while window := list(islice(iterator, first)):
        yield start, window
        start += len(window)
        first = min(2 * first, size)


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
) -> Generator[tuple[Sequence, np.ndarray], None, None]:
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
    limit, per_token = 2 * len(runner.replicas) + 1, task in PER_TOKEN
    running: deque[tuple[Plan, list[Sequence], Future[np.ndarray]]] = deque()
    planned: deque[tuple[Plan, list[Sequence]]] = deque()
    held: list[Sequence] = []

    def start() -> None:
        batch, sequences = planned.popleft()
        running.append((batch, sequences, runner.submit(task, batch, sequences)))

    def submit(sequences: list[Sequence], flush: list[bool] | None) -> Iterator[tuple[Sequence, np.ndarray]]:
        nonlocal held
        lengths = [len(s.ids) for s in sequences]
        plans, kept = plan(lengths, runner.ladder, flush=flush)
        if flush is None:
            plans = balance(plans, lengths, runner.ladder, len(runner.replicas))
        held = [sequences[i] for i in kept]
        planned.extend((batch, sequences) for batch in schedule.agree(plans))
        runner.prepare(task, [batch.shape for batch, _ in list(planned)[1:]])
        while planned:
            while len(running) >= limit or (running and running[0][2].done()):
                yield from finish()
            start()

    def finish() -> Iterator[tuple[Sequence, np.ndarray]]:
        batch, sequences, future = running.popleft()
        yield from unpack(batch, sequences, schedule.result(future), per_token)

    try:
        for window, last in schedule.windows(tokenised, total):
            runner.stats.add(truncated=sum(s.truncated * len(s.owners) for s in window))
            waiting = held
            yield from submit(waiting + window, None if last else [True] * len(waiting) + [False] * len(window))
        while running:
            yield from finish()
    finally:
        while planned and schedule.binding:
            start()
        for _, _, future in running if not schedule.binding else ():
            future.cancel()


def unpack(
    batch: Plan, sequences: list[Sequence], output: np.ndarray, per_token: bool
) -> Iterator[tuple[Sequence, np.ndarray]]:
    """A batch's (sequence, its rows), views into `output`, of the sequences that somebody here waits for."""
    for r, row in enumerate(batch.members):
        start = 0
        for m, i in enumerate(row):
            if i < 0:
                break
            sequence = sequences[i]
            stop = start + len(sequence.ids)
            if sequence.owners:  # else another process waits for it
                yield sequence, output[r, start:stop] if per_token else output[r, m]
            start = stop
