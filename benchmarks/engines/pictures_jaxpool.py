"""CLIP's pictures in jaxpool; "texts" are paths of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("jaxpool", "jax", "pillow")


def load(model: str, dtype: str, threads: int, cache: Path) -> Any:
    """`LLM.embed_array`, warm."""
    from jaxpool import LLM

    llm = LLM(model, dtype=dtype, task="embed")
    llm.warmup()

    def encode(texts: list[str]) -> np.ndarray:
        return llm.embed_array([{"multi_modal_data": {"image": Path(text)}} for text in texts])

    return encode
