"""Continuous batching: what waits is packed into the engine's fixed shapes whenever a replica can take a batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxpool.batch import Sequence
from jaxpool.batching import Plan, plan
from jaxpool.log import logger
from jaxpool.pipeline import unpack
from jaxpool.runner import Batch, Runner

Answers = list[tuple[Sequence, np.ndarray]]

# Seconds between two signs of life of a scheduler that has nothing to do.
BEAT = 0.5
# Sequences, and batches' worth of tokens, that are planned at a time: more pack better and take longer to plan.
CANDIDATES, BATCHES_AHEAD = 1024, 4
# Of a batch's tokens: what one request may put in before the others get their turn.
TURN = 4
# Batches that fail one after another, or among the last sixteen (one replica of several may be lost), before the device
# counts as lost.
FAILURES, OF_LAST = 3, (8, 16)


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
        large: whether its tokens are counted apart from the others'.
        arrived: `time.monotonic()` at which it came.
        begun: when its first batch started; None before.
    """

    task: str
    sequences: list[Sequence]
    done: Callable[[Answers | Exception], Any]
    priority: int = 0
    deadline: float | None = None
    large: bool = False
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


@dataclass(eq=False)
class _Running:
    """A batch that was given to the runner: who is in it, since when, and whether it hangs."""

    works: list[Work]
    started: float = field(default_factory=time.monotonic)
    future: Batch | None = None
    lost: bool = False

    def kept(self, now: float) -> float:
        """Seconds that its replica has had it, without waiting for others."""
        future = self.future  # which another thread takes away
        begun = None if future is None else future.begun
        return 0.0 if begun is None else now - begun


