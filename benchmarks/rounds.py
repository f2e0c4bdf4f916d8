"""One comparison: the same texts through every engine, in rounds, one engine at a time."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import roofline
from benchmarks.machine import cores
from benchmarks.quiet import undisturbed
from benchmarks.results import Cell
from benchmarks.tables import OURS, PRODUCTS
from benchmarks.workers import Worker, WorkerError
from jaxpool.sharding import MAX_CPU_STREAMS

# Of a probe or a reference, the fewest texts that say anything.
FEWEST = 4
# A round has texts for so many batches of each of jaxpool's streams: fewer are shared out unevenly, at its cost alone.
# A peer that takes so many times `seconds` for them, and four times as long as the fastest, is left out.
BATCHES, LONGEST = 8, 10


class Sample(NamedTuple):
    """The texts of one model and length, with their numbers of tokens."""

    model: str
    length: str
    texts: list[str]
    tokens: list[int]

    def first(self, count: int) -> Sample:
        """The first texts of it."""
        return self._replace(texts=self.texts[:count], tokens=self.tokens[:count])

    def fewest(self, streams: int) -> int:
        """How many of the first texts fill `BATCHES` batches of each stream; all, where there are no more."""
        short = sum(tokens < BATCHES * roofline.ROWS * streams for tokens in accumulate(self.tokens))
        return min(short + 1, len(self.tokens))


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def probe(worker: Worker, sample: Sample, seconds: float) -> float:
    """Texts a second, from a few; the first one warms it up, unless it took so long that it is enough."""
    rate = 0.0
    for count, patience in ((1, 2.0), (2, 0.25), (8, 0.25), (32, 0.25)):
        part = sample.texts[:count]
        taken = worker.ask("encode", texts=part)["seconds"]
        rate = len(part) / taken
        if taken > patience * seconds:
            break
    return rate


class Comparison:
    """The rounds of one model, length and dtype.

    Args:
        sample: the texts.
        dtype: the engines' dtype.
        workers: by engine; those that measure products alone are among them.
        seconds: a round of the slowest engine takes about this long, or longer where `Sample.fewest` texts do.
        patience: as `undisturbed` takes it.
    """

    def __init__(
        self, sample: Sample, dtype: str, workers: dict[str, Worker], seconds: float, patience: float | None = None
    ) -> None:
        self.sample, self.dtype, self.workers, self.seconds = sample, dtype, workers, seconds
        self._undisturbed = partial(undisturbed, say=say, patience=patience)
        self.rates: dict[str, list[float]] = {name: [] for name in workers}
        self.vectors: dict[str, np.ndarray] = {}
        self.cells: dict[str, Cell] = {name: {} for name in workers}
        self.note = ""

    def run(self, rounds: int, config: dict[str, Any], scratch: Path) -> None:
        """Probes, then measures; who comes first changes from round to round."""
        self._choose()
        jobs: dict[str, Callable[[int], float]] = {}
        for name in self._alive():
            jobs[name] = self._products(name, config) if name in PRODUCTS else self._encoding(name, scratch)
        for turn in range(rounds if set(jobs) - set(PRODUCTS) else 0):
            names = self._alive()
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                self._try(name, lambda name=name, turn=turn: self.rates[name].append(jobs[name](turn)))
            latest = ", ".join(f"{name} {rates[-1]:.3g}" for name, rates in self.rates.items() if rates)
            say(f"{self.sample.model}, {self.sample.length}, {self.dtype}, round {turn + 1}: {latest}")
        self._conclude(config)

    def compare(self, reference: np.ndarray) -> None:
        """Puts the engines' distance from float32 vectors of the first texts into their cells."""
        for name, vectors in self.vectors.items():
            count = min(len(vectors), len(reference))
            a, b = vectors[:count].astype(np.float64), reference[:count].astype(np.float64)
            if self.dtype == "float32":
                nearness = {"max_delta": float(np.abs(a - b).max())}
            else:
                cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
                nearness = {"lowest_cosine": float(cosine.min())}
            self.cells[name]["quality"] = {"texts": count, **nearness}

    def _choose(self) -> None:
        """Leaves out what is far too slow, and takes as many texts as the slowest of the others can, or the fewest."""
        fewest, whole = self.sample.fewest(min(cores(), MAX_CPU_STREAMS)), len(self.sample.texts)
        probed: dict[str, float] = {}
        for name in [name for name in self.workers if name not in PRODUCTS]:
            self._try(
                name, lambda name=name: probed.update({name: probe(self.workers[name], self.sample, self.seconds)})
            )
        for name, rate in list(probed.items()):
            if name != OURS and LONGEST * self.seconds * rate < fewest and rate < max(probed.values()) / 4:
                self.cells[name]["left_out"] = f"left out, {rate:.2g} texts/s at the probe"
                del probed[name]
        if probed:
            slowest = min(probed, key=probed.__getitem__)
            allowed = int(probed[slowest] * self.seconds)
            self.sample = self.sample.first(max(fewest, allowed))
            if allowed < fewest:
                self.note = f"{fewest} of {whole} texts, {BATCHES} batches a stream; {slowest} takes longer than asked"
            elif allowed < whole:
                self.note = f"{allowed} of {whole} texts, as many as the slowest ({slowest}) has time for"

    def _alive(self) -> list[str]:
        return [name for name in self.workers if not {"error", "left_out"} & self.cells[name].keys()]

    def _try(self, name: str, job: Callable[[], object]) -> None:
        try:
            job()
        except WorkerError as error:
            self.cells[name]["error"] = str(error)
            say(f"{self.sample.model}, {self.sample.length}, {self.dtype}, {name}: {error}")

    def _products(self, name: str, config: dict[str, Any]) -> Callable[[int], float]:
        worker = self.workers[name]
        ask = partial(worker.ask, "measure", shapes=roofline.products(config))
        return lambda turn: self._undisturbed(worker.group, ask)["rate"]

    def _encoding(self, name: str, scratch: Path) -> Callable[[int], float]:
        def job(turn: int) -> float:
            keep = {"save": str(scratch / f"{name}.npy")} if turn == 0 else {}
            ask = partial(self.workers[name].ask, "encode", texts=self.sample.texts, **keep)
            seconds = self._undisturbed(self.workers[name].group, ask)["seconds"]
            if keep:
                self.vectors[name] = np.load(keep["save"])
            return len(self.sample.texts) / seconds

        return job

    def _conclude(self, config: dict[str, Any]) -> None:
        """Medians into the cells, and jaxpool's ratio to each peer: the median of the rounds' own."""
        tokens = self.sample.tokens
        facts = {
            "texts": len(tokens),
            "tokens": sum(tokens) / len(tokens),
            "flops": sum(roofline.flops(config, count) for count in tokens) / len(tokens),
        }
        alive = [name for name in self._alive() if self.rates[name]]
        for name in alive:
            rates = self.rates[name]
            self.cells[name] |= {"rate": statistics.median(rates), "rates": [float(f"{rate:.5g}") for rate in rates]}
            if name not in PRODUCTS:
                self.cells[name] |= facts
            if OURS in alive and name not in (OURS, *PRODUCTS):
                self.cells[name]["ratio"] = statistics.median(
                    a / b for a, b in zip(self.rates[OURS], rates, strict=True)
                )
        for name in alive[:1]:
            self.cells[name] |= {"note": self.note} if self.note else {}
