"""Reading a sentence-transformers directory, in the formats of ≤ 5.3 and of ≥ 5.4 (6.x).

What is not understood is an error that names the file and the key: these files decide the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxpool.activations import by_name
from jaxpool.converters.checkpoint import read_json
from jaxpool.heads import Dense, LayerNorm, Module, Normalize, width_behind
from jaxpool.log import once
from jaxpool.models.hf_config import ANYTHING, FLAG, INDEX, OBJECT, SIZE, TEXT, TEXTS, Kind
from jaxpool.poolers import POOLERS

_TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.SiLU": "silu",
}
# In the order in which several are concatenated.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Every model of sentence-transformers has prompts of these names.
_DEFAULT_PROMPTS = {"query": "", "document": ""}
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_KINDS_OF_MODELS = ("SentenceTransformer", "CrossEncoder")
# What a Transformer module of either kind may be set to.
_EMBEDDER: Mapping[str, Collection[Any]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "processing_kwargs": ({},),
}
_CROSS_ENCODER: Mapping[str, Collection[Any]] = {
    "transformer_task": ("sequence-classification", "text-generation"),
    "module_output_name": ("scores", "causal_logits"),
    "processing_kwargs": ({}, {"chat_template": {"add_generation_prompt": True}}),
}
# … and of a model that answers texts and pictures with vectors of its own.
_FEATURES: Mapping[str, Collection[Any]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("sentence_embedding",),
}
# How such a Transformer computes them; transformers ≤ 4 gave them by no name.
_OUTPUTS = ("pooler_output", None)
_METHODS = {"text": "get_text_features", "image": "get_image_features"}
# First modules: the second is what older versions had for models of texts and pictures.
_BACKBONES = ("Transformer", "CLIPModel")
_NAMES = {"module_input_name": TEXT, "module_output_name": TEXT}
_PROMPTS = Kind(
    "an object of strings",
    lambda value: isinstance(value, dict) and all(text is None or isinstance(text, str) for text in value.values()),
)
_MODES = Kind("a string or a list of strings", lambda value: TEXT.fits(value) or (TEXTS.fits(value) and value != []))


class Vectors(NamedTuple):
    """How a backbone gives a text one vector by itself, as those do that embed pictures too.

    Attributes:
        pooling: the pooling that picks it.
        padded: the length to which its texts are padded; None: they are not.
    """

    pooling: str
    padded: int | None


def is_sentence_transformer(directory: Path) -> bool:
    """Whether the directory is one that sentence-transformers saved."""
    return (directory / "modules.json").exists()


def backbone_directory(directory: Path) -> Path:
    """Where the transformer's own files lie: the directory itself, or the folder of the first module.

    Raises:
        ValueError: the first module is no Transformer (nor a CLIPModel), so there is no such folder.
    """
    if not is_sentence_transformer(directory):
        return directory
    file, first = directory / "modules.json", _modules(directory)[0]
    # Whose Transformer it may be, the family knows.
    if not str(first["type"]).endswith(".Transformer") and _kind(first, file, {}) not in _BACKBONES:
        raise ValueError(f"{file}: the first module is {first['type']!r}, expected a Transformer")
    return directory / first["path"]


def read(
    directory: Path,
    *,
    hidden_size: int,
    limits: Collection[int | None],
    own_modules: Mapping[str, str] = MappingProxyType({}),
    vectors: Vectors | None = None,
) -> dict[str, Any]:
    """What the sentence-transformers files say, as fields of `recipe.Recipe`.

    A cross-encoder's have `activation`, `template` and `score_tokens` ((false, true) or (true,), and whether the
    score is their difference) instead of a pooling.

    Args:
        hidden_size: width of the backbone's token vectors.
        limits: the lengths that the tokenizer and config.json allow (None: no limit), for a directory that
            names no `max_seq_length`.
        own_modules: types of modules that are the checkpoint's own code -> the module that the family takes them for.
        vectors: of a family that gives texts and pictures vectors of its own; no Pooling stands behind it.

    Raises:
        ValueError: a module type or key that is not understood, or modules in an order that makes no vector.
    """
    modules_file = directory / "modules.json"
    model = _read_model_config(directory)
    cross_encoder = model.pop("kind") == "CrossEncoder"
    first, *others = _modules(directory)
    legacy = not cross_encoder and _kind(first, modules_file, own_modules) == "CLIPModel"
    if legacy and vectors is None:
        raise ValueError(f"{modules_file}: {first['type']!r} around a model that does not embed pictures by themselves")
    backbone = backbone_directory(directory)
    fields = _read_transformer(backbone, limits, cross_encoder=cross_encoder, vectors=vectors, legacy=legacy) | model
    if cross_encoder:
        return fields | _read_score(directory) | {"source": "sentence-transformers"}
    token_modules: list[Module] = []
    modules: list[Module] = []
    folders: dict[str, str] = {}
    width = hidden_size  # of the vectors that come out of what was read so far
    for entry in others:
        kind = _kind(entry, modules_file, own_modules)
        file = directory / entry["path"] / "config.json"
        if kind == "Pooling":
            if "pooling" in fields:
                what = "a Pooling module behind vectors of whole texts" if vectors else "two Pooling modules"
                raise ValueError(f"{modules_file}: {what}")
            fields |= _read_pooling(file, width)
            width *= len(fields["pooling"])
        elif kind in _MODULES:
            module, on_tokens = _MODULES[kind](file)
            if on_tokens == ("pooling" in fields):
                raise ValueError(f"{file}: {kind} reads {'token' if on_tokens else 'sentence'} embeddings on the "
                                 "wrong side of the Pooling")  # fmt: skip
            name, chain = ("tokens", token_modules) if on_tokens else ("head", modules)
            folders[f"{name}/{len(chain)}"] = entry["path"]
            chain.append(module)
            width = width_behind(module, width, file)
        elif kind != "Dropout":
            known = ["Transformer", "Pooling", "Dropout", *_MODULES]
            raise ValueError(f"{modules_file}: module type {entry['type']!r} is not supported (supported: {known})")
    if "pooling" not in fields:
        raise ValueError(f"{modules_file}: no Pooling module")
    # A last Normalize is the step that a request may switch.
    normalised = bool(modules) and isinstance(modules[-1], Normalize)
    return fields | {
        "token_modules": tuple(token_modules),
        "modules": tuple(modules[:-1] if normalised else modules),
        "activate": normalised,
        "module_folders": folders,
        "source": "sentence-transformers",
    }


def _modules(directory: Path) -> list[dict[str, Any]]:
    file = directory / "modules.json"
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(m, dict) and {"type", "path"} <= set(m) for m in modules):
        raise ValueError(f"{file}: expected a list of objects with `type` and `path`")
    if not modules:
        raise ValueError(f"{file}: no modules")
    for path in (module["path"] for module in modules):
        # What is read, and written by `convert`, stays inside the model's directory.
        if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{file}: module path {path!r} leads out of the model's directory")
    return modules  # in the order of the list, as sentence-transformers does; nobody reads `idx`


def _kind(entry: Mapping[str, Any], file: Path, own_modules: Mapping[str, str]) -> str:
    TEXT.check(entry["type"], file, "type")
    if entry["type"] in own_modules:
        return own_modules[entry["type"]]
    package, _, kind = str(entry["type"]).rpartition(".")
    if package.split(".")[0] != "sentence_transformers":
        raise ValueError(f"{file}: module type {entry['type']!r} is code of the checkpoint's own, which is never run")
    return kind


def _read_object(file: Path, known: Mapping[str, Kind]) -> dict[str, Any]:
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected an object")
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{file}: unknown keys {unknown}")
    for name, value in values.items():
        known[name].check(value, file, name)
    return values


def _need(file: Path, values: Mapping[str, Any], name: str) -> Any:
    if values.get(name) is None:
        raise ValueError(f"{file}: `{name}` is missing")
    return values[name]


def _read_transformer(
    backbone: Path, limits: Collection[int | None], *, cross_encoder: bool, vectors: Vectors | None, legacy: bool
) -> dict[str, Any]:
    file = next((backbone / name for name in _TRANSFORMER_FILES if (backbone / name).exists()), None)
    arguments = ("model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs")
    known = {
        "max_seq_length": SIZE,
        "do_lower_case": FLAG,
        "transformer_task": TEXT,
        "modality_config": OBJECT,
        "module_output_name": TEXT,
        "processing_kwargs": OBJECT,
        "unpad_inputs": ANYTHING,
        **dict.fromkeys(arguments, OBJECT),
    }
    values = _read_object(file, known) if file else {}
    harmless = {"trust_remote_code", "torch_dtype", "dtype", "attn_implementation"}
    if vectors is None or vectors.padded is None:
        harmless.add("padding_side")  # else the padding is read like other tokens
    for name in arguments:
        if unknown := sorted(set(values.get(name) or {}) - harmless):
            raise ValueError(f"{file}: `{name}` sets {unknown}, which is not understood")
    settings = _CROSS_ENCODER if cross_encoder else _EMBEDDER if vectors is None else _FEATURES
    for name, allowed in settings.items():
        if values.get(name) is not None and values[name] not in allowed:
            raise ValueError(f"{file}: `{name}` is {values[name]!r}, expected one of {list(allowed)}")
    modalities = values.get("modality_config") or {}
    if vectors is not None and not cross_encoder:
        _check_features(file or backbone / _TRANSFORMER_FILES[0], modalities, legacy)
        _check_padding(file, values.get("processing_kwargs") or {}, limits, vectors.padded)
    else:
        output, text = "logits" if cross_encoder else "last_hidden_state", modalities.get("text")
        if text is not None and text != {"method": "forward", "method_output_name": output}:
            raise ValueError(f"{file}: `modality_config` reads {text!r}, only {output!r} of `forward` is understood")
    length = values.get("max_seq_length")
    if length is None:
        length = min((n for n in limits if n and n > 0), default=0)
    fields: dict[str, Any] = {"max_length": int(length), "lower_case": bool(values.get("do_lower_case", False))}
    if vectors is not None and not cross_encoder:
        fields["pooling"] = (vectors.pooling,)
    # Pairs are messages then, put together by the tokenizer's template.
    if "message" not in modalities or not cross_encoder:
        return fields
    generation = bool((values.get("processing_kwargs") or {}).get("chat_template"))
    return fields | {"messages": True, "generation_prompt": generation}


def _check_features(file: Path, modalities: Mapping[str, Any], legacy: bool) -> None:
    """Refuses a Transformer that does not take the model's own vectors, as a CLIPModel always does."""
    if not modalities and not legacy:
        raise ValueError(f"{file}: `modality_config` is missing, which says what a model of texts and pictures answers")
    for name, how in modalities.items():
        understood = [{"method": _METHODS.get(name), "method_output_name": output} for output in _OUTPUTS]
        if name not in _METHODS or how not in understood:
            raise ValueError(
                f"{file}: `modality_config` reads {name!r} by {how!r}, only {_OUTPUTS[0]!r} of {_METHODS} is understood"
            )


