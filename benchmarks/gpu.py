"""jaxpool beside sentence-transformers on torch, on one GPU: same texts, rounds taken in turn, model FLOPs utilisation.

python -m benchmarks.gpu [--models …] [--tokens …] [--json FILE] [--smoke]

Every engine has a process of its own and runs alone (`workers.py`). Everything is in a round: texts to vectors on the
host, tokenizer included. `--smoke` runs all of it on a CPU with a tiny shape: those figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_device, gpu_tables, roofline
from benchmarks.gpu_device import BF16, FP16
from benchmarks.gpu_models import MODELS, SMOKE, directory, reads
from benchmarks.gpu_texts import texts
from benchmarks.machine import cores
from benchmarks.rounds import FEWEST, Comparison, Sample, say
from benchmarks.tables import OURS
from benchmarks.workers import SkippedError, Worker, WorkerError

FP32 = "float32"
# By its name in the tables, an engine's file and dtype.
ENGINES = {OURS: ("jaxpool", BF16), "torch bf16": ("torch_gpu", BF16), "torch fp16": ("torch_gpu", FP16)}
# Whose float32 vectors the others' are held to: the first of these that runs, and for how many texts.
REFERENCES = {"torch fp32": ("torch_gpu", FP32), "jaxpool fp32": ("jaxpool", FP32)}
REFERENCE_TEXTS = 64
TOKENS = (16, 128, 512, 2048)
# Tokens that there are texts of: more than a round of any GPU above takes in a few seconds.
MOST = 2**21
# For the workers: two of them share the GPU's memory, and one GPU is compared with one.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CUDA_VISIBLE_DEVICES": "0"}
# One stream, as a GPU has: half the programs to compile.
ON_CPU = {
    "JAX_PLATFORMS": "cpu",
    "JAXPOOL_BENCH_TORCH": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
}


class Rounds(Comparison):
    """A comparison whose probe is long enough for a GPU, which a few texts do not fill."""

    def _choose(self) -> None:
        rates: dict[str, float] = {}
        for name in self.workers:
            self._try(name, partial(self._keep_probe, name, rates))
        if rates:
            self.sample = self.sample.first(max(FEWEST, int(min(rates.values()) * self.seconds)))

    def _keep_probe(self, name: str, rates: dict[str, float]) -> None:
        rates[name] = self._probe(name)

    def _probe(self, name: str) -> float:
        """Texts a second, of so many that they take a quarter of a round."""
        count, whole = FEWEST, len(self.sample.texts)
        self._seconds(name, count)  # an engine's first texts take longer, and would end the search at once
        while self._seconds(name, count) < self.seconds / 4 and count < whole:
            count = min(4 * count, whole)
        return count / self._seconds(name, count)

    def _seconds(self, name: str, count: int) -> float:
        return self.workers[name].ask("encode", texts=self.sample.texts[:count])["seconds"]


class Bench:
    """One run: its settings, and the record that it writes."""

    def __init__(self, options: argparse.Namespace, device: Mapping[str, Any]) -> None:
        self.options, self.device = options, device
        self.record: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%dT%H:%M"),
            **device,
            "versions": {},
            "notes": [],
            "cells": [],
        }

    def run(self) -> None:
        """Measures every model at every length that it reads."""
        for model in self.options.models:
            path, longest = directory(model, self.options.cache), reads((MODELS | SMOKE)[model])
            wanted = [tokens for tokens in self.options.tokens if tokens <= longest]
            if len(wanted) < len(self.options.tokens):
                self._note(f"{model}: reads no more than {longest:,} tokens")
            samples = [self._sample(model, path, tokens) for tokens in wanted]
            references = self._references(model, path, samples)
            with ExitStack() as stack:
                started = {name: self._start(stack, model, path, name, *how) for name, how in ENGINES.items()}
                workers = {name: worker for name, worker in started.items() if worker}
                if set(workers) == {OURS}:
                    self._note(f"{model}: jaxpool alone, there is no torch to compare it with")
                for sample in samples if workers else ():
                    self._compare(sample, workers, path, references)

    def _sample(self, model: str, path: Path, tokens: int) -> Sample:
        made = texts(path, tokens, max(FEWEST, self.options.most // tokens))
        return Sample(model, str(tokens), made, [tokens] * len(made))

    def _references(self, model: str, path: Path, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Vectors in float32 of each length's first texts, on the same device."""
        for name, how in REFERENCES.items():
            with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
                if not (worker := self._start(stack, model, path, name, *how)):
                    continue
                files = {sample.length: Path(scratch) / f"{sample.length}.npy" for sample in samples}
                try:
                    for sample in samples:
                        asked = sample.first(REFERENCE_TEXTS).texts
                        worker.ask("encode", texts=asked, save=str(files[sample.length]))
                except WorkerError as error:
                    self._note(f"{model}, {name}: {error}")
                    continue
                self._note(f"{model}: cosines are to {name}")
                return {length: np.load(file) for length, file in files.items()}
        return {}

    def _start(self, stack: ExitStack, model: str, path: Path, name: str, engine: str, dtype: str) -> Worker | None:
        """A loaded worker, stopped; None where it cannot run, and the page says why."""
        cache = self.options.cache
        worker = Worker(engine, sys.executable, cache / "logs" / f"{name.replace(' ', '-')}-{model}.log")
        stack.callback(worker.end)
        try:
            say(f"{model}: {name}")
            answer = worker.ask("load", model=str(path), dtype=dtype, threads=cores(), cache=str(cache))
        except (SkippedError, WorkerError) as reason:
            self._note(f"{model}, {name}: {reason}")
            return None
        self.record["versions"] |= answer["versions"]
        return worker

    def _compare(
        self, sample: Sample, workers: dict[str, Worker], path: Path, references: Mapping[str, np.ndarray]
    ) -> None:
        # The smoke's figures say nothing, so it does not wait until they would.
        patience = 0 if self.options.smoke else None
        comparison = Rounds(sample, "16 bits", workers, self.options.seconds, patience)
        with tempfile.TemporaryDirectory() as scratch:
            comparison.run(self.options.rounds, roofline.read_config(path), Path(scratch))
        if sample.length in references:
            comparison.compare(references[sample.length])
        for name, cell in comparison.cells.items():
            dtype = ENGINES[name][1]
            self._put({"model": sample.model, "length": sample.length, "engine": name, "dtype": dtype, **cell})

    def _put(self, cell: dict[str, Any]) -> None:
        """Keeps a cell, with its share of the device's peak where that is known."""
        peak = self.options.peak or gpu_device.peak(self.device["device"], cell["dtype"])
        if peak and "rate" in cell:
            cell |= {"peak": peak, "mfu": cell["flops"] * cell["rate"] / peak}
        self.record["cells"].append(cell)
        self._write()

    def _note(self, text: str) -> None:
        say(text)
        self.record["notes"].append(text)
        self._write()

    def _write(self) -> None:
        """After each cell, so that a run can be stopped anywhere."""
        self.options.json.parent.mkdir(parents=True, exist_ok=True)
        self.options.json.write_text(json.dumps(self.record, indent=1) + "\n")


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS), help="of a text (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long the slowest engine's round takes")
    parser.add_argument("--peak", type=float, help="the device's dense FLOP/s in 16 bits, where it is not known")
    parser.add_argument("--json", type=Path, default=Path("docs/gpu.json"), help="where figures are kept")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/jaxpool-bench").expanduser())
    parser.add_argument("--smoke", action="store_true", help="on a CPU, with a tiny shape, in seconds")
    options = parser.parse_args()
    options.cache, options.most = options.cache.absolute(), MOST
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if options.smoke:
        os.environ |= ON_CPU
        options.models, options.tokens, options.most, options.seconds = list(SMOKE), [16, 64, 512], 4096, 0.05
        if options.json == parser.get_default("json"):
            options.json = options.cache / "gpu-smoke.json"
    device = gpu_device.describe()
    if device["platform"] != "gpu" and not options.smoke:
        print(f"JAX computes on {device['device']}, which is no GPU; --smoke runs on a CPU", file=sys.stderr)
        return 1
    bench = Bench(options, device)
    # Workers are in sessions of their own, and would stay, stopped, with the GPU's memory.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        bench.run()
    except KeyboardInterrupt:
        say("stopped; what was measured is kept")
    print("\n".join(gpu_tables.lines(bench.record)))
    return int(not any("rate" in cell for cell in bench.record["cells"]))


if __name__ == "__main__":
    raise SystemExit(main())
