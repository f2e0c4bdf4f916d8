"""A model directory's tokenizer files -> the tokenizer that transformers would make of them.

tokenizer.json is read as it is (importing transformers costs seconds), with what transformers would change in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpool.converters.checkpoint import read_json
from jaxpool.sentencepiece_model import FILE as SENTENCEPIECE
from jaxpool.sentencepiece_model import load_sentencepiece

# tokenizer_config.json's settings, each with its default, that transformers' tokenizers of BERT's kind put over
# tokenizer.json's normaliser; the classes that say "as in tokenizer.json" do not.
_BERT_NORMALIZER = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
_AS_STORED = ("PreTrainedTokenizerFast", "TokenizersBackend")

_SPECIAL_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

# Classes that are the checkpoint's own code, over a tokenizer.model as it is.
_AS_SENTENCEPIECE = ("InternLM2Tokenizer",)

# The class that transformers takes for a config.json's model_type: whatever tokenizer_config.json names, …
_ALWAYS = dict.fromkeys(("llava_next", "mistral", "modernbert", "phi3_v"), "TokenizersBackend") | {
    "qwen2": "Qwen2Tokenizer"
}
# … or where it names none. (Its `add_bos_token` and `add_eos_token` have no say beside a tokenizer.json.)
_UNNAMED = dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer") | {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "distilbert": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}

# The classes that give token types where tokenizer_config.json's `model_input_names` does not say; all others do not.
_WITH_TOKEN_TYPES = frozenset(
    f"{name}Tokenizer"
    for name in (
        "Bert",
        "ConvBert",
        "DPRContextEncoder",
        "DPRQuestionEncoder",
        "Deberta",
        "DebertaV2",
        "Electra",
        "FNet",
        "LayoutLM",
        "MobileBert",
        "SqueezeBert",
    )
)

# The classes that put a post-processor of their own in the stored one's place: its name among tokenizers' processors,
# its options, and the settings that name the first and the last token, each with its default.
_CLS_SEP = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
_ENDS: Mapping[str, tuple[str, dict[str, bool], dict[str, str]]] = {
    "BertTokenizer": ("BertProcessing", {}, _CLS_SEP),
    "DistilBertTokenizer": ("BertProcessing", {}, _CLS_SEP),
    "ElectraTokenizer": ("BertProcessing", {}, _CLS_SEP),
    "MPNetTokenizer": ("RobertaProcessing", {"add_prefix_space": False}, {"cls_token": "<s>", "sep_token": "</s>"}),
    "RobertaTokenizer": ("RobertaProcessing", {"add_prefix_space": False}, {"cls_token": "<s>", "sep_token": "</s>"}),
    "CamembertTokenizer": ("RobertaProcessing", {"trim_offsets": False}, {"bos_token": "<s>", "eos_token": "</s>"}),
    "XLMRobertaTokenizer": ("RobertaProcessing", {"trim_offsets": False}, {"bos_token": "<s>", "eos_token": "</s>"}),
}


@dataclass(frozen=True)
class StoredTokenizer:
    """What a directory's tokenizer files say.

    Attributes:
        backend: the `tokenizers.Tokenizer`.
        truncation_side: "right" or "left".
        token_types: whether a pair comes with token types.
        special_tokens: the texts of the special tokens that are named, by name ("pad_token", "bos_token", …).
    """

    backend: Any
    truncation_side: str
    token_types: bool
    special_tokens: Mapping[str, str]


def read_tokenizer(directory: Path, *, lower_case: bool = False) -> StoredTokenizer:
    """Reads the tokenizer of a model directory.

    What is changed in tokenizer.json: truncation and padding are off; tokenizer_config.json has its say over a BERT
    normaliser; and some classes put parts of their own in the place of stored ones.

    Args:
        directory: with tokenizer.json, or whatever transformers can make a fast tokenizer from.
        lower_case: sentence-transformers' `do_lower_case`.

    Raises:
        ValueError: no tokenizer in the directory, or one that has no fast form.
    """
    file = directory / "tokenizer.json"
    if file.exists():
        stored = _from_file(file)
    elif (directory / SENTENCEPIECE).exists() and _class_name(*_configs(directory)) in _AS_SENTENCEPIECE:
        stored = _from_sentencepiece(directory)
    else:
        stored = _from_transformers(directory)
    stored.backend.no_truncation()
    stored.backend.no_padding()
    if lower_case:
        _prepend_lower_case(stored.backend)
    return stored


def read_chat_template(directory: Path) -> str | None:
    """The directory's chat template: chat_template.jinja, else tokenizer_config.json's (of several the "default").

    Raises:
        ValueError: `chat_template` is neither a text nor a list of named ones.
    """
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    file = directory / "tokenizer_config.json"
    template = _read_object(file).get("chat_template")
    if isinstance(template, list) and all(isinstance(one, dict) for one in template):
        template = {one.get("name"): one.get("template") for one in template}.get("default")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{file}: `chat_template` is {template!r:.60}, expected a text or a list of named texts")
    return template


def _from_file(file: Path) -> StoredTokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # tokenizers raises the bare class
        raise ValueError(f"{file} is not a valid tokenizer: {error}") from error
    config, model = _configs(file.parent)
    config = _with_special_tokens(config, file.with_name("special_tokens_map.json"))
    name = _class_name(config, model)
    _set_bert_normalizer(backend, config)
    if rebuild := _REBUILT.get(name):
        rebuild(backend, config)
    if name in _ENDS:
        _set_ends(backend, config, *_ENDS[name])
    inputs = config.get("model_input_names")
    return StoredTokenizer(
        backend,
        _truncation_side(config, backend, file.with_name("tokenizer_config.json")),
        token_types=name in _WITH_TOKEN_TYPES if inputs is None else "token_type_ids" in inputs,
        special_tokens=_special_tokens(config),
    )


def _from_sentencepiece(directory: Path) -> StoredTokenizer:
    """Of a class that is a checkpoint's own code, which is never run, over a file that is well known."""
    backend, (config, _) = load_sentencepiece(directory), _configs(directory)
    side = _truncation_side(config, backend, directory / "tokenizer_config.json")
    return StoredTokenizer(backend, side, token_types=False, special_tokens=_special_tokens(config))


