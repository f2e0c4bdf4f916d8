"""What the host does beside the device, stage by stage: `python -m benchmarks.host [--dtype bfloat16]`.

A call is as fast as the slowest of the threads that work on it side by side (`jaxpool/pipeline.py`): some tokenise, the
caller's plans batches, fills and unpacks them, each stream's starts programs and copies back. Here the engine's own
functions for these run one after another over one window of texts, nothing else meanwhile; all streams at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np

from benchmarks.lengths import LENGTHS, texts
from jaxpool import LLM
from jaxpool.batch import Inputs
from jaxpool.batching import Plan, Shape, balance, plan
from jaxpool.hub import MINILM, resolve
from jaxpool.pipeline import WINDOW, unpack
from jaxpool.prompts import parse_prompts
from jaxpool.runner import Replica, fill
from jaxpool.tasks import EMBED

T = TypeVar("T")

TOKENISING, CALLER, STREAMS = "the tokenising", "the caller's", "the streams'"
DEVICE = "device"
# Each stage, and whose threads do it.
STAGES: Mapping[str, str] = {
    "parsing": CALLER,
    "tokenising": TOKENISING,
    "planning": CALLER,
    "packing": CALLER,
    "upload and call": STREAMS,
    DEVICE: STREAMS,
    "copying back": STREAMS,
    "building outputs": CALLER,
}


class Spent(NamedTuple):
    """Seconds by the clock, of one of the streams on average where they work side by side; and seconds of all cores."""

    wall: float
    cores: float


Stages = dict[str, Spent]


class Clock:
    """Times stages, and adds up what comes again.

    Args:
        cores: what counts the cores' seconds: of this process, or of this thread.
    """

    def __init__(self, cores: Callable[[], float]) -> None:
        self._cores = cores
        self.spent: Stages = {}

    def __call__(self, stage: str, work: Callable[..., T], *arguments: Any) -> T:
        """`work(*arguments)`, as a part of that stage."""
        wall, cores = time.perf_counter(), self._cores()
        answer = work(*arguments)
        before = self.spent.get(stage, Spent(0, 0))
        self.spent[stage] = Spent(before.wall + time.perf_counter() - wall, before.cores + self._cores() - cores)
        return answer


def stages(llm: LLM, asked: Sequence[str]) -> tuple[Stages, np.ndarray]:
    """One pass over a window of texts: what each stage took, and the vectors [n, D] that `LLM.embed_array` gives."""
    engine, runner = llm.engine, llm.engine.runner
    ladder, program = runner.ladder_of(EMBED), runner.program(EMBED)
    reading = llm.calls.cutting(llm.calls.default_prompt())
    (own,) = llm.calls.options(None, 1, EMBED)
    clock = Clock(time.process_time)

    def planned() -> list[Plan]:
        return balance(plan(lengths, ladder)[0], lengths, ladder, len(runner.replicas))

    def built() -> np.ndarray:
        vectors = np.empty((len(asked), own.dimensions), np.float32)
        for batch, array in zip(plans, arrays, strict=True):
            for sequence, rows in unpack(batch, sequences, array, program.per_token):
                for owner in sequence.owners:
                    vectors[owner] = engine.wanted(EMBED, sequence, rows)
        return vectors

    requests = [(prompt, own) for prompt in clock("parsing", parse_prompts, list(asked))]
    sequences = clock("tokenising", engine.read, requests, reading)
    lengths = [len(sequence.ids) for sequence in sequences]
    plans = clock("planning", planned)
    inputs = clock("packing", lambda: [fill(batch, sequences, program) for batch in plans])
    computing, arrays = _computed(runner.replicas, [batch.shape for batch in plans], inputs)
    vectors = clock("building outputs", built)
    return clock.spent | computing, vectors


def _computed(
    replicas: Sequence[Replica], shapes: Sequence[Shape], inputs: Sequence[Inputs]
) -> tuple[Stages, list[np.ndarray]]:
    """Batches through all streams, each taking the next one as it falls free."""
    waiting: SimpleQueue[int | None] = SimpleQueue()
    for number in (*range(len(shapes)), *[None] * len(replicas)):
        waiting.put(number)
    arrays: dict[int, np.ndarray] = {}

    def stream(replica: Replica) -> Stages:
        clock = Clock(time.thread_time)
        for number in iter(waiting.get, None):
            output = clock("upload and call", replica.dispatch, EMBED, shapes[number], inputs[number])
            clock(DEVICE, output.block_until_ready)
            arrays[number] = clock("copying back", replica.download, output)
        return clock.spent

    start = time.process_time()
    with ThreadPoolExecutor(len(replicas)) as pool:
        streams = list(pool.map(stream, replicas))
    rest = time.process_time() - start  # what is no stream's own thread's is XLA's
    spent: Stages = {}
    for stage in ("upload and call", "copying back", DEVICE):
        own = [each[stage] for each in streams if stage in each]
        cores = rest if stage == DEVICE else sum(each.cores for each in own)
        spent[stage] = Spent(sum(each.wall for each in own) / len(replicas), cores)
        rest -= cores
    return spent, [arrays[number] for number in range(len(shapes))]


def threads(spent: Mapping[str, Spent]) -> Counter[str]:
    """Seconds by the clock of those that work side by side."""
    summed: Counter[str] = Counter()
    for stage, whose in STAGES.items():
        summed[whose] += spent[stage].wall
    return summed


def bottleneck(spent: Mapping[str, Spent]) -> str:
    """Which threads are the slowest, for which of their stages, and whether that is the host's."""
    ((slowest, _),) = threads(spent).most_common(1)
    stage = max((stage for stage, whose in STAGES.items() if whose == slowest), key=lambda stage: spent[stage].wall)
    verdict = "no stage of the host is a bottleneck" if stage == DEVICE else "the host is the bottleneck"
    return f"{verdict}: {slowest} threads are the slowest, and {stage} takes the most of their time"