def _check_padding(
    file: Path | None, asked: Mapping[str, Any], limits: Collection[int | None], padded: int | None
) -> None:
    """Refuses other calls of the processor than those that pad texts as the model was trained."""
    ways: list[dict[str, Any]] = []
    if padded is not None:
        ways = [{"text": {"padding": "max_length", "max_length": padded}}]
        ways += [{"text": {"padding": "max_length"}}] * (padded in limits)  # the tokenizer's own length
    if asked and asked not in ways:
        raise ValueError(f"{file}: `processing_kwargs` is {asked!r}, expected one of {[{}, *ways]}")
    if padded is not None and not asked:
        once(
            f"texts are padded to {padded} tokens, as the model was trained; sentence-transformers pads them to the "
            f"longest of a batch unless `processing_kwargs` is {ways[0]}"
        )


def _read_score(directory: Path) -> dict[str, Any]:
    """What stands behind a cross-encoder's transformer: nothing, or the tokens that a language model answers with."""
    file = directory / "modules.json"
    modules = _modules(directory)
    _, *kinds = (_kind(entry, file, {}) for entry in modules)
    if not kinds:
        return {}
    if kinds != ["LogitScore"]:
        raise ValueError(f"{file}: behind a cross-encoder's Transformer stand {kinds}, expected a LogitScore")
    known = {"true_token_id": INDEX, "false_token_id": INDEX, "module_input_name": TEXT}
    settings = directory / modules[1]["path"] / "config.json"
    values = _read_object(settings, known)
    true, false = _need(settings, values, "true_token_id"), values.get("false_token_id")
    return {"score_tokens": ((true,), False) if false is None else ((false, true), True)}