def _configs(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config, model = (_read_object(directory / name) for name in ("tokenizer_config.json", "config.json"))
    return config, model


def _class_name(config: dict[str, Any], model: dict[str, Any]) -> str:
    kind = str(model.get("model_type"))
    named = config.get("tokenizer_class") or model.get("tokenizer_class") or _UNNAMED.get(kind, "")
    return _ALWAYS.get(kind, named).removesuffix("Fast")


def _with_special_tokens(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Older checkpoints name the special tokens in a file of their own, which goes over tokenizer_config.json."""
    return config if "added_tokens_decoder" in config else config | _read_object(file)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: text for name in _SPECIAL_TOKENS if (text := _token(config.get(name))) is not None}


def _token(value: Any) -> str | None:
    """A token's text, whether stored as such or as an AddedToken."""
    return value.get("content") if isinstance(value, dict) else value


def _set_bert_normalizer(backend: Any, config: dict[str, Any]) -> None:
    from tokenizers.normalizers import BertNormalizer

    if isinstance(backend.normalizer, BertNormalizer) and config.get("tokenizer_class") not in _AS_STORED:
        for key, (attribute, default) in _BERT_NORMALIZER.items():
            setattr(backend.normalizer, attribute, default if config.get(key) is None else config[key])


def _set_ends(
    backend: Any, config: dict[str, Any], name: str, options: dict[str, bool], tokens: dict[str, str]
) -> None:
    from tokenizers import processors

    texts = [_token(config.get(key)) or default for key, default in tokens.items()]
    first, last = ((text, backend.token_to_id(text)) for text in texts)
    if first[1] is not None and last[1] is not None:
        backend.post_processor = getattr(processors, name)(last, first, **options)


def _read_object(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _as_llama(backend: Any, config: dict[str, Any]) -> None:
    """Blanks become "▁" in the pre-tokenizer, which knows where a text begins; Llama 2's stored normaliser did not."""
    from tokenizers.pre_tokenizers import Metaspace

    if "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}":
        return  # Llama 3 under the name of Llama 2's class
    scheme = "always" if config.get("legacy") else "first"
    if config.get("add_prefix_space") is False:
        scheme = "never"
    backend.normalizer = None
    backend.pre_tokenizer = Metaspace(prepend_scheme=scheme, split=False)


def _as_gemma(backend: Any, config: dict[str, Any]) -> None:
    from tokenizers.normalizers import Replace
    from tokenizers.pre_tokenizers import Split

    backend.normalizer = Replace(" ", "▁")
    backend.pre_tokenizer = Split(" ", "merged_with_previous")


def _as_qwen2(backend: Any, config: dict[str, Any]) -> None:
    from tokenizers import Regex
    from tokenizers.normalizers import NFC
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as Chain

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    spell = ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")), use_regex=False)
    backend.normalizer = NFC()
    backend.pre_tokenizer = Chain([Split(Regex(words), "isolated"), spell])


# What these classes of transformers put in the stored normaliser's and pre-tokenizer's place.
_REBUILT: Mapping[str, Callable[[Any, dict[str, Any]], None]] = {
    "LlamaTokenizer": _as_llama,
    "GemmaTokenizer": _as_gemma,
    "Qwen2Tokenizer": _as_qwen2,
}


def _truncation_side(config: dict[str, Any], backend: Any, file: Path) -> str:
    stored = backend.truncation or {}
    side = config.get("truncation_side") or stored.get("direction", "right")
    if side not in ("left", "right"):
        raise ValueError(f"{file}: `truncation_side` is {side!r}, expected 'left' or 'right'")
    return side


def _prepend_lower_case(backend: Any) -> None:
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as Chain

    rest = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = Chain([Lowercase(), *rest])


def _from_transformers(directory: Path) -> StoredTokenizer:
    with _quiet_import():
        from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # transformers raises many kinds
        raise ValueError(f"{directory} holds no tokenizer that loads without its own code: {error}") from error
    token_types = "token_type_ids" in tokenizer.model_input_names
    return StoredTokenizer(
        backend, tokenizer.truncation_side, token_types, _special_tokens(tokenizer.special_tokens_map)
    )


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Keeps transformers' "PyTorch was not found" line, of no concern to jaxpool's users, off the terminal."""
    hush = logging.Filter("nobody")
    hush.filter = lambda record: "PyTorch was not found" not in record.getMessage()  # type: ignore[method-assign]
    target = logging.getLogger("transformers")
    target.addFilter(hush)
    try:
        yield
    finally:
        target.removeFilter(hush)
