"""Texts a second beside sentence-transformers: one run, same texts, same cores, rounds taken in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from jaxpool import LLM

ROUNDS = 5
# One round of the slowest engine takes about this long: what has no fast bf16 is measured on fewer texts.
SECONDS = 12.0

Encode = Callable[[list[str]], np.ndarray]


def engines(model: str, dtype: str) -> dict[str, Encode]:
    """Both engines in `dtype`, warmed up."""
    import torch
    from sentence_transformers import SentenceTransformer

    llm = LLM(model, dtype=dtype)
    llm.warmup()
    peer = SentenceTransformer(model, device="cpu", model_kwargs={"torch_dtype": getattr(torch, dtype)})
    return {"jaxpool": llm.embed_array, "sentence-transformers": peer.encode}


def rows(model: str, texts: list[str]) -> Iterator[tuple[str, ...]]:
    """(dtype, texts, jaxpool texts/s, sentence-transformers texts/s, ratio), medians over the rounds."""
    for dtype in ("float32", "bfloat16"):
        both = engines(model, dtype)
        probe = texts[:: len(texts) // 16][:16]
        slowest = max(_seconds(encode, probe) for encode in both.values()) / len(probe)
        count = min(len(texts), max(16, int(SECONDS / slowest)))
        sample = [texts[i * len(texts) // count] for i in range(count)]
        seconds: dict[str, list[float]] = {name: [] for name in both}
        for _ in range(ROUNDS):
            for name, encode in both.items():
                seconds[name].append(_seconds(encode, sample))
        ours, theirs = (count / statistics.median(seconds[name]) for name in both)
        ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
        yield dtype, str(count), f"{ours:.1f}", f"{theirs:.2f}", f"{ratio:.2f}"


def _seconds(encode: Encode, texts: list[str]) -> float:
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start
