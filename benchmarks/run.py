"""`make bench`: every figure of the README's table."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version

from benchmarks import parity, startup, throughput
from jaxpool.hub import MINILM, resolve


def main() -> None:
    """Runs all parts in turn and prints two Markdown tables, and how long that took."""
    start, model = time.monotonic(), str(resolve(MINILM))
    packages = ("jaxpool", "jax", "torch", "sentence-transformers")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {cores} cores, {versions}\n", flush=True)
    print("| length | tokens | dtype | texts | jaxpool texts/s | sentence-transformers texts/s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in throughput.rows(model):
        print("| " + " | ".join(row) + " |", flush=True)
    print("\n| measured | value |\n|---|---|")
    thousand = parity.thousand()
    for part in (
        parity.rows(model, parity.reference(model, thousand), thousand),
        parity.recompilation(model),
        startup.rows(model),
    ):
        for what, value in part:
            print(f"| {what} | {value} |", flush=True)
    print(f"\nIt took {(time.monotonic() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
