"""Where the time of one program goes on one CPU core: `python -m benchmarks.where [--rows 4] [--tokens 128]`.

XLA's own trace of each operation, summed by what the operation does: a fusion counts as the heaviest thing in it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS, TRACED = 9, 3

# What an operation is, by what stands in it (all of a row's patterns): the first row that is found counts.
KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": (r"jaxpool_attention",),
    "softmax and its product": (r"exponential\(", r"dot\("),
    "scores": (r"dot\([^)]*\), lhs_batch_dims=\{\d",),
    "products with weights": (r"jaxpool_product|dot\(",),
    "activations": (r"erf\(|tanh\(|logistic\(",),
    "softmax": (r"exponential\(",),
    "quantisation": (r"jaxpool_quantise",),
    "norms": (r"jaxpool_norm|rsqrt\(",),
    "look-ups": (r"gather\(",),
    "copies, transposes, slices": (r"copy\(|transpose\(|dynamic-slice\(|concatenate\(",),
}
OTHER = "other elementwise"


def main() -> None:
    """Prints how fast the program is, and a table of kinds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.where", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    run, text = program(options)
    seconds = [_seconds(run) for _ in range(ROUNDS)]
    tokens, median = options.rows * options.tokens, statistics.median(seconds)
    print(f"{options.rows} × {options.tokens}: median {1e3 * median:.1f} ms, least {1e3 * min(seconds):.1f} ms,"
          f" {tokens / median:,.0f} tokens/s\n")  # fmt: skip
    spent = trace(run)
    names = kinds(text)
    by_kind: Counter[str] = Counter()
    for operation, milliseconds in spent.items():
        if operation in names:  # a loop's own time is that of what is in it
            by_kind[names[operation]] += milliseconds
    whole = sum(by_kind.values())
    print("| kind | ms | share |\n|---|---|---|")
    for kind, milliseconds in by_kind.most_common():
        print(f"| {kind} | {milliseconds:.1f} | {milliseconds / whole:.0%} |")


def program(options: argparse.Namespace) -> tuple[Callable[[], Any], str]:
    """A call of the engine's own program for one shape, and the compiled program's text."""
    import jax

    from jaxpool import LLM
    from jaxpool.batch import Inputs

    with LLM(options.model, dtype=options.dtype, quantization=options.quantization, data_parallel_size=1) as llm:
        (replica,), recipe = llm.engine.runner.replicas, llm.recipe
    inputs = Inputs.of_shape(options.rows, options.tokens, options.tokens // 4, partial(np.zeros, dtype=np.int32))
    inputs.ids[:] = np.arange(options.tokens) % 1000 + 1000
    inputs.lengths[:, :2] = options.tokens // 2
    inputs.dimensions[:], inputs.activate[:] = recipe.embedding_size, 1
    with jax.set_mesh(replica.mesh):
        compiled = replica._jitted[recipe.task].lower(replica._params, inputs).compile()

    def run() -> Any:
        return compiled(replica._params, inputs).block_until_ready()

    run()
    return run, compiled.as_text()


def trace(run: Callable[[], Any]) -> Mapping[str, float]:
    """Milliseconds a call by operation, as XLA names it."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TRACED):
                run()
        (file,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("ph") == "X" and (name := event.get("args", {}).get("hlo_op")):
            spent[name] += event["dur"] / TRACED / 1e3
    return spent


def kinds(text: str) -> dict[str, str]:
    """What each operation of a compiled program does."""
    bodies = dict(re.findall(r"^%?([\w.-]+) \(.*?\) -> .*? \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    found = {}
    for name, rest in re.findall(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$", text, re.MULTILINE):
        if " while(" in rest or " call(" in rest:
            continue
        called = re.search(r"calls=%?([\w.-]+)", rest)
        found[name] = _kind(rest + "\n" + (bodies.get(called.group(1), "") if called else ""))
    return found


def _kind(body: str) -> str:
    return next((kind for kind, marks in KINDS.items() if all(re.search(mark, body) for mark in marks)), OTHER)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
