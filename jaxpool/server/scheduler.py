"""Continuous batching: what waits is packed into the engine's fixed shapes whenever a replica can take a batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxpool.batch import Sequence
from jaxpool.batching import Plan, plan
from jaxpool.log import logger
from jaxpool.pipeline import unpack
from jaxpool.runner import Runner

Answers = list[tuple[Sequence, np.ndarray]]

# Seconds between two signs of life of a scheduler that has nothing to do.
BEAT = 0.5
# Sequences, and batches' worth of tokens, that are planned at a time: more pack better and take longer to plan.
CANDIDATES, BATCHES_AHEAD = 1024, 4
# Of a batch's tokens: what one request may put in before the others get their turn.
TURN = 4
# Batches that fail one after another before the device counts as lost.
FAILURES = 3


class DeadlineError(Exception):
    """The time that the request had is over."""


class DeviceError(Exception):
    """The device failed while it computed the request."""


@dataclass(eq=False)
class Work:
    """The sequences of one request.

    Attributes:
        task: the name of the runner's program.
        sequences: at least one.
        done: called once, from a thread of the scheduler's, with the answers in any order, or what went wrong.
        priority: lower ones first.
        deadline: `time.monotonic()` after which it is not begun any more; None: never.
        arrived: `time.monotonic()` at which it came.
        begun: when its first batch started; None before.
    """

    task: str
    sequences: list[Sequence]
    done: Callable[[Answers | Exception], Any]
    priority: int = 0
    deadline: float | None = None
    arrived: float = field(default_factory=time.monotonic)
    begun: float | None = None
    _next: int = 0
    _answers: Answers = field(default_factory=list)
    _ended: bool = False

    def end(self, outcome: Answers | Exception) -> None:
        """Hands the outcome over, the first time."""
        if not self._ended:
            self._ended = True
            self.done(outcome)


Candidate = tuple[Work, Sequence]


class Scheduler:
    """A thread that keeps a runner busy. Safe to use from several threads.

    A batch is planned when a replica can take one, from what waits at that moment, so nothing is held back by a clock;
    beside one that runs, only if there is enough for a full one.
    The oldest sequence of the first in line is always in the batch; requests take turns behind it.

    Args:
        runner: the engine's.
        observe: told of every batch that has run: seconds, tokens of its sequences, and of its shape.
        deliver: called when outcomes have been handed over, after all those of a batch.
    """

    def __init__(
        self,
        runner: Runner,
        observe: Callable[[float, int, int], Any] = lambda *_: None,
        deliver: Callable[[], Any] = lambda: None,
    ) -> None:
        self._runner, self._observe, self._deliver = runner, observe, deliver
        self._waiting: deque[Work] = deque()
        self._back: dict[str, list[Candidate]] = {}  # by task: planned, but not yet run, so first in line
        self._turns: dict[str, int] = {}  # when each task had its last
        self._changed = threading.Condition()
        # One batch more than run at once, so that no replica waits for the planner.
        self._slots = sum(replica.in_flight for replica in runner.replicas) + 1
        self._running = 0
        self._failures = 0
        self._closed = False
        self.queued_tokens = 0
        self.beat = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="jaxpool-scheduler", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> bool:
        """Whether one batch after another fails."""
        return self._failures >= FAILURES

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._closed

    @property
    def busy(self) -> int:
        """Batches that are being computed."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests of which something still has to be computed, or is."""
        return len(self._waiting)

    @property
    def _ready(self) -> bool:
        """Whether there is a place for a batch, and something to put into it that is worth it."""
        there = bool(self._waiting or any(self._back.values()))
        return there and self._running < self._slots and self._worth(self.queued_tokens)

    def _worth(self, tokens: int) -> bool:
        """Whether so many tokens that wait are a reason for a batch: any are if none runs, else as many as fill one.

        Every batch reads all weights, so what comes while one runs had better share the next (docs/performance.md).
        """
        # Of a ladder's full shapes those for long texts are larger than the budget of a batch.
        return self._running == 0 or tokens >= min(shape.area for shape in self._runner.ladder.full.values())

    @property
    def _unfinished(self) -> list[Work]:
        """Everybody of whom something has not begun, in line."""
        return list(dict.fromkeys((*(work for back in self._back.values() for work, _ in back), *self._waiting)))

    def submit(self, work: Work) -> None:
        """Puts a request in line.

        Raises:
            RuntimeError: closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the scheduler is closed")
            self._waiting.append(work)
            self.queued_tokens += sum(len(s.ids) for s in work.sequences)
            self._changed.notify()

    def drop(self, work: Work) -> None:
        """Forgets what of a request has not begun; nobody is told."""
        with self._changed:
            work._ended = True
            self._forget(work)

    def close(self) -> None:
        """Ends the thread; what waits is told. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._ready, BEAT)
                self._beat()
                if self._closed:
                    for work in self._unfinished:
                        work.end(RuntimeError("the server is shutting down"))
                    self._deliver()
                    return
                # Asked again: who was late has just been told.
                candidates = self._pick() if self._ready else []
            if candidates:
                self._try(candidates)
            self._deliver()

    def _beat(self) -> None:
        now = self.beat = time.monotonic()
        for work in self._unfinished:
            if work.begun is None and work.deadline is not None and now > work.deadline:
                self._forget(work)
                work.end(DeadlineError())

    def _forget(self, work: Work) -> None:
        back = self._back.get(work.task, [])
        with_it = [c for c in back if c[0] is work]
        self._back[work.task] = [c for c in back if c[0] is not work]
        self.queued_tokens -= sum(len(s.ids) for _, s in with_it)
        if work in self._waiting:
            self._waiting.remove(work)
            self.queued_tokens -= sum(len(s.ids) for s in work.sequences[work._next :])
            work._next = len(work.sequences)

    def _pick(self) -> list[Candidate]:
        """Who is first in line, and then the others of the same task in turns."""
        task = self._next_task()
        self._turns[task] = max(self._turns.values(), default=0) + 1
        picked = self._back.pop(task, [])
        tokens = sum(len(s.ids) for _, s in picked)
        full = max(shape.area for shape in self._runner.ladder_of(task).full.values())
        enough = lambda: tokens >= BATCHES_AHEAD * full or len(picked) >= CANDIDATES  # noqa: E731
        # Stable: by arrival, and by turn.
        line = sorted((work for work in self._waiting if work.task == task), key=lambda work: work.priority)
        while line and not enough():
            for work in [work for work in line if work.priority == line[0].priority]:
                turn = full // TURN
                while turn > 0 and work._next < len(work.sequences):
                    sequence = work.sequences[work._next]
                    work._next += 1
                    picked.append((work, sequence))
                    turn -= len(sequence.ids)
                    tokens += len(sequence.ids)
                self._waiting.remove(work)
                if work._next == len(work.sequences):
                    line.remove(work)
                else:  # to the end of the line, for the next time
                    self._waiting.append(work)
                if enough():
                    break
        return picked

    def _next_task(self) -> str:
        """The task with the lowest priority's number; among equals the one whose last turn is longest ago."""
        first: dict[str, int] = {}
        for work in self._unfinished:
            first[work.task] = min(work.priority, first.get(work.task, work.priority))
        return min(first, key=lambda task: (first[task], self._turns.get(task, 0)))

    def _try(self, candidates: list[Candidate]) -> None:
        """Starts what it can. Whatever goes wrong is these requests' affair, and not the next ones'."""
        try:
            self._start(candidates)
        except Exception:
            logger.exception("a batch could not be planned")
            with self._changed:
                self.queued_tokens -= sum(len(s.ids) for _, s in candidates)
                failed = list(dict.fromkeys(work for work, _ in candidates))
                for work in failed:
                    self._forget(work)
            for work in failed:
                work.end(RuntimeError("internal error: the server's log has more"))

    def _start(self, candidates: list[Candidate]) -> None:
        """Plans all candidates, runs the batches with the oldest, and keeps the others for the next time."""
        task = candidates[0][0].task
        plans, _ = plan([len(s.ids) for _, s in candidates], self._runner.ladder_of(task))
        now = time.monotonic()
        left: set[int] = set(range(len(candidates)))
        sequences = [sequence for _, sequence in candidates]
        for place, batch in enumerate(sorted(plans, key=lambda plan: min(plan.numbers))):
            with self._changed:
                full = self._running >= self._slots
                if place and (full or not self._worth(sum(len(sequences[i].ids) for i in left))):
                    break
                self._running += 1
            left.difference_update(batch.numbers)
            for i in batch.numbers:
                if candidates[i][0].begun is None:
                    candidates[i][0].begun = now
            self._run(task, batch, candidates, sequences)
        with self._changed:
            # Not those that were dropped meanwhile.
            kept = [candidates[i] for i in sorted(left) if not candidates[i][0]._ended]
            self.queued_tokens -= sum(len(s.ids) for _, s in candidates) - sum(len(s.ids) for _, s in kept)
            self._back[task] = kept + self._back.get(task, [])

    def _run(self, task: str, batch: Plan, candidates: list[Candidate], sequences: list[Sequence]) -> None:
        started = time.monotonic()

        def finished(future: Future[np.ndarray]) -> None:
            self._finish(task, batch, candidates, future, time.monotonic() - started)

        try:
            self._runner.submit(task, batch, sequences).add_done_callback(finished)
        except Exception as error:
            failed: Future[np.ndarray] = Future()
            failed.set_exception(error)
            finished(failed)

    def _finish(
        self, task: str, batch: Plan, candidates: list[Candidate], future: Future[np.ndarray], seconds: float
    ) -> None:
        """In the replica's thread: hands out rows, and makes room for the next batch before that."""
        members = batch.numbers
        error = RuntimeError("cancelled") if future.cancelled() else future.exception()
        failed = [] if error is None else list(dict.fromkeys(candidates[i][0] for i in members))
        with self._changed:
            self._running -= 1
            for work in failed:  # before there is room for more of them
                self._forget(work)
            self._failures = self._failures + 1 if failed else 0
            self._changed.notify()
        if failed:
            logger.error("a batch failed: %s", error)
        try:
            for work in failed:
                work.end(DeviceError())
            if failed:
                return
            sequences = [sequence for _, sequence in candidates]
            owners = {id(sequences[i]): candidates[i][0] for i in members}
            rows: Iterable[tuple[Sequence, np.ndarray]] = unpack(
                batch, sequences, future.result(), self._runner.program(task).per_token
            )
            for sequence, own in rows:
                work = owners[id(sequence)]
                work._answers.append((sequence, own))
                if len(work._answers) == len(work.sequences):
                    work.end(work._answers)
            self._observe(seconds, sum(len(sequences[i].ids) for i in members), batch.shape.area)
        except Exception:  # in a replica's thread: it must go on, whatever this was
            logger.exception("a batch's answers could not be handed out")
        finally:
            self._deliver()
