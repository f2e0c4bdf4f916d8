"""One served model: calls in, answers out, from the event loop. Tokenising and computing are other threads' work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from jaxpool.batch import Sequence
from jaxpool.calls import Call, Calls
from jaxpool.chunks import merge
from jaxpool.images.picture import show, tiles
from jaxpool.llm import LLM
from jaxpool.program import IMAGE, program_for
from jaxpool.recipe import Recipe
from jaxpool.server.errors import ApiError
from jaxpool.server.limits import Limits
from jaxpool.server.mailbox import Mailbox, settle
from jaxpool.server.metrics import ModelMetrics
from jaxpool.server.readers import Readers
from jaxpool.server.scheduler import Answers, DeadlineError, DeviceError, Scheduler, Work

T = TypeVar("T")

# Seconds without a sign of life of the scheduler, after which it counts as lost.
SILENCE = 30.0


@dataclass(frozen=True)
class Answer:
    """The answer to one request of a call.

    Attributes:
        data: float32 [C], or [T, C] for a task that answers for every token.
        tokens: that the model read.
        truncated: whether the text was cut.
    """

    data: np.ndarray
    tokens: int
    truncated: bool


class Wait:
    """How a request waits.

    Args:
        timeout: seconds from now within which it has to begin; None: any time.
        priority: lower ones first.
        gone: done when nobody waits for the answer any more.
    """

    def __init__(self, timeout: float | None, priority: int = 0, gone: asyncio.Future[Any] | None = None) -> None:
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.priority, self.gone = priority, gone

    def check(self) -> None:
        """Raises ApiError 499 or 504 if nobody waits for the answer any more, or it is too late."""
        if self.gone is not None and self.gone.done():
            raise _gone()
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise _late()


def _gone() -> ApiError:
    return ApiError(499, "the client has gone")


def _late() -> ApiError:
    return ApiError(504, "the request did not begin within the time that it had")


class Serving:
    """A model behind a scheduler.

    Args:
        llm: the model; its engine must not be used by others meanwhile.
        names: under which clients know it, the first in answers.
        limits: of the server.

    Raises:
        ValueError: the model lies on devices of several processes.

    Attributes:
        calls: makes its calls.
        load: requests in work, from when their pictures are there to their answer.
        ready: whether every shape of every task that it answers is compiled.
        cold: why it will not get ready, or "".
        readers: the threads that read its requests.
    """

    def __init__(self, llm: LLM, names: tuple[str, ...], limits: Limits) -> None:
        if llm.engine.schedule.binding:
            raise ValueError(
                f"{names[0]}: a model over several processes cannot be served, only called (docs/hosts.md)"
            )
        self.llm, self.names, self.limits = llm, names, limits
        self.started = int(time.time())
        self.ready, self.cold = False, ""
        self.load = 0
        self.metrics = ModelMetrics(names[0])
        self._engine = llm.engine
        # Its own: errors name the model as clients know it, not where its files lie.
        self.calls = Calls(llm.recipe, llm.engine.tokenizer, names[0])
        self._mailbox = Mailbox()
        runner = self._engine.runner
        self._scheduler = Scheduler(runner, self._observe, self._mailbox.deliver, limits.batch_timeout)
        self.readers = Readers(limits)
        self._rate = 0.0  # tokens/s, of a replica
        self._replicas = len(runner.replicas)
        self.metrics.watch(self._scheduler, self._engine.stats)

    @property
    def name(self) -> str:
        """What it is called in answers."""
        return self.names[0]

    @property
    def recipe(self) -> Recipe:
        """What decides which answer a text gets."""
        return self.llm.recipe

    def trouble(self) -> str | None:
        """Why the model cannot answer at the moment, or None."""
        scheduler = self._scheduler
        if not scheduler.alive:
            return "the scheduler has ended"
        if scheduler.failing:
            return "batches fail on the device"
        if scheduler.hanging:
            return "a batch does not come back from the device"
        if time.monotonic() - scheduler.beat > SILENCE:
            return "no sign of life from the scheduler"
        return None

    async def answer(
        self,
        make: Callable[[], Call],
        wait: Wait | None = None,
        *,
        inputs: int | None = None,
        size: int = 0,
    ) -> list[Answer]:
        """The answers to a call's requests, in order.

        Args:
            make: the call, made in another thread: templates and long lists take their time.
            wait: how it waits; None: first come, first served, and as long as the server allows.
            inputs: how many the client gave, where the call has a request for each text of a pair.
            size: bytes of the request's body.

        Raises:
            ApiError: 413 too many texts, 429 the queue is full, 503 the device failed, 504 too late, 499 `gone`.
            ValueError: as `make` and `Reader.read`.
        """
        self.load += 1
        try:
            return await self._answer(make, wait or Wait(self.limits.timeout), inputs, size)
        finally:
            self.load -= 1

    async def read(self, work: Callable[[], T], wait: Wait, size: int) -> T:
        """What `work` makes of a request with a body of `size` bytes that needs no device.

        Raises:
            ApiError: 429 too much waits to be read, 504 too late, 499 nobody waits any more.
        """

        def begin() -> T:
            wait.check()
            return work()

        self.load += 1
        try:
            return await self.readers.read(begin, size)
        finally:
            self.load -= 1

    async def _answer(self, make: Callable[[], Call], wait: Wait, inputs: int | None, size: int) -> list[Answer]:
        self._check_queue(0)
        call, sequences = await self.readers.read(partial(self._read, make, wait, inputs), size)
        if not sequences:
            return []
        found = tiles(sequences)
        tokens = sum(len(s.ids) for s in (*sequences, *found))
        self._check_queue(tokens)
        run = partial(self._run, large=self.limits.large(tokens))
        if found:
            seen = await run(IMAGE, found, wait)
            place = partial(show, sequences, seen, self.recipe.config.image_token)
            sequences = await self.readers.read_on(place, size)
            wait.deadline = None  # it has begun in time
            del found, seen, place  # pixels
        programs: dict[str, list[Sequence]] = {}
        for sequence in sequences:
            programs.setdefault(program_for(call.task, sequence), []).append(sequence)
        runs = [run(program, own, wait) for program, own in programs.items()]
        # Nearly always one, which needs no task of its own.
        answers = [await runs[0]] if len(runs) == 1 else await asyncio.gather(*runs)
        return self._in_order(call, [answer for own in answers for answer in own])

    def _check_queue(self, tokens: int) -> None:
        """Raises ApiError 429 if there is no room for so many tokens."""
        waiting = self._scheduler
        self.limits.check_queue(waiting.queued_tokens, waiting.large_tokens, tokens, self._rate * self._replicas)

    def _read(self, make: Callable[[], Call], wait: Wait, inputs: int | None) -> tuple[Call, list[Sequence]]:
        """A call and its sequences, unless nobody waits for them any more. Errors as `answer`."""
        wait.check()
        call = make()
        self.limits.check_texts(len(call.requests) if inputs is None else inputs)
        return call, self._engine.read(call.requests, call.reading) if call.requests else []

    async def _run(
        self,
        program: str,
        sequences: list[Sequence],
        wait: Wait,
        *,
        large: bool,
    ) -> Answers:
        """The answers to sequences that one program computes. Errors as `answer`."""
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()

        def leave(_: asyncio.Future[Any]) -> None:
            settle(future, _gone())

        gone = wait.gone
        work = Work(program, sequences, partial(self._mailbox.put, future), wait.priority, wait.deadline, large)
        self._scheduler.submit(work)
        if gone is not None:
            gone.add_done_callback(leave)
        answers: Answers | None = None
        try:
            answers = await future
        except DeadlineError:
            raise _late() from None
        except DeviceError:
            raise ApiError(503, "the device failed; try again", headers={"Retry-After": "5"}) from None
        except RuntimeError as error:
            raise ApiError(503, str(error)) from None
        finally:
            if gone is not None:
                gone.remove_done_callback(leave)
            if answers is None:
                self._scheduler.drop(work)
        if work.begun is not None:
            self.metrics.queue_seconds.observe(work.begun - work.arrived)
        return answers

    async def warm(self) -> None:
        """Compiles and runs every shape of every task that it answers; ready from then on. Errors as `LLM.warmup`."""
        try:
            await asyncio.get_running_loop().run_in_executor(None, self.llm.warmup, *self.recipe.tasks)
        except Exception:
            self.cold = "it could not be warmed up: the server's log has more"
            raise
        self.ready = True

    def close(self) -> None:
        """Ends its threads. What still waits is told."""
        self._scheduler.close()
        self.metrics.close()
        self.readers.close()
        self.llm.close()

    def _in_order(self, call: Call, answers: Answers) -> list[Answer]:
        merged = merge(answers, normalised=self.recipe.truncate_dim is None) if call.reading.in_parts else answers
        found: list[Answer | None] = [None] * len(call.requests)
        for sequence, rows in merged:
            answer = Answer(self._engine.wanted(call.task, sequence, rows), len(sequence.ids), sequence.truncated)
            for owner in sequence.owners:
                found[owner] = answer
        return [answer for answer in found if answer is not None]

    def _observe(self, seconds: float, device_seconds: float, tokens: int, area: int) -> None:
        self._rate += 0.1 * (tokens / max(device_seconds, 1e-6) - self._rate)
        self.metrics.batch(seconds, device_seconds, tokens, area)
