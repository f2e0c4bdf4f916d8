"""Tiny random model directories, as transformers and sentence-transformers write them, made without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16")
import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxpool.converters import bert, head
from jaxpool.converters.export import write_safetensors
from jaxpool.converters.rules import to_checkpoint
from jaxpool.heads import Dense
from jaxpool.models.bert import Config, param_specs
from jaxpool.models.post_norm import pooler_specs
from jaxpool.params import ParamSpec, Tree, flatten, map_leaves

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SENTENCES = (
    "the quick brown fox jumps over a lazy dog while seven small birds sing",
    "hello, my name is nobody; what is yours?",
    "a stitch in time saves nine, and many hands make light work",
    "query: passage: document: search",
    "naïve café coöperate, 1234567890",
)


def tiny_bert(
    directory: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    mlp: int = 48,
    positions: int = 64,
    pooler: bool = True,
    dense: bool = False,
    normalize: bool = True,
    pooling: str = "mean",
    prompts: dict[str, str] | None = None,
    default_prompt: str | None = None,
    sentence_transformer: bool = True,
    folder: str = "",
    prefix: str = "",
    dtype: str = "float32",
    max_shard_bytes: int = 2**30,
    seed: int = 0,
) -> Path:
    """Writes a BERT with random weights and a real WordPiece tokenizer.

    Args:
        directory: where to; made if it is not there.
        layers, hidden, heads, mlp, positions: its sizes.
        pooler: whether the weights hold BERT's pooler, which no embedding needs.
        dense: a Dense module (hidden -> hidden / 2, tanh) behind the pooling.
        normalize: a Normalize module at the end.
        pooling: the pooling mode, as ≤ 5.3 of sentence-transformers writes it.
        prompts, default_prompt: for config_sentence_transformers.json.
        sentence_transformer: whether there are sentence-transformers' files at all.
        folder: where the transformer's own files lie ("0_Transformer" in old checkpoints).
        prefix: what stands before each key of the weights ("bert.").
        dtype: of the weights as stored.
        max_shard_bytes: most bytes of one file of weights.
        seed: of the weights.

    Returns:
        `directory`.
    """
    backbone = directory / folder
    tokenizer = word_pieces()
    backbone.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(backbone / "tokenizer.json"))
    _write_json(backbone / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    values = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
    }
    _write_json(backbone / "config.json", values)
    config = Config(
        vocab_size=values["vocab_size"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        mlp_size=mlp,
        activation="gelu",
        epsilon=1e-12,
        max_length=positions,
        token_types=2,
    )
    specs = param_specs(config) | (pooler_specs(config) if pooler else {})
    weights = dict(to_checkpoint(flatten(random_weights(specs, dtype, seed)), bert.TABLE))
    # Older versions of transformers stored these too.
    weights["embeddings.position_ids"] = np.arange(positions, dtype=np.int64)[None]
    write_safetensors(backbone, "model", ((prefix + key, x) for key, x in weights.items()), max_shard_bytes)
    if sentence_transformer:
        _write_modules(directory, folder, pooling, hidden, positions, dense, normalize, dtype)
        settings = {"prompts": prompts or {}, "default_prompt_name": default_prompt, "similarity_fn_name": "cosine"}
        _write_json(directory / "config_sentence_transformers.json", settings)
    return directory


def _write_modules(
    directory: Path,
    folder: str,
    pooling: str,
    hidden: int,
    positions: int,
    dense: bool,
    normalize: bool,
    dtype: str,
) -> None:
    kinds = ["Transformer", "Pooling", *["Dense"] * dense, *["Normalize"] * normalize]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else folder,
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    _write_json(directory / "modules.json", modules)
    length = {"max_seq_length": positions, "do_lower_case": False}
    _write_json(directory / folder / "sentence_bert_config.json", length)
    flags = {f"pooling_mode_{name}_tokens": name == pooling for name in ("mean", "max")}
    flags["pooling_mode_cls_token"] = pooling == "cls"
    _write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, **flags})
    if dense:
        module = Dense(hidden, hidden // 2)
        leaves = flatten(random_weights(module.param_specs(), dtype, seed=1))
        write_safetensors(directory / "2_Dense", "model", to_checkpoint(leaves, head.TABLE))
        settings = {
            "in_features": module.inputs,
            "out_features": module.outputs,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
        _write_json(directory / "2_Dense" / "config.json", settings)


def word_pieces() -> Tokenizer:
    """A lower-casing WordPiece tokenizer, [PAD] = 0, which puts "[CLS] text [SEP]".

    Its vocabulary is what stands in `SENTENCES`: words, characters, and the ends of words as pieces. (Trained ones
    differ from run to run, since the trainer breaks ties by the order of a hash map.)
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = {w for s in SENTENCES for w, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(s))}
    characters = {c for word in words for c in word} | set("abcdefghijklmnopqrstuvwxyz0123456789")
    pieces = {f"##{piece}" for piece in characters | {word[-2:] for word in words}}
    vocabulary = (*SPECIAL, *sorted(characters | words | pieces))
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def random_weights(specs: Tree, dtype: str = "float32", seed: int = 0) -> Tree:
    """Random values for all parameters, also for those that start as zeros and ones, so that all of them tell."""
    rng = np.random.default_rng(seed)

    def fill(spec: ParamSpec) -> np.ndarray:
        values = 0.2 * rng.standard_normal(spec.shape, np.float32) + (spec.init == "ones")
        return values.astype(np.dtype(dtype))

    return map_leaves(fill, specs)


def _write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
