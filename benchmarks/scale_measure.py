"""What of `benchmarks.scale` any machine can measure: `python -m benchmarks.scale --measure [WHAT …]`.

Rates are of processor seconds, so that what else a machine does counts little; `driver` and `actors` start a local Ray.
"""

from __future__ import annotations

import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import lengths, machine
from jaxpool import LLM
from jaxpool.hub import MINILM, resolve
from jaxpool.integrations.tables import Embedding, add_answers
from jaxpool.runner import fill
from jaxpool.tokens import load_tokenizer

ROUNDS = 3
# One core: the tokenizers library takes all otherwise.
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def passages(count: int) -> list[str]:
    """Texts of docstrings' words, 250 tokens long on average, no two alike: parquet would store copies once."""
    made, _ = lengths.texts("passages", resolve(MINILM))
    chosen = random.Random(0)
    return [" ".join(chosen.sample(words, len(words))) for words in (made[i % len(made)].split() for i in range(count))]


def _seconds(work: Callable[[], object]) -> float:
    """Processor seconds, the median of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def tokenising() -> Iterator[str]:
    """Tokens a second of a core."""
    tokenizer, texts = load_tokenizer(resolve(MINILM)), passages(1600)
    tokens = sum(len(encoded.ids) for encoded in tokenizer.encode(texts, 512))
    seconds = _seconds(lambda: tokenizer.encode(texts, 512))
    yield f"tokenising: {tokens / seconds:,.0f} tokens/s a core ({tokens / len(texts):.0f} tokens a passage)"


class _Known:
    """A tokenizer's backend that has tokenised already: what is left is Python.

    Args:
        backend: the real one.
        texts: that it will be asked for.
    """

    def __init__(self, backend: Any, texts: Sequence[str]) -> None:
        self._backend = backend
        self._known = dict(zip(texts, backend.encode_batch_fast(texts, add_special_tokens=False), strict=True))

    def encode_batch_fast(self, texts: Sequence[str], **_: Any) -> list[Any]:
        return [self._known[text] for text in texts]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def engine() -> Iterator[str]:
    """Seconds a passage of an actor's Python, from table to batches and from rows to table; nothing is computed."""
    texts = passages(2048)
    table, work = pa.table({"text": texts}), Embedding("text", "embedding")
    with LLM(resolve(MINILM), data_parallel_size=1, max_num_batched_tokens=16_384) as llm:
        runner, tokenizer, width = llm.engine.runner, llm.engine.tokenizer, llm.recipe.embedding_size

        def submit(task: str, plan: Any, sequences: Any) -> Future[np.ndarray]:
            fill(plan, sequences)
            answer: Future[np.ndarray] = Future()
            answer.set_result(np.zeros((plan.shape.rows, plan.shape.places, width), np.float32))
            return answer

        runner.submit, runner.prepare, tokenizer._backend = submit, lambda *_: None, _Known(tokenizer._backend, texts)
        seconds = _seconds(lambda: add_answers(llm, work, table))
    yield f"engine: {seconds / len(texts) * 1e6:.0f} µs a passage"


def reading() -> Iterator[str]:
    """Passages and bytes a second that a core reads from parquet, and what they are in Arrow."""
    table = pa.table({"id": range(20_000), "text": passages(20_000)})
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(384 * len(table), np.float32)), 384)
    result = table.append_column("embedding", vectors)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "passages.parquet"
        pq.write_table(table, file)
        seconds = _seconds(lambda: pq.read_table(file, use_threads=False))
        stored = file.stat().st_size
    rows = len(table)
    yield f"reading: {rows / seconds:,.0f} passages/s a core, {stored / seconds / 1e6:,.0f} MB/s of the file"
    yield f"bytes a passage: {stored / rows:,.0f} in parquet, {table.nbytes / rows:,.0f} in Arrow"
    yield f"bytes a passage with a vector of 384: {result.nbytes / rows:,.0f} in Arrow"


@contextmanager
def _local_ray(**resources: float) -> Iterator[Any]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    import ray.data

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning"}
    ray.init(num_cpus=machine.cores(), resources=resources, object_store_memory=200 * 2**20, **quiet)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.wait_for_min_actors_s = 300  # else the first actor to be there works alone until the others are
        yield ray
    finally:
        ray.shutdown()


