"""A `tokenizer.model` -> the Rust tokenizer that gives the same ids, for checkpoints without a tokenizer.json.

As transformers' slow tokenizers do it: a text is cut at the tokens that tokenizer_config.json names, and SentencePiece
gets what lies between them, each part with a blank in front if the file asks for one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxpool.converters.checkpoint import read_json
from jaxpool.models.hf_config import FLAG, OBJECT, TEXT
from jaxpool.sentencepiece_file import Kind, Piece, SentencePieceFile, read_sentencepiece

FILE = "tokenizer.model"

# What is put round a text: (attribute, default, token's name, its default), as InternLM2's and Llama's classes have it.
_FIRST = ("add_bos_token", True, "bos_token", "<s>")
_LAST = ("add_eos_token", False, "eos_token", "</s>")
_NAMED = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
_MATCHING = ("lstrip", "rstrip", "single_word")


def load_sentencepiece(directory: Path) -> Any:
    """Makes a `tokenizers.Tokenizer` of a directory's tokenizer.model and tokenizer_config.json.

    A token of `added_tokens_decoder` takes the place of the piece that has its id. Where tokenizer_config.json does
    not say otherwise, "<s>" is put before a text and nothing behind it.

    Raises:
        ValueError: a file is broken, or says something that cannot be kept; the file is named.
    """
    from tokenizers import AddedToken

    file, settings = directory / FILE, directory / "tokenizer_config.json"
    config = _read_config(settings)
    added = _added_tokens(config, settings)
    model = _with_added(read_sentencepiece(file), added, file, settings)
    try:
        backend = _BUILDERS[model.model_type](model)
    except Exception as error:  # tokenizers raises the bare class
        raise ValueError(f"{file}: {error}") from error
    backend.add_tokens([added[i] for i in sorted(added)])
    known = {token.content for token in added.values()}
    special = dict.fromkeys([*model.texts(Kind.UNKNOWN, Kind.CONTROL), *_named(config, settings)])
    backend.add_tokens([AddedToken(text, special=True, normalized=False) for text in special if text not in known])
    backend.normalizer = _normalizer(model)
    if whole := sorted(model.texts(Kind.USER_DEFINED), key=len, reverse=True):
        backend.pre_tokenizer = _keep_whole(whole)
    _surround(backend, config, settings)
    return backend


# tokenizer_config.json


def _read_config(settings: Path) -> dict[str, Any]:
    config = read_json(settings) if settings.exists() else {}
    if not isinstance(config, dict):
        raise ValueError(f"{settings} holds a {type(config).__name__}, expected an object")
    return config


def _added_tokens(config: Mapping[str, Any], settings: Path) -> dict[int, Any]:
    """`added_tokens_decoder`, by id. All are looked for in the text as it is given, as the slow tokenizers do."""
    from tokenizers import AddedToken

    OBJECT.check(stored := config.get("added_tokens_decoder"), settings, "added_tokens_decoder")
    added = {}
    for number, values in (stored or {}).items():
        name = f"added_tokens_decoder.{number}"
        content = _content(values, settings, name)
        if not number.isdecimal() or not content:
            raise ValueError(f"{settings}: `{name}` is {values!r}, expected an id and a token's `content`")
        flags = {key: bool(values.get(key)) for key in ("special", *_MATCHING)} if isinstance(values, dict) else {}
        added[int(number)] = AddedToken(content, normalized=False, **flags)
    return added


def _content(value: Any, settings: Path, name: str) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    TEXT.check(content, settings, name)
    return content


def _named(config: Mapping[str, Any], settings: Path) -> Iterator[str]:
    values = {name: config.get(name) for name in _NAMED}
    values |= {f"additional_special_tokens.{i}": x for i, x in enumerate(config.get("additional_special_tokens") or ())}
    for name, value in values.items():
        if content := _content(value, settings, name):
            yield content


def _with_added(model: SentencePieceFile, added: Mapping[int, Any], file: Path, settings: Path) -> SentencePieceFile:
    """The model with the added tokens for pieces; none of them is ever the outcome of cutting a text."""
    pieces = list(model.pieces)
    for i, token in sorted(added.items()):
        if i > len(pieces):
            raise ValueError(f"{settings}: `added_tokens_decoder` has {i}, but nothing has the id {len(pieces)}")
        unknown = i < len(pieces) and pieces[i].kind == Kind.UNKNOWN
        pieces[i : i + 1] = [Piece(token.content, 0.0, Kind.UNKNOWN if unknown else Kind.CONTROL)]
    if twice := [text for text, count in Counter(piece.text for piece in pieces).items() if count > 1]:
        raise ValueError(f"{file} and {settings} give {twice[0]!r} two ids")
    return replace(model, pieces=tuple(pieces))


def _surround(backend: Any, config: Mapping[str, Any], settings: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    ends: list[list[str]] = []
    for flag, default, name, usual in (_FIRST, _LAST):
        FLAG.check(config.get(flag), settings, flag)
        token = _content(config.get(name), settings, name) or usual
        ends.append([token] if config.get(flag, default) else [])
        if ends[-1] and backend.token_to_id(token) is None:
            raise ValueError(f"{settings}: `{flag}` asks for {token!r}, which is no token")
    first, last = ends
    if tokens := [*first, *last]:
        backend.post_processor = TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", "$B", *last],
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(tokens)],
        )


# tokenizer.model


def _bpe(model: SentencePieceFile) -> Any:
    from tokenizers import Tokenizer, models

    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind == Kind.NORMAL}
    unused = model.texts(Kind.UNUSED)
    mergeable = {*scores, *unused}
    if any(len(text) == 1 or any(_splits(text, mergeable)) for text in unused):
        raise ValueError("its unused pieces take part in merges, which is not understood")
    (unknown,) = model.texts(Kind.UNKNOWN)
    make = partial(models.BPE, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)
    merges = _merges(scores)
    backend = Tokenizer(make(vocab=ids, merges=merges))
    if not model.texts(Kind.USER_DEFINED):
        return backend
    # User-defined pieces, which the pre-tokenizer cuts out, are found as they are, without merges. So would be pieces
    # that no merges lead to, and that SentencePiece never makes: they have to go.
    for text, encoded in zip(scores, backend.encode_batch_fast(list(scores)), strict=True):
        if len(encoded.ids) > 1:
            del ids[text]
    merges = [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]
    return Tokenizer(make(vocab=ids, merges=merges, ignore_merges=True))


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, the best pieces' first.

    SentencePiece merges the two neighbours whose piece has the highest score, from the left. Two ways to the same
    piece never compete: what merges within its characters does not depend on what stands round them.
    """
    best_first = sorted(scores, key=lambda text: -scores[text])
    return [split for text in best_first for split in _splits(text, scores)]


