"""The shapes that are measured on a GPU: published ones, with random weights, which read up to 2,048 tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.shapes import RANDOM, Shape, write
from jaxpool.converters import roberta as roberta_keys
from jaxpool.models import roberta

LONGEST = 2048
"""Tokens of a text, where the model has the positions."""
_BGE, _QWEN3 = RANDOM["bge-base"], RANDOM["qwen3-0.6b"]
# 24 layers of 1,024, as BERT-large (bge-large) and XLM-R-large have them; with bge-m3's 8,192 positions. MiniLM's word
# pieces make the vocabulary smaller, and its padding id is 0: neither changes the arithmetic.
_LARGE = dict(_BGE.config) | {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8194,
    "type_vocab_size": 1,
}
_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 66,
}


_LIMITS = {"tokenizer_config.json": "model_max_length", "sentence_bert_config.json": "max_seq_length"}


def _of(shape: Shape, **changes: Any) -> Shape:
    return Shape(dict(shape.config) | changes, shape.family, shape.table, shape.pooling)


_XLM_R = Shape(_LARGE, roberta.FAMILY, roberta_keys.TABLE, "cls")
MODELS: dict[str, Shape] = {
    "xlm-r-large": _XLM_R,
    "bge-base": _BGE,
    "qwen3-0.6b": _of(_QWEN3, max_position_embeddings=LONGEST),
}
SMOKE: dict[str, Shape] = {"tiny": _of(_XLM_R, **_SMALL)}


def reads(shape: Shape) -> int:
    """Most tokens of a text: RoBERTa's positions start behind the padding id."""
    taken = 1 + shape.config["pad_token_id"] if shape.family is roberta.FAMILY else 0
    return min(LONGEST, shape.config["max_position_embeddings"] - taken)


def directory(name: str, cache: Path) -> Path:
    """A model's directory, made in `cache` at the first call."""
    shape = (MODELS | SMOKE)[name]
    folder = cache / "gpu-models" / name
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        write(part, shape)
        for file, key in _LIMITS.items():
            values = json.loads((part / file).read_text())
            (part / file).write_text(json.dumps(values | {key: reads(shape)}, indent=2))
        part.rename(folder)
    return folder
