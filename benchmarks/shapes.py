"""The models that engines are compared on: one real, two of published shapes with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpool.converters import bert as bert_keys
from jaxpool.converters import llama as llama_keys
from jaxpool.converters.export import write_safetensors
from jaxpool.converters.rules import Table, to_checkpoint
from jaxpool.hub import MINILM, resolve
from jaxpool.models import bert, llama
from jaxpool.models.family import Family
from jaxpool.params import flatten, random_params

MINILM_VOCABULARY = 30_522
LONGEST = 512

_BGE = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": MINILM_VOCABULARY,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": LONGEST,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
# The published one has 151,669 tokens and reads 32,768: neither changes the arithmetic of a text of 512.
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": MINILM_VOCABULARY,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "max_position_embeddings": LONGEST,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Shape:
    """A checkpoint of random weights: its config.json, its family's two halves, its pooling."""

    config: Mapping[str, Any]
    family: Family
    table: Table
    pooling: str


RANDOM = {
    "bge-base": Shape(_BGE, bert.FAMILY, bert_keys.TABLE, "cls"),
    "qwen3-0.6b": Shape(_QWEN3, llama.FAMILY, llama_keys.TABLE, "lasttoken"),
}
MODELS = ("minilm", *RANDOM)


def directory(name: str, cache: Path) -> Path:
    """A model's directory; one of random weights is made in `cache` at the first call."""
    if name not in RANDOM:
        return resolve(MINILM)
    folder = cache / "models" / name
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        write(part, RANDOM[name])
        part.rename(folder)
    return folder


def write(folder: Path, shape: Shape) -> None:
    """A whole model directory of that shape with random weights."""
    config = dict(shape.config)
    leaves = flatten(random_params(shape.family.param_specs(shape.family.config_from_hf(dict(config)))))
    write_safetensors(folder, "model", to_checkpoint(leaves, shape.table))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST}
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    pooling = {f"pooling_mode_{mode}": mode == shape.pooling for mode in ("mean_tokens", "lasttoken")}
    pooling["pooling_mode_cls_token"] = shape.pooling == "cls"
    for path, values in {
        "config.json": config,
        "tokenizer_config.json": tokenizer | names | {"model_input_names": ["input_ids", "attention_mask"]},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": config["hidden_size"], **pooling},
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(values, indent=2))
    # MiniLM's own word pieces, without the padding and cutting that its file asks for.
    words = json.loads((resolve(MINILM) / "tokenizer.json").read_text(encoding="utf-8"))
    stored = json.dumps(words | {"padding": None, "truncation": None}, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(stored, encoding="utf-8")
