"""Seconds from process start to the first vector, with an empty and with a filled compile cache."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROUNDS = 5
FIRST_VECTOR = """
import sys
from jaxpool import LLM
llm = LLM(sys.argv[1], compile_cache=sys.argv[2] if len(sys.argv) > 2 else False)
llm.embed("Hello, my name is", use_tqdm=False)
"""


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST_VECTOR, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def rows(model: str) -> Iterator[tuple[str, str]]:
    """(what, median seconds) lines for the table."""
    with tempfile.TemporaryDirectory() as cache:
        _seconds(model, cache)
        cold, warm = zip(*((_seconds(model), _seconds(model, cache)) for _ in range(ROUNDS)), strict=True)
    yield "process start to first vector, no compile cache", f"{statistics.median(cold):.1f} s"
    yield "process start to first vector, compile cache filled", f"{statistics.median(warm):.1f} s"