class Same:
    """An actor that does nothing."""

    def __call__(self, batch: Any) -> Any:
        return batch


def driver(few: int = 100, many: int = 500) -> Iterator[str]:
    """Seconds of the driver a task: reads and a pool of actors that do nothing, over few blocks and over many."""
    with _local_ray(TPU=1) as ray:

        def run(blocks: int) -> tuple[float, float]:
            # Ray reads in the actors themselves where they need no more than reading does; on a TPU host they do.
            needs = {"compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 0, "resources": {"TPU": 1}}
            ds = ray.data.range(blocks, override_num_blocks=blocks)
            start = time.perf_counter(), time.process_time()
            done = ds.map_batches(Same, batch_format="pyarrow", batch_size=None, **needs).materialize()
            assert done.num_blocks() == blocks
            return time.perf_counter() - start[0], time.process_time() - start[1]

        run(few)
        # What is done once cancels in the difference; a block is two tasks.
        both = [np.subtract(run(many), run(few)) / (2 * (many - few)) * 1e3 for _ in range(ROUNDS)]
    wall, cpu = np.median(both, axis=0)
    yield f"driver: {cpu:.1f} ms of its processor a task, {wall:.1f} ms of the clock, the tasks' own work included"


def actors(most: int | None = None) -> Iterator[str]:
    """Texts a second of 1 … `most` actors of one CPU, in rounds taken in turn, and the cores that they got."""
    counts = range(1, (most or machine.cores()) + 1)
    texts, _ = lengths.texts("short", resolve(MINILM))
    table = pa.table({"text": [f"{i} {text}" for i, text in enumerate(texts[:1920])]})
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    with _local_ray() as ray:
        for _ in range(ROUNDS):
            for count in counts:
                found[count].append(_steady(ray, table, count))
    yield "| actors | texts/s | cores that the actors got | texts per CPU second |\n|---|---|---|---|"
    for count, pairs in found.items():
        rates, cores = zip(*pairs, strict=True)
        columns = (rates, cores, [rate / core for rate, core in pairs])
        digits = zip(columns, (0, 2, 0), strict=True)
        cells = (f"{statistics.median(x):.{n}f} ({min(x):.{n}f} to {max(x):.{n}f})" for x, n in digits)
        yield f"| {count} | {' | '.join(cells)} |"


def _steady(ray: Any, table: Any, count: int, blocks: int = 24) -> tuple[float, float]:
    """Texts a second, and cores, from the fifth block that is there to the last but two."""
    from jaxpool.integrations.ray import embed_dataset

    parts = [table.slice(i * len(table) // blocks, len(table) // blocks) for i in range(blocks)]
    ds = embed_dataset(ray.data.from_arrow(parts), resolve(MINILM), batch_size=len(parts[0]), concurrency=count)
    marks, rows = [], 0
    for part in ds.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        rows += len(part)
        marks.append((time.perf_counter(), rows, _replicas_cpu()))
    (start, before, cpu), (end, after, more) = marks[4], marks[-3]
    return (after - before) / (end - start), (more - cpu) / (end - start)


def _replicas_cpu() -> float:
    """Processor seconds of all actors that hold a model."""
    import psutil

    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "Replica" in " ".join(process.cmdline()):
                total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue  # it has just ended
    return total


MEASUREMENTS: dict[str, Callable[[], Iterator[str]]] = {
    "tokenising": tokenising, "engine": engine, "reading": reading, "driver": driver, "actors": actors,
}  # fmt: skip


def main(names: Sequence[str]) -> None:
    """Prints what was measured.

    Args:
        names: of `MEASUREMENTS`; none: all.

    Raises:
        SystemExit: no such measurement.
    """
    if unknown := set(names) - set(MEASUREMENTS):
        raise SystemExit(f"--measure: {sorted(unknown)}, expected some of {list(MEASUREMENTS)}")
    where = f"{machine.describe()['cpu']}, {machine.cores()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{time.strftime('%Y-%m-%d')}, {where}", flush=True)
    for name in names or MEASUREMENTS:
        for line in MEASUREMENTS[name]():
            print(line, flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")
