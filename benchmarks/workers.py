"""Engines in processes of their own, of which one runs at a time: the others are stopped by signal meanwhile.

A process group is stopped as a whole: vLLM has children, and its engine spins while it waits.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.venvs import preloaded, vllm_python

ROOT = Path(__file__).parents[1]
# vLLM without `--vllm-compile`, and with it; in an environment of its own.
VLLM = EAGER, COMPILED = ("vllm", "vllm_compiled")
# No answer is waited for longer than this: a load with its compilations, or a round.
PATIENCE = 1800


class SkippedError(Exception):
    """The engine has not learnt this yet: no cell at all."""


class WorkerError(Exception):
    """What an engine died of: one line."""


class Worker:
    """One engine's process group, stopped except while it answers."""

    def __init__(self, engine: str, python: Path | str, log: Path) -> None:
        more = {"LD_PRELOAD": preloaded(Path(python))} if engine in VLLM else {}
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.ended = log, False
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [str(python), "-m", "benchmarks.worker", engine],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "true", "PYTHONUNBUFFERED": "1"} | more,
            )

    @property
    def group(self) -> int:
        """Its process group's number."""
        return self.process.pid

    def ask(self, what: str, **values: Any) -> dict[str, Any]:
        """Lets the group run, asks, and stops it again.

        Raises:
            SkippedError: it cannot do this yet.
            WorkerError: it failed, or died.
        """
        self._signal(signal.SIGCONT)
        try:
            answer = self._answer(f"{what} {json.dumps(values)}\n".encode())
        finally:
            self._signal(signal.SIGSTOP)
        if "skip" in answer:
            raise SkippedError(answer["skip"])
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def end(self) -> None:
        """Ends the whole group, stopped or not. Idempotent."""
        if self.ended:
            return
        self.ended = True
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        self._signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        if not ready:
            raise WorkerError(f"no answer within {PATIENCE} s")
        answer = self.process.stdout.readline()
        if not answer:
            raise WorkerError(self._last_words())
        return json.loads(answer)

    def _last_words(self) -> str:
        code = self.process.wait()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line] or lines or [""]
        return f"ended with {code}: {errors[-1].strip()[:200]}"

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def interpreter(engine: str, cache: Path) -> Path | str:
    """The Python that an engine runs in."""
    if engine not in VLLM:
        return sys.executable
    try:
        return vllm_python(cache)
    except (RuntimeError, OSError) as error:
        raise WorkerError(f"cannot be installed: {error}") from error