def _read_model_config(directory: Path) -> dict[str, Any]:
    file = directory / "config_sentence_transformers.json"
    if not file.exists():
        return {"prompts": _DEFAULT_PROMPTS, "kind": "SentenceTransformer"}
    known = {
        "__version__": ANYTHING,
        "prompts": _PROMPTS,
        "default_prompt_name": TEXT,
        "similarity_fn_name": TEXT,
        "model_type": TEXT,
        "truncate_dim": SIZE,
        "requirements": ANYTHING,
        "activation_fn": TEXT,
        "keep_in_fp32_modules": ANYTHING,  # heads are float32 here
    }
    values = _read_object(file, known)
    kind = values.get("model_type") or "SentenceTransformer"
    if kind not in _KINDS_OF_MODELS:
        raise ValueError(f"{file}: `model_type` is {kind!r}, expected one of {_KINDS_OF_MODELS}")
    prompts = {**_DEFAULT_PROMPTS, **{name: text or "" for name, text in (values.get("prompts") or {}).items()}}
    default = values.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ValueError(
            f"{file}: `default_prompt_name` is {default!r}, which is not among the prompts {list(prompts)}"
        )
    similarity = values.get("similarity_fn_name") or "cosine"
    if similarity not in _SIMILARITIES:
        raise ValueError(f"{file}: `similarity_fn_name` is {similarity!r}, expected one of {_SIMILARITIES}")
    activation = values.get("activation_fn")
    return {
        "kind": kind,
        "activation": None if activation is None else by_name(activation, f"{file}: `activation_fn`"),
        "prompts": prompts,
        "default_prompt": default,
        "similarity": similarity,
        "truncate_dim": values.get("truncate_dim"),
    }


