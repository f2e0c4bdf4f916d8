"""Texts a second beside sentence-transformers: one run, same texts, same cores, rounds taken in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks import lengths
from jaxpool import LLM

ROUNDS = 5
# One round of the slowest engine takes about this long: what has no fast bf16 is measured on fewer texts.
SECONDS = 8.0
# Of benchmarks/lengths.py: search queries, and passages.
SHOWN = ("short", "passages")

Encode = Callable[[list[str]], np.ndarray]


def engines(model: str, dtype: str) -> dict[str, Encode]:
    """Both engines in `dtype`, warmed up."""
    import torch
    from sentence_transformers import SentenceTransformer

    llm = LLM(model, dtype=dtype)
    llm.warmup()
    peer = SentenceTransformer(model, device="cpu", model_kwargs={"torch_dtype": getattr(torch, dtype)})
    return {"jaxpool": llm.embed_array, "sentence-transformers": peer.encode}


def rows(model: str) -> Iterator[tuple[str, ...]]:
    """(length, tokens, dtype, texts, jaxpool texts/s, sentence-transformers texts/s, ratio): medians of rounds."""
    samples = {name: lengths.texts(name, Path(model)) for name in SHOWN}
    for dtype in ("float32", "bfloat16"):
        both = engines(model, dtype)
        for name, (texts, tokens) in samples.items():
            slowest = max(_seconds(encode, texts[:16]) for encode in both.values()) / 16
            count = min(len(texts), max(16, int(SECONDS / slowest)))
            seconds: dict[str, list[float]] = {engine: [] for engine in both}
            for _ in range(ROUNDS):
                for engine, encode in both.items():
                    seconds[engine].append(_seconds(encode, texts[:count]))
            ours, theirs = (count / statistics.median(seconds[engine]) for engine in both)
            ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
            mean = f"{statistics.mean(tokens[:count]):.0f}"
            yield name, mean, dtype, str(count), f"{ours:.1f}", f"{theirs:.2f}", f"{ratio:.2f}"


def _seconds(encode: Encode, texts: list[str]) -> float:
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start