class Scheduler:
    """A thread that keeps a runner busy. Safe to use from several threads.

    A batch is planned when a replica can take one, from what waits at that moment, so nothing is held back by a clock;
    beside one that runs, only if there is enough for a full one.
    The oldest sequence of the first in line is always in the batch; requests take turns behind it.

    Args:
        runner: the engine's.
        observe: told of every batch that has run: seconds, those among them that the device had it, tokens of its
            sequences, and of its shape.
        deliver: called when outcomes have been handed over, after all those of a batch.
        batch_timeout: seconds after which the requests of a batch that does not come back are told.

    Attributes:
        queued_tokens: that wait.
        large_tokens: those among them that are of `large` requests.
        beat: `time.monotonic()` at the thread's last sign of life.
    """

    def __init__(
        self,
        runner: Runner,
        observe: Callable[[float, float, int, int], Any] = lambda *_: None,
        deliver: Callable[[], Any] = lambda: None,
        batch_timeout: float = float("inf"),
    ) -> None:
        self._runner, self._observe, self._deliver = runner, observe, deliver
        self._batch_timeout = batch_timeout
        self._waiting: deque[Work] = deque()
        self._back: dict[str, list[Candidate]] = {}  # by task: planned, but not yet run, so first in line
        self._turns: dict[str, int] = {}  # when each task had its last
        self._changed = threading.Condition()
        # One batch more than run at once, so that no replica waits for the planner.
        self._slots = sum(replica.in_flight for replica in runner.replicas) + 1
        self._running: set[_Running] = set()
        self._failed: deque[bool] = deque(maxlen=OF_LAST[1])
        self._closed = False
        self.queued_tokens = self.large_tokens = 0
        self.beat = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="jaxpool-scheduler", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> bool:
        """Whether one batch after another fails, or half of them."""
        last = list(self._failed)
        return last[-FAILURES:] == [True] * FAILURES or sum(last) >= OF_LAST[0]

    @property
    def hanging(self) -> bool:
        """Whether a batch has not come back for longer than it may take."""
        with self._changed:
            return any(batch.lost for batch in self._running)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._closed

    @property
    def busy(self) -> int:
        """Batches that are being computed."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests of which something has not begun."""
        with self._changed:
            return len(self._unfinished)

    @property
    def _ready(self) -> bool:
        """Whether there is a place for a batch, and something to put into it that is worth it."""
        there = bool(self._waiting or any(self._back.values()))
        return there and len(self._running) < self._slots and self._worth(self.queued_tokens)

    def _worth(self, tokens: int) -> bool:
        """Whether so many tokens that wait are a reason for a batch: any are if none runs, else as many as fill one.

        Every batch reads all weights, so what comes while one runs had better share the next (docs/performance.md).
        """
        # Of a ladder's full shapes those for long texts are larger than the budget of a batch.
        # One that hangs is no reason to wait for another.
        return all(batch.lost for batch in self._running) or tokens >= min(
            shape.area for shape in self._runner.ladder.full.values()
        )

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
            self._count(work, sum(len(s.ids) for s in work.sequences))
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

    def _count(self, work: Work, tokens: int) -> None:
        """Tokens of a request have come (or gone: negative) that wait."""
        self.queued_tokens += tokens
        if work.large:
            self.large_tokens += tokens

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
        for batch in self._running:
            if not batch.lost and batch.kept(now) > self._batch_timeout:
                batch.lost = True
                logger.error("a batch has not come back from the device for %.0f s", batch.kept(now))
                for work in batch.works:
                    self._forget(work)
                    work.end(DeviceError())

    def _forget(self, work: Work) -> None:
        back = self._back.get(work.task, [])
        with_it = [c for c in back if c[0] is work]
        self._back[work.task] = [c for c in back if c[0] is not work]
        self._count(work, -sum(len(s.ids) for _, s in with_it))
        if work in self._waiting:
            self._waiting.remove(work)
            self._count(work, -sum(len(s.ids) for s in work.sequences[work._next :]))
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
                for work, sequence in candidates:
                    self._count(work, -len(sequence.ids))
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
                full = len(self._running) >= self._slots
                if place and (full or not self._worth(sum(len(sequences[i].ids) for i in left))):
                    break
                running = _Running(list(dict.fromkeys(candidates[i][0] for i in batch.numbers)))
                self._running.add(running)
            left.difference_update(batch.numbers)
            for work in running.works:
                if work.begun is None:
                    work.begun = now
            self._run(task, batch, candidates, sequences, running)
        with self._changed:
            # Not those that were dropped meanwhile.
            kept = {i for i in left if not candidates[i][0]._ended}
            for i, (work, sequence) in enumerate(candidates):
                if i not in kept:
                    self._count(work, -len(sequence.ids))
            self._back[task] = [candidates[i] for i in sorted(kept)] + self._back.get(task, [])

    def _run(
        self, task: str, batch: Plan, candidates: list[Candidate], sequences: list[Sequence], running: _Running
    ) -> None:
        try:
            future = self._runner.submit(task, batch, sequences)
        except Exception as error:
            future = Batch()
            future.set_exception(error)
        running.future = future
        future.add_done_callback(lambda _: self._finish(task, batch, candidates, running))

    def _finish(self, task: str, batch: Plan, candidates: list[Candidate], running: _Running) -> None:
        """In the replica's thread: hands out rows, and makes room for the next batch before that."""
        members = batch.numbers
        # Its callback holds what holds it: left so, all of it would wait for the collector, which runs seldom.
        future, running.future = running.future, None
        assert future is not None
        error = RuntimeError("cancelled") if future.cancelled() else future.exception()
        failed = [] if error is None else running.works
        with self._changed:
            self._running.discard(running)
            for work in failed:  # before there is room for more of them
                self._forget(work)
            self._failed.append(bool(failed))
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
            tokens = sum(len(sequences[i].ids) for i in members)
            self._observe(time.monotonic() - running.started, future.seconds, tokens, batch.shape.area)
        except Exception:  # in a replica's thread: it must go on, whatever this was
            logger.exception("a batch's answers could not be handed out")
        finally:
            self._deliver()