def _read_pooling(file: Path, token_width: int) -> dict[str, Any]:
    known = {
        "word_embedding_dimension": SIZE,
        "embedding_dimension": SIZE,
        "pooling_mode": _MODES,
        "include_prompt": FLAG,
        **dict.fromkeys(_POOLING_FLAGS, FLAG),
    }
    values = _read_object(file, known)
    width = values.get("embedding_dimension", values.get("word_embedding_dimension"))
    if width is not None and width != token_width:
        raise ValueError(f"{file}: pools vectors of {width}, but the model's have {token_width}")
    mode = values.get("pooling_mode")
    if mode is None:
        modes = tuple(name for flag, name in _POOLING_FLAGS.items() if values.get(flag)) or ("mean",)
    else:
        modes = (mode,) if isinstance(mode, str) else tuple(mode)
    if unknown := [m for m in modes if m not in POOLERS]:
        raise ValueError(f"{file}: `pooling_mode` {unknown} unknown, expected of {list(POOLERS)}")
    return {"pooling": modes, "include_prompt": bool(values.get("include_prompt", True))}


def _on_tokens(file: Path, values: Mapping[str, Any]) -> bool:
    source = values.get("module_input_name") or "sentence_embedding"
    target = values.get("module_output_name") or source
    if source != target or source not in ("sentence_embedding", "token_embeddings"):
        raise ValueError(f"{file}: reads {source!r} and writes {target!r}, which is not supported")
    return source == "token_embeddings"


def _read_dense(file: Path) -> tuple[Module, bool]:
    known = {
        "in_features": SIZE,
        "out_features": SIZE,
        "bias": FLAG,
        "activation_function": TEXT,
        "use_residual": FLAG,
        **_NAMES,
    }
    values = _read_object(file, known)
    name = values.get("activation_function", "torch.nn.modules.activation.Tanh")
    if name not in _ACTIVATIONS:
        raise ValueError(f"{file}: `activation_function` is {name!r}, expected one of {sorted(_ACTIVATIONS)}")
    module = Dense(
        inputs=_need(file, values, "in_features"),
        outputs=_need(file, values, "out_features"),
        bias=bool(values.get("bias", True)),
        activation=_ACTIVATIONS[name],
        residual=bool(values.get("use_residual", False)),
    )
    return module, _on_tokens(file, values)


def _read_layer_norm(file: Path) -> tuple[Module, bool]:
    return LayerNorm(_need(file, _read_object(file, {"dimension": SIZE}), "dimension")), False


def _read_normalize(file: Path) -> tuple[Module, bool]:
    # Older checkpoints have no such file, often not even the folder.
    values = _read_object(file, _NAMES) if file.exists() else {}
    return Normalize(), _on_tokens(file, values)


_MODULES: Mapping[str, Callable[[Path], tuple[Module, bool]]] = {
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
}
