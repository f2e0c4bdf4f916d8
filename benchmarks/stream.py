"""A long stream of short texts: resident memory and throughput as it goes on, with a tiny model.

python -m benchmarks.stream [--texts 1000000]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.corpus import docstrings
from jaxpool import LLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1_000_000)
    count = parser.parse_args().texts
    with tempfile.TemporaryDirectory() as directory, LLM(_tiny(Path(directory))) as llm:
        llm.warmup()
        texts = _texts(count)
        print("| texts | resident MiB | texts/s since the last line |")
        print("|---|---|---|")
        start = last = time.perf_counter()
        for number, _ in enumerate(llm.embed_stream(texts), 1):
            if number == 1:
                print(f"| first after {1000 * (time.perf_counter() - start):.0f} ms | {_resident():.0f} | |")
            if number % (count // 10) == 0:
                now = time.perf_counter()
                print(f"| {number:,} | {_resident():.0f} | {count / 10 / (now - last):,.0f} |", flush=True)
                last = now


def _tiny(directory: Path) -> Path:
    from tests.tiny import tiny_bert

    return tiny_bert(directory)


def _texts(count: int) -> Iterator[str]:
    """Different every time, so that none is computed for another."""
    lines = [line.strip() for text in docstrings() for line in text.splitlines() if line.strip()]
    return (f"{number} {lines[number % len(lines)][:40]}" for number in range(count))


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
