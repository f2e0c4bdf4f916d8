"""sentence-transformers on torch with its scaled-dot-product attention, on a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

PACKAGES = ("sentence-transformers", "transformers", "torch")
# Its own default is 32 texts a batch, too few of short ones to fill a GPU: as many tokens as jaxpool has, at least 32.
TOKENS, FEWEST = 16_384, 32
# `benchmarks.gpu --smoke` says "cpu".
DEVICE = os.environ.get("JAXPOOL_BENCH_TORCH", "cuda")


def load(model: str, dtype: str, threads: int, cache: Path) -> Any:
    """`SentenceTransformer.encode`, sorted by length."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise NotImplementedError("this torch has no CUDA device")
    how = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    peer = SentenceTransformer(model, device=DEVICE, model_kwargs=how)

    def encode(texts: list[str]) -> Any:
        longest = len(peer.tokenizer(max(texts[:64], key=len))["input_ids"])
        batch = max(FEWEST, TOKENS // longest)
        return peer.encode(texts, batch_size=batch, show_progress_bar=False)

    return encode
