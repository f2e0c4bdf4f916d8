"""One served model: calls in, answers out, from the event loop. Tokenising and computing are other threads' work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from jaxpool.server.scheduler import Answers, DeadlineError, DeviceError, Scheduler, Work

TOKENISERS = 2
# Seconds without a sign of life, or in one batch (a compilation may be in it), after which the device counts as lost.
SILENCE, LONGEST_BATCH = 30.0, 600.0


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
    """

    def __init__(self, llm: LLM, names: tuple[str, ...], limits: Limits) -> None:
        if llm.engine.schedule.binding:
            raise ValueError(
                f"{names[0]}: a model over several processes cannot be served, only called (docs/hosts.md)"
            )
        self.llm, self.names, self.limits = llm, names, limits
        self.started = int(time.time())
        self.ready = False
        self.metrics = ModelMetrics(names[0])
        self._engine = llm.engine
        # Its own: errors name the model as clients know it, not where its files lie.
        self.calls = Calls(llm.recipe, llm.engine.tokenizer, names[0])
        self._mailbox = Mailbox()
        self._scheduler = Scheduler(self._engine.runner, self._observe, self._mailbox.deliver)
        self._tokenising = ThreadPoolExecutor(TOKENISERS, thread_name_prefix="jaxpool-server-tokenise")
        self._rate = 0.0
        self.metrics.watch(self._scheduler, self._engine.stats)

    @property
    def name(self) -> str:
        """What it is called in answers."""
        return self.names[0]

    @property
    def recipe(self) -> Recipe:
        """What decides which answer a text gets."""
        return self.llm.recipe

    @property
    def load(self) -> int:
        """Requests that wait or are computed."""
        return self._scheduler.waiting + self._scheduler.busy

    def trouble(self) -> str | None:
        """Why the model cannot answer at the moment, or None."""
        scheduler = self._scheduler
        if not scheduler.alive:
            return "the scheduler has ended"
        if scheduler.failing:
            return "one batch after another fails on the device"
        if time.monotonic() - scheduler.beat > (LONGEST_BATCH if scheduler.busy else SILENCE):
            return "no sign of life from the device"
        return None

    async def answer(
        self,
        make: Callable[[], Call],
        *,
        priority: int = 0,
        timeout: float | None = None,
        gone: asyncio.Future[Any] | None = None,
        inputs: int | None = None,
    ) -> list[Answer]:
        """The answers to a call's requests, in order.

        Args:
            make: the call, made in another thread: templates and long lists take their time.
            priority: lower ones first.
            timeout: seconds within which it has to begin; None: the server's own.
            gone: done when nobody waits for the answer any more.
            inputs: how many the client gave, where the call has a request for each text of a pair.

        Raises:
            ApiError: 413 too many texts, 429 the queue is full, 503 the device failed, 504 too late, 499 `gone`.
            ValueError: as `make` and `Reader.read`.
        """
        limits, loop = self.limits, asyncio.get_running_loop()
        call, sequences = await loop.run_in_executor(self._tokenising, self._read, make, inputs)
        if not sequences:
            return []
        found = tiles(sequences)
        tokens = sum(len(s.ids) for s in (*sequences, *found))
        limits.check_queue(self._scheduler.queued_tokens, tokens, self._rate)
        allowed = limits.timeout if timeout is None else timeout
        deadline = None if allowed is None else time.monotonic() + allowed
        run = partial(self._run, priority=priority, gone=gone)
        if found:
            seen = await run(IMAGE, found, deadline=deadline)
            place = partial(show, sequences, seen, self.recipe.config.image_token)
            sequences = await loop.run_in_executor(self._tokenising, place)
            deadline = None  # it has begun in time
            del found, seen, place  # pixels
        programs: dict[str, list[Sequence]] = {}
        for sequence in sequences:
            programs.setdefault(program_for(call.task, sequence), []).append(sequence)
        runs = [run(program, own, deadline=deadline) for program, own in programs.items()]
        # Nearly always one, which needs no task of its own.
        answers = [await runs[0]] if len(runs) == 1 else await asyncio.gather(*runs)
        return self._in_order(call, [answer for own in answers for answer in own])

    def _read(self, make: Callable[[], Call], inputs: int | None) -> tuple[Call, list[Sequence]]:
        """A call and its sequences, unless there is no room for them. Errors as `answer`."""
        call = make()
        self.limits.check_texts(len(call.requests) if inputs is None else inputs)
        self.limits.check_queue(self._scheduler.queued_tokens, 0, self._rate)
        return call, self._engine.read(call.requests, call.reading) if call.requests else []

    async def _run(
        self,
        program: str,
        sequences: list[Sequence],
        *,
        priority: int,
        deadline: float | None,
        gone: asyncio.Future[Any] | None,
    ) -> Answers:
        """The answers to sequences that one program computes. Errors as `answer`."""
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()

        def leave(_: asyncio.Future[Any]) -> None:
            settle(future, ApiError(499, "the client has gone"))

        work = Work(program, sequences, partial(self._mailbox.put, future), priority, deadline)
        self._scheduler.submit(work)
        if gone is not None:
            gone.add_done_callback(leave)
        answers: Answers | None = None
        try:
            answers = await future
        except DeadlineError:
            raise ApiError(504, "the request did not begin within the time that it had") from None
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
        """Compiles and runs every shape; ready from then on."""
        await asyncio.get_running_loop().run_in_executor(None, self.llm.warmup)
        self.ready = True

    def close(self) -> None:
        """Ends its threads. What still waits is told."""
        self._scheduler.close()
        self.metrics.close()
        self._tokenising.shutdown(wait=False, cancel_futures=True)
        self.llm.close()

    def _in_order(self, call: Call, answers: Answers) -> list[Answer]:
        merged = merge(answers, normalised=self.recipe.truncate_dim is None) if call.reading.in_parts else answers
        found: list[Answer | None] = [None] * len(call.requests)
        for sequence, rows in merged:
            answer = Answer(self._engine.wanted(call.task, sequence, rows), len(sequence.ids), sequence.truncated)
            for owner in sequence.owners:
                found[owner] = answer
        return [answer for answer in found if answer is not None]

    def _observe(self, seconds: float, tokens: int, area: int) -> None:
        self._rate += 0.1 * (tokens / max(seconds, 1e-6) - self._rate)
        self.metrics.batch(seconds, tokens, area)
