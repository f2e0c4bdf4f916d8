"""jaxpool, compiled before it is asked."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from jaxpool import LLM

PACKAGES = ("jaxpool", "jax", "jaxlib")


def load(model: str, dtype: str, threads: int, cache: Path) -> Any:
    """`LLM.embed_array`."""
    if dtype != "int8":
        llm = LLM(model, dtype=dtype)
    elif "quantization" in inspect.signature(LLM).parameters:
        llm = LLM(model, quantization="int8")
    else:
        raise NotImplementedError("this jaxpool takes no quantization='int8'")
    llm.warmup()
    return llm.embed_array
