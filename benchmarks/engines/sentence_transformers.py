"""sentence-transformers on torch, as its documentation uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

PACKAGES = ("sentence-transformers", "transformers", "torch")


def load(model: str, dtype: str, threads: int, cache: Path) -> Any:
    """`SentenceTransformer.encode`: batches of 32, sorted by length."""
    torch.set_num_threads(threads)
    peer = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda texts: peer.encode(texts, show_progress_bar=False)
