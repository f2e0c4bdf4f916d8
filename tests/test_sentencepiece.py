"""tokenizer.model -> tokenizer, against SentencePiece itself: the same ids, part by part between the added tokens."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpool.sentencepiece_file import Kind, read_sentencepiece
from jaxpool.sentencepiece_model import load_sentencepiece
from jaxpool.tokens import Tokenizer
from tests.nasty import NASTY

spm = pytest.importorskip("sentencepiece")

CORPUS = (
    "the quick brown fox jumps over the lazy dog while seven wizards box with jugs of liquid",
    "A stitch in time saves nine; Don't count Your chickens before they Hatch!",
    "naïve café über Straße señor façade ångström crème brûlée",
    "banana bananas ananas anagram ana na nana abababab aaaa aaaaaaaa",
    "0123456789 3.14159 (a + b) * c = [x, y]; return None",
    "日本語 漢字 東京 中文 한국어 русский текст نص عربي שלום",
)
EXTRA = (
    "  two  blanks   in front,  between and behind  ",
    "\u00a0 other\u2003blanks\u3000here \t",
    "▁ ▁▁ spelt▁out▁",
    "▁",
    "<s> </s> <unk> <ctl> <0x0A> <0x41> spelt out",
    "aaa aaaaa abababa nanana bananananas",
    "[UNUSED_TOKEN_1]",
    "[UNUSED_TOKEN_2][UNUSED_TOKEN_1] [UNUSED_TOKEN_3]fox[UNUSED_TOKEN_1",
    "  \n\n\n    indented\n\tby tabs\r\n",
)
TEXTS = (*NASTY, *EXTRA)
GRAPHEMES = "[\u0300-\u036f\u200b-\u200d\u093e-\u094d\u0e31-\u0e4e]"
TIED = "aaa|a.?na"
USER_DEFINED = ["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]", "[UNUSED_TOKEN_3]", "[UNUSED_TOKEN_30]", "▁▁", "▁▁▁▁", "\n"]
INTERNLM2 = {"byte_fallback": True, "user_defined_symbols": USER_DEFINED}

# name -> options of the training
MODELS: dict[str, dict[str, Any]] = {
    "bpe-bytes": {"byte_fallback": True},
    "bpe-bytes-user-defined": INTERNLM2,
    "bpe-bytes-no-prefix": INTERNLM2 | {"add_dummy_prefix": False},
    "bpe-bytes-fewer-blanks": {"byte_fallback": True, "remove_extra_whitespaces": True},
    "bpe-bytes-fewer-blanks-no-prefix": {
        "byte_fallback": True,
        "remove_extra_whitespaces": True,
        "add_dummy_prefix": False,
    },
    "bpe-unknown": {},
    "bpe-unknown-user-defined": {"user_defined_symbols": USER_DEFINED},
    "bpe-across-blanks": {"byte_fallback": True, "split_by_whitespace": False, "split_by_number": False},
    "bpe-bytes-nfkc": {"byte_fallback": True, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "unigram": {"model_type": "unigram", "vocab_size": 180},
    "unigram-user-defined": {"model_type": "unigram", "vocab_size": 200, "user_defined_symbols": USER_DEFINED[:4]},
    "unigram-nfkc": {
        "model_type": "unigram",
        "vocab_size": 180,
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
    },
}


@cache
def train(name: str) -> bytes:
    return _train(**MODELS[name])


def _train(**options: Any) -> bytes:
    out = io.BytesIO()
    usual = {
        "model_type": "bpe",
        "vocab_size": 600,
        "hard_vocab_limit": False,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "control_symbols": ["<ctl>"],
        "num_threads": 1,
        "minloglevel": 2,
    }
    spm.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS * 3), model_writer=out, **(usual | options))
    return out.getvalue()


def write(directory: Path, model: bytes, config: dict[str, Any] | None = None) -> Path:
    (directory / "tokenizer.model").write_bytes(model)
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def reference(model: bytes, added: dict[str, int]) -> Callable[[str], list[int]]:
    """As a slow tokenizer does it: the text is cut at the added tokens, and SentencePiece gets each part."""
    processor = spm.SentencePieceProcessor(model_proto=model)
    longest_first = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))

    def encode(text: str) -> list[int]:
        parts = re.split(f"({longest_first})", text)
        return [i for part in parts for i in ([added[part]] if part in added else processor.encode(part))]

    return encode


def special(model: bytes) -> dict[str, int]:
    processor = spm.SentencePieceProcessor(model_proto=model)
    return {token: processor.piece_to_id(token) for token in ("<unk>", "<s>", "</s>", "<ctl>")}


def random_texts(count: int, seed: int = 0) -> Iterable[str]:
    """Words and what may stand between them, in any order."""
    rng = np.random.default_rng(seed)
    words = [word for line in CORPUS for word in line.split()]
    pieces = [
        *words,
        *words,
        *(word[:3] for word in words),
        *" " * 40,
        "  ",
        "   ",
        *USER_DEFINED,
        "<s>",
        "</s>",
        "▁",
        "🙂",
    ]
    for _ in range(count):
        yield "".join(rng.choice(pieces, rng.integers(1, 40)))


def assert_same(backend: Any, encode: Callable[[str], list[int]], texts: Iterable[str]) -> None:
    for text in texts:
        assert backend.encode(text, add_special_tokens=False).ids == encode(text), repr(text[:200])


@pytest.mark.parametrize("name", MODELS)
def test_sentencepieces_own_ids(name: str, tmp_path: Path) -> None:
    model = train(name)
    backend = load_sentencepiece(write(tmp_path, model))
    texts = [*TEXTS, *random_texts(300)]
    if "nfkc" in name:  # the Rust normaliser looks up whole graphemes, SentencePiece the longest match
        texts = [text for text in texts if not re.search(GRAPHEMES, text)]
    encode = reference(model, special(model))
    if "unigram" in name:  # pieces may stand in any order where that changes no score: "aa a" or "a aa"
        texts, tied = [text for text in texts if not re.search(TIED, text)], [t for t in texts if re.search(TIED, t)]
        assert [sorted(backend.encode(text).ids[1:]) for text in tied] == [sorted(encode(text)) for text in tied]
    assert_same(backend, encode, texts)
    assert backend.get_vocab_size() <= spm.SentencePieceProcessor(model_proto=model).get_piece_size()


@pytest.mark.parametrize("name", ["bpe-bytes", "bpe-bytes-user-defined", "bpe-across-blanks"])
def test_every_stretch_of_a_text(name: str, tmp_path: Path) -> None:
    """Merges depend on what stands beside them: every beginning and every end of a line."""
    model = train(name)
    text = "  ".join(CORPUS)
    parts = [*(text[:i] for i in range(0, len(text), 3)), *(text[i:] for i in range(0, len(text), 3))]
    assert_same(load_sentencepiece(write(tmp_path, model)), reference(model, special(model)), parts)


@pytest.mark.parametrize("name", ["bpe-bytes-user-defined", "bpe-bytes-fewer-blanks"])
def test_a_huge_text(name: str, tmp_path: Path) -> None:
    model = train(name)
    texts = [" ".join(CORPUS) * 1000, "a" * 100_000, " " * 100_000, "▁" * 100_000 + "a", "[UNUSED_TOKEN_" * 20_000]
    assert_same(load_sentencepiece(write(tmp_path, model)), reference(model, special(model)), texts)


# tokenizer_config.json


def internlm2(directory: Path, **changes: Any) -> tuple[bytes, dict[str, int]]:
    """Three user-defined pieces give their places to chat tokens, and one comes behind the last id."""
    model = train("bpe-bytes-user-defined")
    processor = spm.SentencePieceProcessor(model_proto=model)
    places = {
        "<unk>": 0,
        "<s>": 1,
        "</s>": 2,
        "<|im_end|>": processor.piece_to_id("[UNUSED_TOKEN_1]"),
        "<|im_start|>": processor.piece_to_id("[UNUSED_TOKEN_3]"),
        "<|reward|>": processor.piece_to_id("[UNUSED_TOKEN_30]"),
        "<|new|>": processor.get_piece_size(),
    }
    decoder = {
        str(i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "special": text != "<|new|>"}
        for text, i in places.items()
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|reward|>"],
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }
    write(directory, model, {key: value for key, value in (config | changes).items() if value is not ...})
    return model, places


def test_added_tokens_within_the_vocabulary(tmp_path: Path) -> None:
    model, places = internlm2(tmp_path)
    backend = load_sentencepiece(tmp_path)
    chats = (
        "<|im_start|>user\nHello, fox!<|im_end|>\n<|im_start|>assistant\n the fox<|im_end|>\n<|reward|>",
        "<|im_end|>",
        " <|im_end|> <|reward|><|reward|>a<|new|> b [UNUSED_TOKEN_2]",
        "<|im_end|",
    )
    # What gave its place to another is a text like any other.
    gone = r"\[UNUSED_TOKEN_(1|3|30)\]"
    texts = [text for text in (*chats, *TEXTS, *random_texts(200, 1)) if not re.search(gone, text)]
    assert len(texts) > 100
    assert_same(backend, reference(model, places | special(model)), texts)
    for text, i in places.items():
        assert backend.token_to_id(text) == i
    spelt = backend.encode("[UNUSED_TOKEN_1]", add_special_tokens=False).ids
    assert not {*spelt} & {*places.values()}
    assert backend.get_vocab_size() <= max(places.values()) + 1
    marked = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    assert marked == {i for text, i in places.items() if text != "<|new|>"} | {special(model)["<ctl>"]}


def test_matching_of_added_tokens(tmp_path: Path) -> None:
    model = train("bpe-bytes")
    size = spm.SentencePieceProcessor(model_proto=model).get_piece_size()
    decoder = {
        str(size): {"content": "<l>", "lstrip": True, "rstrip": False, "special": True},
        str(size + 1): {"content": "<r>", "rstrip": True, "special": False},
        str(size + 2): "<plain>",
    }
    backend = load_sentencepiece(write(tmp_path, model, {"added_tokens_decoder": decoder}))
    encode = reference(model, {"<l>": size, "<r>": size + 1, "<plain>": size + 2})
    ids = backend.encode("fox  <l> a <r>  b <plain> c", add_special_tokens=False).ids
    assert ids == encode("fox<l> a <r>b <plain> c")


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        ({}, [1], []),
        ({"add_bos_token": ..., "add_eos_token": ...}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": False, "add_eos_token": True}, [], [2]),
        ({"add_eos_token": True}, [1], [2]),
        ({"bos_token": ..., "eos_token": ..., "add_eos_token": True}, [1], [2]),
        ({"bos_token": "</s>", "add_eos_token": True}, [2], [2]),
    ],
)
def test_what_is_put_round_a_text(changes: dict[str, Any], before: list[int], after: list[int], tmp_path: Path) -> None:
    model, _ = internlm2(tmp_path, **changes)
    backend = load_sentencepiece(tmp_path)
    fox = reference(model, {"<s>": 1})("the fox")
    assert backend.encode("the fox").ids == [*before, *fox, *after]
    assert backend.encode("").ids == [*before, *after]
    assert backend.encode("the fox", "the fox").ids == [*before, *fox, *fox, *after]
    assert Tokenizer(backend).special_count == len(before) + len(after)


def test_without_a_tokenizer_config(tmp_path: Path) -> None:
    backend = load_sentencepiece(write(tmp_path, train("bpe-bytes")))
    assert backend.encode("fox").ids[0] == 1


def test_a_named_token_that_the_file_lacks_comes_last(tmp_path: Path) -> None:
    model = train("bpe-bytes")
    backend = load_sentencepiece(write(tmp_path, model, {"pad_token": "<pad>"}))
    size = spm.SentencePieceProcessor(model_proto=model).get_piece_size()
    assert backend.encode("<pad>", add_special_tokens=False).ids == [size]


def test_truncation_through_the_engines_tokenizer(tmp_path: Path) -> None:
    """A text that is cut before it is tokenised gives the ids that it gives as a whole."""
    model, _ = internlm2(tmp_path)
    tokenizer = Tokenizer(load_sentencepiece(tmp_path))
    text = " ".join(CORPUS) * 200
    (encoded,) = tokenizer.encode([text], 20)
    assert encoded.truncated
    assert encoded.ids.tolist() == [1, *spm.SentencePieceProcessor(model_proto=model).encode(text)[:19]]


# Files


def edited(name: str, change: Callable[[Any], None]) -> bytes:
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    proto = pb2.ModelProto.FromString(train(name))
    change(proto)
    return proto.SerializeToString()


def piece(proto: Any, text: str) -> Any:
    return next(p for p in proto.pieces if p.piece == text)


@pytest.mark.parametrize("name", MODELS)
def test_reads_what_protobuf_reads(name: str, tmp_path: Path) -> None:
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    proto = pb2.ModelProto.FromString(train(name))
    model = read_sentencepiece(write(tmp_path, train(name)) / "tokenizer.model")
    assert [tuple(p) for p in model.pieces] == [(p.piece, p.score, p.type) for p in proto.pieces]
    assert model.model_type == {1: "unigram", 2: "bpe"}[proto.trainer_spec.model_type]
    assert model.byte_fallback == proto.trainer_spec.byte_fallback
    normaliser = proto.normalizer_spec
    assert model.charsmap == normaliser.precompiled_charsmap
    assert model.add_dummy_prefix == normaliser.add_dummy_prefix
    assert model.remove_extra_whitespaces == normaliser.remove_extra_whitespaces


def test_pieces_that_no_merges_lead_to(tmp_path: Path) -> None:
    """SentencePiece never makes them, though a text may be spelt the same."""

    def change(proto: Any) -> None:
        piece(proto, "▁the").piece = "▁xyzw"
        proto.pieces.add(piece="▁qzqz", score=-1000.0)

    model = edited("bpe-bytes-user-defined", change)
    assert Kind.NORMAL in {p.kind for p in read_sentencepiece(write(tmp_path, model) / "tokenizer.model").pieces}
    backend = load_sentencepiece(tmp_path)
    assert_same(backend, reference(model, special(model)), ["xyzw", "qzqz", "the", "the qzqz", *TEXTS])


def test_unused_pieces(tmp_path: Path) -> None:
    model = edited("bpe-bytes", lambda proto: proto.pieces.add(piece="[UNUSED_7]", score=0.0, type=5))
    backend = load_sentencepiece(write(tmp_path, model))
    assert_same(backend, reference(model, special(model)), ["[UNUSED_7] fox", *TEXTS])
    write(tmp_path, edited("bpe-bytes", lambda proto: setattr(piece(proto, "▁the"), "type", 5)))
    with pytest.raises(ValueError, match=r"tokenizer\.model: .*unused"):
        load_sentencepiece(tmp_path)
    write(tmp_path, edited("unigram", lambda proto: setattr(piece(proto, "▁"), "type", 5)))
    with pytest.raises(ValueError, match=r"tokenizer\.model: .*unused"):
        load_sentencepiece(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "0 pieces for what is unknown"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "wire type"),
        (lambda: train("bpe-bytes")[:5000], "field of|pieces for what is unknown"),
        (lambda: train("bpe-bytes")[:-1], "field of"),
        (lambda: b"\x0a" + b"\xff" * 30, "endless"),
        (lambda: b"\x0a", "index out of range"),
        (lambda: b"\x08\x01", "0 pieces|NoneType|len"),
        (lambda: _train(model_type="char"), "'char'"),
        (lambda: _train(model_type="word"), "'word'"),
        (lambda: _train(treat_whitespace_as_suffix=True), "in front of words"),
        (lambda: edited("bpe-bytes", lambda proto: setattr(piece(proto, "<unk>"), "type", 1)), "0 pieces"),
        (lambda: edited("bpe-bytes", lambda proto: setattr(piece(proto, "▁the"), "piece", "")), "without text"),
        (lambda: edited("bpe-bytes", lambda proto: setattr(piece(proto, "▁the"), "piece", "a")), "'a' two ids"),
    ],
)
def test_what_is_not_understood_is_refused(make: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    write(tmp_path, make())
    with pytest.raises(ValueError, match=message) as error:
        load_sentencepiece(tmp_path)
    assert str(tmp_path / "tokenizer.model") in str(error.value)


def test_any_broken_file_is_a_value_error(tmp_path: Path) -> None:
    model, rng = train("bpe-bytes"), np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(model[: rng.integers(1, len(model))])
        for at in rng.integers(0, len(broken), 3):
            broken[at] = rng.integers(0, 256)
        write(tmp_path, bytes(broken))
        with suppress(ValueError):
            read_sentencepiece(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"added_tokens_decoder": {"99999": {"content": "<far>"}}}, "99999"),
        ({"added_tokens_decoder": {"x": {"content": "<far>"}}}, "added_tokens_decoder.x"),
        ({"added_tokens_decoder": {"3": {}}}, "added_tokens_decoder.3"),
        ({"added_tokens_decoder": {"3": {"content": 3}}}, "added_tokens_decoder.3"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder"),
        ({"added_tokens_decoder": {"5": {"content": "</s>"}}}, "'</s>' two ids"),
        ({"bos_token": 7}, "bos_token"),
        ({"add_bos_token": "yes"}, "add_bos_token"),
        ({"additional_special_tokens": [7]}, "additional_special_tokens.0"),
    ],
)
def test_settings_that_are_not_understood_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    internlm2(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_sentencepiece(tmp_path)
    assert str(tmp_path / "tokenizer_config.json") in str(error.value)


def test_a_first_token_that_is_none(tmp_path: Path) -> None:
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    proto = pb2.ModelProto.FromString(train("bpe-bytes"))
    piece(proto, "<s>").piece = "<begin>"
    write(tmp_path, proto.SerializeToString())
    with pytest.raises(ValueError, match="add_bos_token"):
        load_sentencepiece(tmp_path)
