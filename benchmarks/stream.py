"""A long stream of short texts: resident memory and throughput as it goes on, with a tiny model.

python -m benchmarks.stream [--texts 1000000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.corpus import docstrings
from jaxpool import LLM
from tests.tiny import tiny_bert

COLUMNS = ("texts", "resident MiB", "texts/s since the last line", "a processor second", "drawn ahead")
LINES = 10
"""Lines of the table; the first one is warm-up of the allocators, and what later ones are compared with."""
MEMORY, PACE, LEAD = 100, 0.8, 10_000
"""What is flat and early: MiB of resident memory, the later half's pace over the earlier's, texts drawn ahead.

The pace is judged by this process's own processor seconds: texts a second fall when others use the machine, too.
"""


class Mark(NamedTuple):
    """A line of the table: how far the stream is, and what was seen since the last line."""

    texts: int
    resident: tuple[float, float]
    """MiB: the least and the most."""
    rate: float
    """Texts a second."""
    pace: float
    """Texts a second of this process's processor time, all threads together."""
    lead: int
    """Most texts that were drawn and not yet given back."""


class Texts:
    """A stream of short texts that counts how many were drawn; different every time, so that none is computed twice."""

    def __init__(self, count: int, source: Sequence[str]) -> None:
        self.count, self.drawn = count, 0
        self._lines = [line.strip() for text in source for line in text.splitlines() if line.strip()]

    def __iter__(self) -> Iterator[str]:
        for number in range(self.count):
            self.drawn += 1
            yield f"{number} {self._lines[number % len(self._lines)][:40]}"


class First(NamedTuple):
    """The first vector: after how long, and after how many drawn texts."""

    seconds: float
    drawn: int


def marks(llm: LLM, texts: Texts) -> Iterator[First | Mark]:
    """Embeds the stream; the first vector, then a mark every so many texts."""
    every, look = max(1, texts.count // LINES), max(1, texts.count // LINES // 20)
    resident, lead = [resident_now()], 0
    start = last = time.perf_counter()
    used = time.process_time()
    for number, _ in enumerate(llm.embed_stream(texts), 1):
        if number == 1:
            yield First(time.perf_counter() - start, texts.drawn)
        lead = max(lead, texts.drawn - number)
        if number % look == 0:
            resident.append(resident_now())
        if number % every == 0:
            now, spent = time.perf_counter(), time.process_time()
            yield Mark(number, (min(resident), max(resident)), every / (now - last), every / (spent - used), lead)
            resident, lead, last, used = [resident[-1]], 0, now, spent


def verdict(first: First, seen: Sequence[Mark]) -> Iterator[tuple[str, str, bool]]:
    """(what, measured, whether it is as it should be) lines."""
    base, later = seen[0].resident[1], seen[1:] or seen
    moved = max((end - base for mark in later for end in mark.resident), key=abs)
    yield (
        f"resident memory, furthest from the first line's, at most ±{MEMORY} MiB",
        f"{moved:+.0f} MiB",
        (abs(moved) <= MEMORY),
    )
    half = len(later) // 2
    early, late = (statistics.median(mark.pace for mark in part) for part in (later[:half] or later, later[half:]))
    yield (
        f"texts a processor second, later half over earlier, at least {PACE}",
        f"{late / early:.2f}",
        late / early >= PACE,
    )
    lead = max(first.drawn, *(mark.lead for mark in seen))
    yield f"texts drawn ahead of their vectors, at most {LEAD:,}", f"{lead:,}", lead <= LEAD


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=1_000_000)
    texts = Texts(parser.parse_args().texts, docstrings())
    seen: list[Mark] = []
    with tempfile.TemporaryDirectory() as directory, LLM(tiny_bert(Path(directory))) as llm:
        llm.warmup()
        compiled, start = llm.stats.compilations, time.perf_counter()
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
        for mark in marks(llm, texts):
            if isinstance(mark, First):
                first = mark
                print(f"| first after {1000 * first.seconds:.0f} ms | {resident_now():.0f} | | | {first.drawn:,} |")
                continue
            seen.append(mark)
            low, high = mark.resident
            print(
                f"| {mark.texts:,} | {low:.0f}–{high:.0f} | {mark.rate:,.0f} | {mark.pace:,.0f} | {mark.lead:,} |",
                flush=True,
            )
        seconds, compiled = time.perf_counter() - start, llm.stats.compilations - compiled
    lines = [*verdict(first, seen), ("programs compiled after warm-up, 0", str(compiled), compiled == 0)]
    print(f"\n{texts.count:,} texts in {seconds:.0f} s\n\n| expected | measured | |\n|---|---|---|")
    print("\n".join(f"| {what} | {measured} | {'yes' if good else 'NO'} |" for what, measured, good in lines))
    return int(not all(good for _, _, good in lines))


def resident_now() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    raise SystemExit(main())
