"""Run by test_hosts.py as one of several processes with 2 simulated devices each, which work as one program.

python -m tests.several_hosts ADDRESS PROCESSES PROCESS SCENARIO MODEL OUT.npz
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing

import jax
import numpy as np
import pytest

import jaxpool
from jaxpool import LLM, HostError
from tests.tiny import SENTENCES

DEVICES = 2
# Process -> its texts: one has none, one has more than a window, the last has one.
WORDS = " ".join(SENTENCES).split()
MANY = [f"{i} " + " ".join(WORDS[i % 7 : i % 7 + 1 + i % 8])[:50] for i in range(100)]
TEXTS = {0: MANY, 1: [], 2: ["a stitch in time", "x", "a stitch in time"], 3: ["hello"]}
# Name -> how `PROCESSES · DEVICES` devices are shared out: data, model.
LAYOUTS = {
    "rows of its own": lambda devices: {"data_parallel_size": devices},
    "rows shared by all": lambda devices: {"data_parallel_size": 1, "tensor_parallel_size": devices},
    "rows shared by two": lambda devices: {"data_parallel_size": devices // 4, "tensor_parallel_size": 4},
    "weights shared out": lambda devices: {"data_parallel_size": devices, "fsdp": True},
}


def answers(model: str, me: int, processes: int) -> dict[str, np.ndarray]:
    """What this process gets under every layout, and what all get."""
    found = {}
    for name, layout in LAYOUTS.items():
        with LLM(model, dtype="float32", **layout(processes * DEVICES)) as llm:
            own = llm.encode(TEXTS[me], use_tqdm=False)
            rows = np.stack([o.outputs.data for o in own]) if own else np.empty((0, llm.recipe.width(llm.task)))
            compiled = llm.stats.compilations
            again = llm.encode(TEXTS[me], use_tqdm=False)
            assert llm.stats.compilations == compiled
            assert all((a.outputs.data == b.outputs.data).all() for a, b in zip(own, again, strict=True))
        found[name] = rows.astype(np.float32)
    return found | {"all": jaxpool.gather(found["rows of its own"])}


def errors(model: str, me: int, processes: int) -> dict[str, np.ndarray]:
    """Calls that end early in process 1, and one behind each that all answer."""
    with LLM(model, dtype="float32", data_parallel_size=processes * DEVICES) as llm:

        def together() -> None:
            assert llm.embed_array(["hello", "my name"] * (1 + me)).shape[0] == 2 + 2 * me

        together()
        ends(me, ValueError, lambda: llm.encode([None] if me == 1 else MANY, use_tqdm=False))
        together()
        # Read in another thread, while batches run.
        ends(me, ValueError, lambda: llm.encode([*MANY, "word " * 200] if me == 1 else MANY, use_tqdm=False))
        together()

        def stream() -> None:
            with closing(llm.embed_stream(MANY * 30)) as vectors:
                for number, _ in enumerate(vectors):
                    if me == 1 and number == 5:
                        raise KeyError("found what it looked for")

        ends(me, KeyError, stream, "not read to the end")
        together()
        with pytest.raises(HostError, match="has another call"):
            llm.encode("a", pooling_task="token_embed" if me == 1 else "embed", use_tqdm=False)
        together()
    return {}


def ends(me: int, error: type[Exception], call: Callable[[], object], told: str | None = None) -> None:
    """The call raises `error` in process 1, and in all others one that tells of it."""
    with pytest.raises(
        error if me == 1 else HostError, match="" if me == 1 else f"process 1: .*{told or error.__name__}"
    ):
        call()


def raises(model: str, me: int, processes: int) -> dict[str, np.ndarray]:
    """Process 1 fails in code of its own."""
    with LLM(model, dtype="float32", data_parallel_size=processes * DEVICES) as llm:
        llm.embed_array(["hello"])
        if me == 1:
            raise ZeroDivisionError("in the user's own code")
        llm.embed_array(["hello"])
    return {}


def killed(model: str, me: int, processes: int) -> dict[str, np.ndarray]:
    """Process 1 is killed while all share every layer."""
    with LLM(model, dtype="float32", tensor_parallel_size=processes * DEVICES, data_parallel_size=1) as llm:
        llm.embed_array(["hello"])
        if me == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        llm.embed_array(["hello"])
    return {}


def differs(model: str, me: int, processes: int) -> dict[str, np.ndarray]:
    """Process 1 asks for something else."""
    LLM(model, dtype="float32", data_parallel_size=processes * DEVICES, max_model_len=20 + me)
    return {}


SCENARIOS = {scenario.__name__: scenario for scenario in (answers, errors, raises, killed, differs)}


def main(address: str, processes: str, process: str, scenario: str, model: str, out: str) -> None:
    """One process's part."""
    jax.distributed.initialize(address, int(processes), int(process), heartbeat_timeout_seconds=10)
    np.savez(out, **SCENARIOS[scenario](model, int(process), int(processes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
