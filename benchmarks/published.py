"""Published shapes, as their config.json gives them, for programs that need no weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpool.recipe import Recipe, read_recipe


def _bert(**sizes: int) -> dict[str, Any]:
    return {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2} | sizes


def _qwen3(**sizes: int) -> dict[str, Any]:
    shared = {"head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 32_768, "rope_theta": 1e6}
    return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"} | shared | sizes


def _qwen2(**sizes: Any) -> dict[str, Any]:
    shared = {"vocab_size": 152_064, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    return {"model_type": "qwen2"} | shared | sizes


MODELS: Mapping[str, dict[str, Any]] = {
    "bge-base": _bert(vocab_size=30_522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                      intermediate_size=3072, max_position_embeddings=512)
    | {"architectures": ["BertModel"], "model_type": "bert"},
    "bge-m3": _bert(vocab_size=250_002, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                    intermediate_size=4096, max_position_embeddings=8194)
    | {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1},
    "modernbert-base": {"architectures": ["ModernBertModel"], "model_type": "modernbert", "vocab_size": 50_368,
                        "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
                        "intermediate_size": 1152, "max_position_embeddings": 8192},
    "qwen3-embedding-0.6b": _qwen3(vocab_size=151_669, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
                                   intermediate_size=3072),
    "qwen3-embedding-8b": _qwen3(vocab_size=151_665, hidden_size=4096, num_hidden_layers=36, num_attention_heads=32,
                                 intermediate_size=12_288),
    "qwen2-7b": _qwen2(architectures=["Qwen2ForCausalLM"], hidden_size=3584, num_hidden_layers=28,
                       num_attention_heads=28, num_key_value_heads=4, intermediate_size=18_944),
    "qwen2.5-math-rm-72b": _qwen2(architectures=["Qwen2ForRewardModel"], num_labels=1, hidden_size=8192,
                                  num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
                                  intermediate_size=29_568),
}  # fmt: skip


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe of a directory that holds this config.json and nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(values), encoding="utf-8")
        return read_recipe(Path(directory))
