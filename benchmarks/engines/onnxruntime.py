"""ONNX Runtime on an export of the transformer: batches of 32 sorted by length, pooling in numpy.

It does what sentence-transformers' `backend="onnx"` does; that one needs optimum, which wants an older transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from benchmarks.onnx_export import exported

PACKAGES = ("onnxruntime", "onnx", "torch")
BATCH = 32


def load(model: str, dtype: str, threads: int, cache: Path) -> Any:
    """A function from texts to normalised vectors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        exported(Path(model), dtype, cache), options, providers=["CPUExecutionProvider"]
    )
    inputs = {put.name for put in session.get_inputs()}
    pool = _POOLINGS[_pooling(Path(model))]
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    limit = json.loads((Path(model) / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer.enable_truncation(limit)
    tokenizer.enable_padding()

    def batch(texts: list[str]) -> np.ndarray:
        encodings = tokenizer.encode_batch(texts)
        arrays = {
            "input_ids": np.array([e.ids for e in encodings], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encodings], np.int64),
        }
        arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
        (hidden,) = session.run(None, {name: array for name, array in arrays.items() if name in inputs})
        vectors = pool(hidden, arrays["attention_mask"])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        parts = [batch([texts[i] for i in order[start : start + BATCH]]) for start in range(0, len(order), BATCH)]
        return np.concatenate(parts)[np.argsort(order)]

    return encode


def _mean(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return (hidden * mask[..., None].astype(np.float32)).sum(1) / mask.sum(1, keepdims=True)


_POOLINGS = {
    "mean_tokens": _mean,
    "cls_token": lambda hidden, mask: hidden[:, 0],
    "lasttoken": lambda hidden, mask: hidden[np.arange(len(mask)), mask.sum(1) - 1],
}


def _pooling(model: Path) -> str:
    settings = json.loads((model / "1_Pooling" / "config.json").read_text())
    (mode,) = (mode for mode in _POOLINGS if settings.get(f"pooling_mode_{mode}"))
    return mode
