"""Tiny random model directories, as transformers and sentence-transformers write them, made without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16")
import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jaxpool.converters import bert, head, jina
from jaxpool.converters.export import write_safetensors
from jaxpool.converters.rules import to_checkpoint
from jaxpool.heads import Dense
from jaxpool.loading import family_table
from jaxpool.models import jina as jina_family
from jaxpool.models.bert import config_from_hf, param_specs
from jaxpool.models.post_norm import pooler_specs
from jaxpool.params import ParamSpec, Tree, flatten, map_leaves
from jaxpool.program import param_specs as all_specs
from jaxpool.recipe import read_recipe

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SENTENCES = (
    "the quick brown fox jumps over a lazy dog while seven small birds sing",
    "hello, my name is nobody; what is yours?",
    "a stitch in time saves nine, and many hands make light work",
    "query: passage: document: search",
    "naïve café coöperate, 1234567890",
)
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
JINA_TASKS = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
# As jina-embeddings-v3's published config.json, with sizes that share no factor.
JINA_CONFIG = {
    "_name_or_path": "jinaai/jina-embeddings-v3",
    "architectures": ["XLMRobertaModel"],
    "attention_probs_dropout_prob": 0.1,
    "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"},
    "bos_token_id": 0,
    "classifier_dropout": None,
    "emb_pooler": None,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 36,
    "initializer_range": 0.02,
    "intermediate_size": 50,
    "layer_norm_eps": 1e-05,
    "load_trained_adapters": True,
    "lora_adaptations": JINA_TASKS,
    "lora_alpha": 1,
    "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False,
    "lora_rank": 4,
    "matryoshka_dimensions": [12, 36],
    "max_position_embeddings": 66,
    "model_type": "xlm-roberta",
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 20000.0,
    "task_instructions": {"retrieval.query": "Represent the query for retrieving evidence documents: "},
    "torch_dtype": "bfloat16",
    "transformers_version": "4.30.2",
    "truncate_dim": None,
    "type_vocab_size": 1,
    "use_cache": True,
    "use_flash_attn": True,
    "use_reg_tokens": False,
    "vocab_size": 91,
}


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
    sizes = {"layers": layers, "hidden": hidden, "heads": heads, "mlp": mlp, "positions": positions}
    weights = _write_bert(directory / folder, sizes, "BertModel", {}, pooler=pooler, dtype=dtype, seed=seed)
    # Older versions of transformers stored these too.
    weights["embeddings.position_ids"] = np.arange(positions, dtype=np.int64)[None]
    keyed = ((prefix + key, x) for key, x in weights.items())
    write_safetensors(directory / folder, "model", keyed, max_shard_bytes)
    if sentence_transformer:
        _write_modules(directory, folder, pooling, hidden, positions, dense, normalize, dtype)
        settings = {"prompts": prompts or {}, "default_prompt_name": default_prompt, "similarity_fn_name": "cosine"}
        _write_json(directory / "config_sentence_transformers.json", settings)
    return directory


def tiny_classifier(directory: Path, *, labels: int = 2, activation: str | None = None, **config: Any) -> Path:
    """Writes a BertForSequenceClassification: `tiny_bert`'s weights, its pooler, and a classifier.

    Args:
        directory: where to; made if it is not there.
        labels: how many classes.
        activation: torch's class of the last step ("Sigmoid"), as sentence-transformers writes it to config.json.
        config: more of config.json (`problem_type`).

    Returns:
        `directory`.
    """
    if activation is not None:
        config["sentence_transformers"] = {"activation_fn": f"torch.nn.modules.activation.{activation}"}
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
    sizes = {"layers": 2, "hidden": 32, "heads": 4, "mlp": 48, "positions": 64}
    weights = _write_bert(directory, sizes, "BertForSequenceClassification", config)
    leaves = flatten(random_weights(Dense(sizes["hidden"], labels).param_specs(), seed=1))
    keyed = [(f"bert.{key}", x) for key, x in weights.items()]
    keyed += [(key.replace("linear", "classifier"), x) for key, x in to_checkpoint(leaves, head.TABLE)]
    write_safetensors(directory, "model", keyed)
    return directory


def tiny_jina(directory: Path) -> Path:
    """Writes a jina-embeddings-v3, whose tokenizer is `word_pieces`; returns `directory`."""
    tokenizer = word_pieces()
    changes = {"vocab_size": tokenizer.get_vocab_size(), "num_hidden_layers": 2, "pad_token_id": 0}
    values = JINA_CONFIG | changes
    _write_json(directory / "config.json", values)
    _write_tokenizer(directory, tokenizer)
    jina_modules(directory)
    specs = jina_family.param_specs(jina_family.config_from_hf(values))
    write_safetensors(directory, "model", to_checkpoint(flatten(random_weights(specs)), jina.TABLE))
    return directory


def jina_modules(directory: Path) -> None:
    """sentence-transformers' files as jina-embeddings-v3 has them: the first module is the checkpoint's own code."""
    types = ("custom_st.Transformer", "sentence_transformers.models.Pooling", "sentence_transformers.models.Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules: list[dict[str, Any]] = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (kind, path) in enumerate(zip(types, paths, strict=True))
    ]
    modules[0]["kwargs"] = ["task"]
    _write_json(directory / "modules.json", modules)
    pooling = {"word_embedding_dimension": JINA_CONFIG["hidden_size"], "pooling_mode_mean_tokens": True}
    _write_json(directory / "1_Pooling" / "config.json", pooling | {"pooling_mode_cls_token": False})
    prompts = dict.fromkeys(JINA_TASKS, "") | JINA_CONFIG["task_instructions"]
    settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(directory / "config_sentence_transformers.json", settings)


def tiny_clip(directory: Path, *, image: int = 28, patch: int = 7, length: int = 20, **config: Any) -> Path:
    """Writes a CLIP with random weights, a tokenizer of bytes ("<|startoftext|> text <|endoftext|>") and a processor.

    Args:
        directory: where to; made if it is not there.
        image, patch: the sizes of a picture and of a patch, in pixels.
        length: most tokens of a text.
        config: more of config.json.

    Returns:
        `directory`.
    """
    tokenizer = single_bytes()
    ends = ["<|startoftext|>", "<|endoftext|>"]
    tokenizer.add_special_tokens(ends)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in ends]
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": ends[0], "eos_token": ends[1], "pad_token": ends[1], "unk_token": ends[1]}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    _write_json(directory / "tokenizer_config.json", settings | named)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = sizes | {"max_position_embeddings": length, "vocab_size": tokenizer.get_vocab_size()}
    values = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": text,
        "vision_config": sizes | {"image_size": image, "patch_size": patch},
    }
    _write_json(directory / "config.json", values | config)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "size": {"shortest_edge": image},
        "crop_size": {"height": image, "width": image},
    }
    _write_json(directory / "preprocessor_config.json", processor)
    _write_weights(directory)
    return directory


def single_bytes() -> Tokenizer:
    """A tokenizer of bytes."""
    tokenizer = Tokenizer(
        models.BPE({byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_model(directory: Path, architecture: str, model_type: str, tokens: Sequence[str] = (), **values: Any) -> Path:
    """Writes a model of any family with random weights; which tensors it has follows from its config.json.

    Args:
        directory: where to; must not be there.
        architecture, model_type: as config.json names them. BERT gets word pieces, others a tokenizer of bytes.
        tokens: to add to the tokenizer.
        values: more of config.json.

    Returns:
        `directory`.
    """
    directory.mkdir()
    tokenizer = word_pieces() if model_type == "bert" else single_bytes()
    tokenizer.add_tokens(list(tokens))
    tokenizer.save(str(directory / "tokenizer.json"))
    kind = "BertTokenizer" if model_type == "bert" else "PreTrainedTokenizerFast"
    config = {"tokenizer_class": kind, "chat_template": CHAT}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    values |= {"architectures": [architecture], "model_type": model_type, "vocab_size": tokenizer.get_vocab_size()}
    (directory / "config.json").write_text(json.dumps(values))
    _write_weights(directory)
    return directory


def _write_weights(directory: Path) -> None:
    """Random ones; which tensors there are follows from config.json."""
    recipe = read_recipe(directory)
    specs, table = all_specs(recipe), family_table(recipe)
    if not isinstance(recipe.head_rules, str):
        specs.pop("head", None)  # it is read from the embeddings
    rules = table.heads.get(recipe.head_rules, ())
    weights = flatten(random_weights(specs, seed=3))
    write_safetensors(directory, "model", to_checkpoint(weights, table.whole("backbone", "head", rules)))


def _write_bert(
    directory: Path,
    sizes: Mapping[str, int],
    architecture: str,
    more: Mapping[str, Any],
    *,
    pooler: bool = True,
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Writes tokenizer and config.json; returns the weights under `BertModel`'s keys."""
    tokenizer = word_pieces()
    _write_tokenizer(directory, tokenizer)
    values = {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": sizes["positions"],
        "type_vocab_size": 2,
    }
    _write_json(directory / "config.json", values | dict(more))
    config = config_from_hf(values)
    specs = param_specs(config) | (pooler_specs(config) if pooler else {})
    return dict(to_checkpoint(flatten(random_weights(specs, dtype, seed)), bert.TABLE))


def _write_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]"}
    _write_json(directory / "tokenizer_config.json", settings)


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
    flags = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    assert pooling in flags
    flags = {f"pooling_mode_{flag}": name == pooling for name, flag in flags.items()}
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
