"""Which batches are run, in which order: one process's own plans, or those that all processes of a mesh agree on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpool.batch import Sequence
from jaxpool.batching import Plan, Shape
from jaxpool.hosts import tokens
from jaxpool.hosts.messages import HostError, Messages
from jaxpool.hosts.rows import Groups, row_groups

T = TypeVar("T")
Window = list[Sequence]


class Schedule(Protocol):
    """What `pipeline.execute` asks on its way.

    Attributes:
        binding: whether a batch that was planned has to be run, whatever happens.
    """

    binding: bool

    def call(self) -> AbstractContextManager[None]:
        """Around everything that a user's call does, `run` included."""

    def run(self, task: str) -> AbstractContextManager[None]:
        """Around the batches of a call."""

    def windows(self, tokenised: Iterable[Window], total: int | None) -> Iterator[tuple[Window, bool]]:
        """(sequences to plan together, whether they are the last)."""

    def agree(self, plans: list[Plan]) -> list[Plan]:
        """The plans of a window, as they are to be run."""

    def next(self, done: SimpleQueue[T]) -> T:
        """Waits for a batch that is done."""


def make_schedule(mesh: Mesh, described: Mapping[str, Any]) -> Schedule:
    """For the engine of a mesh.

    Args:
        mesh: of its replica (of the first, where there are several).
        described: what has to be the same in all processes.

    Raises:
        HostError: it is not, or another process failed meanwhile.
        ValueError: as `rows.row_groups`.
    """
    return Together(row_groups(mesh), described) if mesh.is_multi_process else Alone()


class Alone:
    """A process by itself."""

    binding = False

    def call(self) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def run(self, task: str) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def windows(self, tokenised: Iterable[Window], total: int | None) -> Iterator[tuple[Window, bool]]:
        """Its own; the last is known beforehand where the number of requests is."""
        seen, last = 0, False
        for window in tokenised:
            seen += sum(len(s.owners) for s in window if s.part is None or s.part.number == 0)
            last = total is not None and seen >= total
            yield window, last
        if not last:
            yield [], True

    def agree(self, plans: list[Plan]) -> list[Plan]:
        """Its own."""
        return plans

    def next(self, done: SimpleQueue[T]) -> T:
        """The queue's."""
        return done.get()


class Together:
    """Processes that run every batch together, each group of them with sequences of its own in its own rows.

    Once all have handed in a window's plans, the schedule is every shape as often as the group that needs it most; a
    group with fewer runs empty batches. Processes that share rows plan their sequences together, so each of them gets
    those of the others.

    Args:
        groups: of processes that hold the same rows.
        described: what has to be the same in all processes.

    Raises:
        HostError: it is not, or another process failed meanwhile.
    """

    binding = True

    def __init__(self, groups: Groups, described: Mapping[str, Any]) -> None:
        processes = sorted(process for group in groups for process in group)
        self._messages = Messages(processes)
        self._groups = groups
        self._own = next(group for group in groups if _me() in group)
        self._running = False
        self._same("engine", described)

    @contextmanager
    def call(self) -> Iterator[None]:
        """An error before the first batch ends the call in all processes."""
        before = self._messages.calls
        try:
            yield
        except HostError:
            raise
        except BaseException as error:
            if self._messages.calls == before:
                self._messages.begin()
                self._messages.fail(error)
            raise

    @contextmanager
    def run(self, task: str) -> Iterator[None]:
        """An error, or a reader who stops, ends the call in all processes."""
        if self._running:
            raise RuntimeError("one call at a time where several processes work together: they need the same order")
        self._running = True
        self._messages.begin()
        try:
            self._same("call", {"task": task})
            yield
        except HostError:
            raise
        except GeneratorExit:
            self._messages.fail(RuntimeError("its answers were not read to the end"))
            raise
        except BaseException as error:
            self._messages.fail(error)
            raise
        finally:
            self._running = False

    def windows(self, tokenised: Iterable[Window], total: int | None) -> Iterator[tuple[Window, bool]]:
        """Those of the group, until no process has any more."""
        iterator = iter(tokenised)
        last = False
        while not last:
            window = next(iterator, None)
            self._messages.next_round()
            own = tokens.pack(window or []) if len(self._own) > 1 else b""
            done = self._messages.exchange("done", bytes([window is None]), self._messages.processes)
            last = all(map(any, done))
            window = window or []
            if len(self._own) > 1 and not last:
                said = self._messages.exchange("tokens", own, self._own)
                windows = zip(self._own, said, strict=True)
                window = [s for p, packed in windows for s in (window if p == _me() else tokens.unpack(packed))]
            yield window, last

    def agree(self, plans: list[Plan]) -> list[Plan]:
        """Every shape as often as a group needs it, largest first."""
        if len(self._groups) == 1:
            return plans  # all planned the same sequences
        counts = Counter(plan.shape for plan in plans)
        own = json.dumps([[*_sizes(shape), count] for shape, count in counts.items()]).encode()
        most: Counter[Shape] = Counter()
        for said in self._messages.exchange("plans", own, self._messages.processes):
            most |= Counter({Shape(*sizes): count for *sizes, count in json.loads(said)})
        agreed = []
        for shape in sorted(most, reverse=True):
            mine = [plan for plan in plans if plan.shape == shape]
            agreed += mine + [_empty(shape)] * (most[shape] - len(mine))
        return agreed

    def next(self, done: SimpleQueue[T]) -> T:
        """The queue's, unless another process fails meanwhile."""
        return self._messages.next(done)

    def _same(self, topic: str, own: Mapping[str, Any]) -> None:
        said = self._messages.exchange(topic, json.dumps(own).encode(), self._messages.processes)
        for process, theirs in zip(self._messages.processes, map(json.loads, said), strict=True):
            if differing := [name for name in own if theirs.get(name) != own[name]]:
                differences = "; ".join(f"{name}: {theirs.get(name)} there, {own[name]} here" for name in differing)
                raise HostError(f"process {process} has another {topic} than process {_me()}: {differences}")


def _me() -> int:
    return jax.process_index()


def _sizes(shape: Shape) -> Iterator[int]:
    yield from (shape.tokens, shape.rows, shape.places)


def _empty(shape: Shape) -> Plan:
    return Plan(shape, np.full((shape.rows, shape.places), -1, np.int32))