def lines(spent: Mapping[str, Spent], number: int, together: float) -> Iterator[str]:
    """The stages of so many texts as a table in ms per 1,000, then the threads', and the bottleneck.

    Args:
        spent: every stage.
        number: of texts.
        together: seconds of a call that does all of it side by side.
    """
    each = 1e6 / number
    cores = sum(stage.cores for stage in spent.values())
    yield "| stage | threads | ms | ms of all cores | share of the cores |\n|---|---|---|---|---|"
    for stage, whose in STAGES.items():
        wall, own = spent[stage]
        yield f"| {stage} | {whose} | {wall * each:.1f} | {own * each:.1f} | {own / cores:.1%} |"
    yield ""
    yield from (f"- {whose} threads: {wall * each:.1f} ms" for whose, wall in threads(spent).most_common())
    yield f"- all of it side by side (`embed_array`): {together * each:.1f} ms"
    yield f"- {bottleneck(spent)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--length", default="short", choices=LENGTHS)
    parser.add_argument("--texts", type=int, default=1000, help=f"a pass; at most {WINDOW}, which are planned together")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization")
    options = parser.parse_args(arguments)
    model = resolve(options.model)
    made, tokens = texts(options.length, Path(model))
    asked = made[: min(options.texts, WINDOW)]
    with LLM(str(model), dtype=options.dtype, quantization=options.quantization) as llm:
        llm.warmup()
        llm.embed_array(asked)
        passes, together = [], []
        for _ in range(options.rounds):
            passes.append(stages(llm, asked)[0])
            start = time.perf_counter()
            llm.embed_array(asked)
            together.append(time.perf_counter() - start)
    medians = {
        stage: Spent(*(statistics.median(getattr(one[stage], field) for one in passes) for field in Spent._fields))
        for stage in STAGES
    }
    mean = statistics.mean(tokens[: len(asked)])
    print(f"per 1,000 texts of {mean:.0f} tokens, medians of {options.rounds} passes over {len(asked)}\n")
    print("\n".join(lines(medians, len(asked), statistics.median(together))))


if __name__ == "__main__":
    main()
