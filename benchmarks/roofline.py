"""What a model's matrix products alone allow: their shapes, and the FLOPs of a text."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Rows of one product: the tokens of a batch on a CPU.
ROWS = 512
SECONDS = 0.5

Product = tuple[int, int]
"""[ROWS, inputs] times [inputs, outputs]."""


def read_config(model: Path) -> dict[str, Any]:
    """config.json."""
    return json.loads((model / "config.json").read_text())


def products(config: Mapping[str, Any]) -> list[Product]:
    """The products of one layer."""
    width, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim", width // heads)
    inner, shared = heads * head, config.get("num_key_value_heads", heads) * head
    gated = [(width, mlp)] if config["hidden_act"] == "silu" else []
    return [(width, inner), (width, shared), (width, shared), (inner, width), (width, mlp), *gated, (mlp, width)]


def flops(config: Mapping[str, Any], tokens: int) -> float:
    """Of one text: the products with weights, and those of the attention (half of them under a causal mask)."""
    heads = config["num_attention_heads"]
    inner = heads * config.get("head_dim", config["hidden_size"] // heads)
    seen = tokens / 2 if config["model_type"] == "qwen3" else tokens
    layer = 2 * sum(inputs * outputs for inputs, outputs in products(config)) + 4 * inner * seen
    return float(tokens * layer * config["num_hidden_layers"])


def rate(runs: Sequence[Callable[[], object]], shapes: Sequence[Product]) -> float:
    """GFLOP/s of streams that all run at once; each call of a run does every product once, and waits for it."""
    done = [0] * len(runs)
    for run in runs:
        run()
    start = time.perf_counter()

    def stream(i: int) -> None:
        while time.perf_counter() - start < SECONDS:
            runs[i]()
            done[i] += 1

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work = 2 * ROWS * sum(inputs * outputs for inputs, outputs in shapes)
    return sum(done) * work / (time.perf_counter() - start) / 1e9