def _splits(text: str, pieces: Collection[str]) -> Iterator[tuple[str, str]]:
    for i in range(1, len(text)):
        if text[:i] in pieces and text[i:] in pieces:
            yield text[:i], text[i:]


def _unigram(model: SentencePieceFile) -> Any:
    from tokenizers import Tokenizer, models

    if model.texts(Kind.UNUSED):
        raise ValueError("it has unused pieces, which are not understood")
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.kind == Kind.UNKNOWN)
    vocabulary = [(piece.text, piece.score) for piece in model.pieces]
    return Tokenizer(models.Unigram(vocabulary, unknown, model.byte_fallback))


_BUILDERS: Mapping[str, Callable[[SentencePieceFile], Any]] = {"bpe": _bpe, "unigram": _unigram}


def _normalizer(model: SentencePieceFile) -> Any:
    from tokenizers import Regex
    from tokenizers.normalizers import Precompiled, Prepend, Replace, Sequence

    steps: list[tuple[bool, Callable[[], Any]]] = [
        (bool(model.charsmap), lambda: Precompiled(model.charsmap)),
        (model.remove_extra_whitespaces, lambda: Replace(Regex(r"\A +"), "")),
        (model.remove_extra_whitespaces, lambda: Replace(Regex(" {2,}"), " ")),
        (model.add_dummy_prefix, lambda: Prepend("▁")),  # nothing, where the text is empty
        (True, lambda: Replace(" ", "▁")),
        # Looking back keeps a long run that ends elsewhere from being tried from each of its characters.
        (model.remove_extra_whitespaces, lambda: Replace(Regex(r"(?<!▁)▁+\z"), "")),
    ]
    return Sequence([make() for wanted, make in steps if wanted])


def _keep_whole(texts: list[str]) -> Any:
    """Cuts out the texts, of those that begin at one place the first in the list.

    They are no added tokens, as SentencePiece puts no blank in front of what follows them.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    return Split(Regex("|".join(map(re.escape, texts))), "isolated")
