"""What processes tell each other, beside the devices: through the key-value store of `jax.distributed`'s coordinator.

Not through the devices: a collective waits for ever for a process that has failed, and a key can be waited for with an
eye on the others.
"""

from __future__ import annotations

import atexit
import itertools
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")

# Seconds between two looks at whether another process has failed.
PATIENCE = 1.0
_LEFT = "jaxpool/left"
_engines = itertools.count()


class HostError(RuntimeError):
    """Another process of the program failed, has ended, or was asked for something else."""


class Messages:
    """The talk of one engine's processes: numbered calls, numbered rounds in each, one message a process and round.

    Args:
        processes: all that take part; every one of them makes its engines in the same order.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self.processes = tuple(processes)
        self._client = _client()
        self._engine = f"jaxpool/engine-{next(_engines)}"
        self.calls, self._round = 0, 0
        _announce_leaving(self._client)

    @property
    def _call(self) -> str:
        return f"{self._engine}/call-{self.calls}"

    def begin(self) -> None:
        """The next call starts."""
        self.calls, self._round = self.calls + 1, 0

    def next_round(self) -> None:
        """The next round of the call starts."""
        self._round += 1

    def exchange(self, topic: str, own: bytes, members: Sequence[int]) -> list[bytes]:
        """What every member says in this round, in their order.

        The first of them collects, so that n processes ask the coordinator 2 n times and not n².

        Raises:
            HostError: one of them has failed in this call, or has ended.
        """
        me, leader = jax.process_index(), members[0]
        here = f"{self._call}/{self._round}/{topic}-{leader}"
        if me != leader:
            self._client.key_value_set_bytes(f"{here}/{me}", own)
            return _unpack(self._wait(f"{here}/all"))
        said = [own if process == me else self._wait(f"{here}/{process}") for process in members]
        self._client.key_value_set_bytes(f"{here}/all", _pack(said))
        # All of them have spoken, so none still reads what was said before.
        if self._round:
            self._client.key_value_delete(f"{self._call}/{self._round - 1}/{topic}-{leader}/")
        elif self.calls and members == self.processes:
            self._client.key_value_delete(f"{self._engine}/call-{self.calls - 1}/")
        return said

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process's call has ended."""
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        said = f"process {jax.process_index()}: {what}"
        self._client.key_value_set_bytes(f"{self._call}/error", said.encode(), True)

    def next(self, queue: SimpleQueue[T]) -> T:
        """The next item of a queue.

        Raises:
            HostError: another process has failed in this call.
        """
        while True:
            with suppress(Empty):
                return queue.get(timeout=PATIENCE)
            if failure := self._failure():
                raise failure

    def _wait(self, key: str) -> bytes:
        while True:
            said = self._said(key, PATIENCE)
            if said is None and (failure := self._failure() or self._departure()):
                # Who leaves in good order has said everything before.
                said = self._said(key)
                if said is None:
                    raise failure
            if said is not None:
                return said

    def _failure(self) -> HostError | None:
        error = self._said(f"{self._call}/error")
        return HostError(f"another process failed, so this call ends here too: {error.decode()}") if error else None

    def _departure(self) -> HostError | None:
        for process in self.processes:
            if process != jax.process_index() and (last_words := self._said(f"{_LEFT}/{process}")):
                # It may have ended only because another did: hand on what it was told.
                _last_words[:] = [last_words]
                return HostError(last_words.decode())
        return None

    def _said(self, key: str, patience: float = 0.0) -> bytes | None:
        """What stands under a key; None if nothing does within so many seconds."""
        try:
            if patience:
                return self._client.blocking_key_value_get_bytes(key, int(1000 * patience))
            return self._client.key_value_try_get_bytes(key)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
                return None
            raise HostError(f"the coordinator does not answer any more: {error}") from error


def _client() -> Any:
    # JAX has no public name for it; Orbax and others take it from here too.
    from jax._src.distributed import global_state

    if global_state.client is None:
        raise RuntimeError("a mesh of several processes needs jax.distributed.initialize() first")
    return global_state.client


_announced: list[Any] = []
_last_words: list[bytes] = []


def _announce_leaving(client: Any) -> None:
    """Once a process: the others are told when it ends, also behind an error that nobody caught."""
    if client in _announced:
        return
    _announced.append(client)

    def leave() -> None:
        me = jax.process_index()
        last_words = _last_words or [f"process {me} has ended while others still waited for it".encode()]
        with suppress(jax.errors.JaxRuntimeError):  # the coordinator may have ended before
            client.key_value_set_bytes(f"{_LEFT}/{me}", last_words[0], True)

    atexit.register(leave)  # runs before JAX's own, which waits for the others


def _pack(parts: Sequence[bytes]) -> bytes:
    sizes = np.array([len(parts), *map(len, parts)], np.int64)
    return b"".join([sizes.tobytes(), *parts])


def _unpack(packed: bytes) -> list[bytes]:
    count = int(np.frombuffer(packed, np.int64, 1)[0])
    ends = 8 * (1 + count) + np.cumsum(np.frombuffer(packed, np.int64, count, 8))
    starts = [8 * (1 + count), *ends[:-1]]
    return [packed[start:end] for start, end in zip(starts, ends, strict=True)]
