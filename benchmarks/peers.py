"""jaxpool beside its peers: same texts, same cores, rounds taken in turn; `make bench-all`.

Every engine has a process of its own and runs alone (`workers.py`). Each cell (model, length, dtype, engine) is kept
in a JSON file with a mark of the code that it is of; a later run measures what is not there of today's code.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from benchmarks import code, machine, roofline, tables
from benchmarks.lengths import LENGTHS, texts
from benchmarks.results import Cell, Results
from benchmarks.rounds import BATCHES, FEWEST, Comparison, Sample, probe, say
from benchmarks.shapes import MODELS, directory
from benchmarks.tables import OURS, OWN_BF16, PRODUCTS, YARDSTICKS
from benchmarks.workers import COMPILED, EAGER, VLLM, SkippedError, Worker, WorkerError, interpreter

FP32, BF16, INT8 = DTYPES = ("float32", "bfloat16", "int8")
ENGINES = {
    OURS: DTYPES,
    "sentence_transformers": (FP32, BF16),
    "onnxruntime": (FP32, INT8),
    **dict.fromkeys(VLLM, (FP32, BF16)),
}
# Which engine's file measures a yardstick, and in which dtype, where that is not the cell's.
STANDS_FOR = {OWN_BF16: (OURS, BF16)}
# Whose float32 vectors all others are compared with, and for how many texts at most.
REFERENCE, REFERENCE_TEXTS = "sentence_transformers", 128
ORDER = {"models": list(MODELS), "lengths": list(LENGTHS), "dtypes": list(DTYPES), "engines": list(ENGINES)}
SECONDS = f"about how long the slowest engine's round takes, unless {BATCHES} batches a stream take it longer"
Due = dict[str, list[str]]


class Bench:
    """One run: its settings, its file of results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.results = options, Results(options.json, options.keep_old)
        self.machine, self.code = machine.describe(), code.mark()

    def run(self) -> None:
        """Measures every cell that is wanted and not there."""
        for model in self.options.models:
            for dtype in self.options.dtypes:
                missing = {length: self._missing(model, length, dtype) for length in self.options.lengths}
                if any(missing.values()):
                    self._group(model, dtype, {length: engines for length, engines in missing.items() if engines})

    def _missing(self, model: str, length: str, dtype: str) -> list[str]:
        engines = [engine for engine in self.options.engines if dtype in ENGINES[engine]]
        again = self.options.again
        return [e for e in engines if again or not self.results.done(self._cell(model, length, dtype, e))]

    def _group(self, model: str, dtype: str, missing: Due) -> None:
        """A model in one dtype: its engines are loaded together, then every length is measured."""
        path = directory(model, self.options.cache)
        samples = [sample for length in missing for sample in self._samples(model, path, length)]
        if not samples:
            return
        references = self._references(model, samples)
        config = roofline.read_config(path)
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            versions: dict[str, dict[str, str]] = {}
            for engine in self._due(dtype, missing):
                alone = OURS not in workers and not any(engine in own for own in missing.values())
                if alone and engine not in (OURS, *YARDSTICKS):
                    continue  # it was to be measured again only as jaxpool's company
                try:
                    workers[engine], versions[engine] = self._start(stack, engine, model, dtype)
                except SkippedError as reason:
                    say(f"{model}, {dtype}, {engine}: skipped, {reason}")
                except WorkerError as error:
                    say(f"{model}, {dtype}, {engine}: {error}")
                    for sample in samples:
                        self.results.put(self._cell(model, sample.length, dtype, engine, error=str(error)))
            for sample in samples:
                if not set(missing[sample.length]) & workers.keys():
                    continue
                wanted = self._company(missing[sample.length], list(workers))
                comparison = Comparison(sample, dtype, {e: workers[e] for e in wanted}, self.options.seconds)
                with tempfile.TemporaryDirectory() as scratch:
                    comparison.run(self.options.rounds, config, Path(scratch))
                if sample.length in references:
                    comparison.compare(references[sample.length])
                for engine, cell in comparison.cells.items():
                    more = {"versions": versions[engine], **cell}
                    self.results.put(self._cell(model, sample.length, dtype, engine, **more))

    def _due(self, dtype: str, missing: Due) -> list[str]:
        engines = [engine for engine in self.options.engines if dtype in ENGINES[engine]]
        wanted = {engine for own in missing.values() for engine in self._company(own, engines)}
        own = [OWN_BF16] if dtype == INT8 and OURS in wanted else []
        return [*(engine for engine in engines if engine in wanted), *own, *PRODUCTS]

    def _company(self, missing: Sequence[str], engines: Sequence[str]) -> list[str]:
        """Who runs: what has no cell, with jaxpool as the yardstick; everyone where jaxpool itself has none."""
        if OURS in missing and OURS in engines:
            return list(engines)
        return [engine for engine in engines if engine in missing or engine in (OURS, *YARDSTICKS)]

    def _samples(self, model: str, path: Path, length: str) -> Iterator[Sample]:
        limit = json.loads((path / "sentence_bert_config.json").read_text())["max_seq_length"]
        made, tokens = texts(length, path)
        if max(tokens) > limit:
            say(f"{model}, {length}: left out, it reads no more than {limit} tokens")
            return
        yield Sample(model, length, made, tokens).first(self.options.texts)

    def _start(self, stack: ExitStack, engine: str, model: str, dtype: str) -> tuple[Worker, dict[str, str]]:
        """A loaded worker, stopped, with its packages' versions."""
        cache = self.options.cache
        log = cache / "logs" / f"{engine}-{model}-{dtype}.log"
        file, own_dtype = STANDS_FOR.get(engine, (engine, dtype))
        worker = Worker(file, interpreter(file, cache), log)
        stack.callback(worker.end)
        asked = {"dtype": own_dtype, "threads": self.machine["cores"], "cache": str(cache / "onnx" / model)}
        return worker, worker.ask("load", model=str(directory(model, cache)), **asked)["versions"]

    def _references(self, model: str, samples: list[Sample]) -> dict[str, np.ndarray]:
        """sentence-transformers' float32 vectors of each sample's first texts, kept in the cache."""
        folder = self.options.cache / "references"
        folder.mkdir(parents=True, exist_ok=True)
        # The texts are the standard library's: of another Python's, other vectors. And `--texts` may leave but a few.
        marks = {sample.length: crc32("\n".join(sample.texts[:REFERENCE_TEXTS]).encode()) for sample in samples}
        files = {length: folder / f"{model}-{length}-{mark:08x}.npy" for length, mark in marks.items()}
        missing = [sample for sample in samples if not files[sample.length].exists()]
        with ExitStack() as stack:
            try:
                worker = self._start(stack, REFERENCE, model, FP32)[0] if missing else None
                for sample in missing:
                    count = int(4 * self.options.seconds * probe(worker, sample, self.options.seconds))
                    part = sample.first(min(REFERENCE_TEXTS, max(FEWEST, count)))
                    worker.ask("encode", texts=part.texts, save=str(files[sample.length]))
            except WorkerError as error:
                say(f"no reference: {error}")
        return {length: np.load(file) for length, file in files.items() if file.exists()}

    def _cell(self, model: str, length: str, dtype: str, engine: str, **more: Any) -> Cell:
        key = {"model": model, "length": length, "dtype": dtype, "engine": engine}
        return {**key, "date": time.strftime("%Y-%m-%dT%H:%M"), "machine": self.machine, "code": self.code, **more}


def main() -> None:
    """Measures what is missing, then prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    for name, choices in ORDER.items():
        usual = [choice for choice in choices if choice != COMPILED]
        parser.add_argument(f"--{name}", nargs="+", choices=usual, default=usual)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help=SECONDS)
    parser.add_argument("--texts", type=int, default=None, help="at most so many a round")
    parser.add_argument("--json", type=Path, default=Path("docs/peers.json"), help="where cells are kept")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/jaxpool-bench").expanduser())
    parser.add_argument("--again", action="store_true", help="measure cells that are there, too")
    parser.add_argument("--keep-old", action="store_true", help="leave cells of other code than now as they are")
    parser.add_argument("--vllm-compile", action="store_true", help="vLLM without enforce_eager, as it is by default")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    options = parser.parse_args()
    options.cache = options.cache.absolute()
    if options.vllm_compile:
        options.engines = [COMPILED if engine == EAGER else engine for engine in options.engines]
    bench = Bench(options)
    if not options.table:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            bench.run()
        except KeyboardInterrupt:
            sys.exit("stopped; what was measured is kept")
    print("\n".join(tables.lines(bench.results, ORDER)))


if __name__ == "__main__":
    main()
