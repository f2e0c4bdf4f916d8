"""vLLM on CPU. It runs in an environment of its own (`benchmarks/venvs.py`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

# Left to itself it would keep one core free: the other engines use them all.
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}

PACKAGES = ("vllm-cpu", "torch", "transformers")


def load(model: str, dtype: str, threads: int, cache: Path, eager: bool = True) -> Any:
    """`LLM.embed`; it binds its threads to the cores itself. Unless `eager`, torch compiles the model."""
    from vllm import LLM

    # Every round has the same texts, whose prefixes a decoder would find computed.
    llm = LLM(model, runner="pooling", dtype=dtype, enforce_eager=eager, enable_prefix_caching=False)

    def encode(texts: list[str]) -> np.ndarray:
        outputs = llm.embed(texts, use_tqdm=False)
        return np.array([output.outputs.embedding for output in outputs], np.float32)

    return encode
