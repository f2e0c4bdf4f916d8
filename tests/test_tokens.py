"""`jaxpool.tokens` without torch: pairs, sides, cuts of a text. (Against transformers: `tests/parity/test_pairs.py`.)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxpool.post_processing import longest_first
from jaxpool.tokens import Encoded, Tokenizer, load_tokenizer
from tests.tiny import word_pieces

TOKENIZER = Tokenizer(word_pieces(), special_tokens={"pad_token": "[PAD]"})


def spelt(encoded: Encoded) -> str:
    return " ".join(TOKENIZER._backend.id_to_token(i) for i in encoded.ids.tolist())


def test_pair() -> None:
    (encoded,) = TOKENIZER.encode_pairs([("the fox", "a lazy dog")], 64)
    assert spelt(encoded) == "[CLS] the fox [SEP] a lazy dog [SEP]"
    assert (encoded.second, encoded.total, encoded.truncated) == (4, 8, False)
    assert (TOKENIZER.special_count, TOKENIZER.pair_special_count) == (2, 3)
    assert encoded.ids.dtype == "int32"


@pytest.mark.parametrize(
    ("limit", "side", "expected", "second"),
    [
        (9, None, "[CLS] the quick [SEP] a lazy dog while [SEP]", 5),
        (8, None, "[CLS] the quick [SEP] a lazy dog [SEP]", 4),
        (8, "left", "[CLS] the quick [SEP] lazy dog while [SEP]", 4),
        (6, "right", "[CLS] the [SEP] a lazy [SEP]", 3),
        (6, "left", "[CLS] quick [SEP] dog while [SEP]", 3),
        (3, None, "[CLS] [SEP] [SEP]", 1),
        (2, None, "[CLS] [SEP]", 0),
    ],
)
def test_the_longer_text_is_cut(limit: int, side: str | None, expected: str, second: int) -> None:
    (encoded,) = TOKENIZER.encode_pairs([("the quick", "a lazy dog while")], limit, truncation_side=side)
    assert (spelt(encoded), encoded.second, encoded.total) == (expected, second, 9)


def test_no_second_text_and_no_token_types() -> None:
    assert spelt(TOKENIZER.encode_pairs([("the fox", "")], 9)[0]) == "[CLS] the fox [SEP] [SEP]"
    assert Tokenizer(word_pieces(), token_types=False).encode_pairs([("the fox", "a dog")], 9)[0].second == 0
    assert TOKENIZER.encode_pairs([], 9) == []


def test_each_text_is_tokenised_once() -> None:
    class Counting:
        def __init__(self) -> None:
            self.backend, self.texts = word_pieces(), []

        def __getattr__(self, name: str) -> object:
            return getattr(self.backend, name)

        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list:
            self.texts += texts
            return self.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    backend = Counting()
    Tokenizer(backend).encode_pairs([("the fox", f"dog {i % 10}") for i in range(1000)], 9)
    assert sorted(backend.texts) == sorted(["the fox", *(f"dog {i}" for i in range(10))])


@pytest.mark.parametrize("limit", [8, 9])
@pytest.mark.parametrize("side", ["left", "right"])
def test_huge_pairs(limit: int, side: str) -> None:
    """The text that is longer gets the odd token, which only whole texts tell."""
    short, long = "the fox " * 2000, "a dog " * 2001
    budget = limit - 3
    for pair in ((short, long), (long, short)):
        (encoded,) = TOKENIZER.encode_pairs([pair], limit, truncation_side=side)
        assert encoded.second == (budget + 1) // 2 + 1 if pair[1] is long else budget // 2 + 1
        assert encoded.truncated
    (encoded,) = TOKENIZER.encode_pairs([("the fox", long)], limit, truncation_side=side)
    assert encoded.second == budget - 2 + 1


def test_longest_first() -> None:
    for first in range(12):
        for second in range(12):
            for budget in range(26):
                one, two = longest_first(first, second, budget)
                assert one + two == min(first + second, budget)
                assert (longest_first(second, first, budget) == (two, one)) or first == second
                assert one == first or one >= two - 1
                assert two == second or two >= one - 1


def test_sides_and_special_tokens() -> None:
    def one(limit: int, **options: object) -> str:
        return spelt(TOKENIZER.encode(["the quick brown fox"], limit, **options)[0])

    assert one(9, special_tokens=False) == "the quick brown fox"
    assert one(2, special_tokens=False) == "the quick"
    assert one(2, special_tokens=False, truncation_side="left") == "brown fox"
    assert one(4, truncation_side="left") == "[CLS] brown fox [SEP]"
    ids = TOKENIZER.encode(["the quick brown fox"], 9)[0].ids
    assert TOKENIZER.cut_ids(ids, 2, "left").tolist() == ids[-2:].tolist()
    for call in (lambda: one(4, truncation_side="up"), lambda: TOKENIZER.cut_text("a", 1, truncation_side="up")):
        with pytest.raises(ValueError, match="truncation_side is 'up', expected 'left', 'right' or None"):
            call()


def test_vocabulary() -> None:
    assert TOKENIZER.token_id("fox") is not None
    assert TOKENIZER.token_id("[SEP]") == 3
    assert TOKENIZER.token_id("foxes are not in it") is None
    assert TOKENIZER.pad_id == 0
    assert Tokenizer(word_pieces()).pad_id is None


@pytest.mark.parametrize(
    ("tokens", "first", "last"),
    [
        (0, "", ""),
        (1, "  The", "dog "),
        (2, "  The quick", "lazy dog "),
        (4, "  The quick, lazy", "quick, lazy dog "),
        (5, "  The quick, lazy dog ", "  The quick, lazy dog "),
        (99, "  The quick, lazy dog ", "  The quick, lazy dog "),
    ],
)
def test_cut_text(tokens: int, first: str, last: str) -> None:
    assert TOKENIZER.cut_text("  The quick, lazy dog ", tokens) == first
    assert TOKENIZER.cut_text("  The quick, lazy dog ", tokens, truncation_side="left") == last


def test_cut_of_a_huge_text() -> None:
    text = "the fox " * 100_000
    assert TOKENIZER.cut_text(text, 3) == "the fox the"
    assert TOKENIZER.cut_text(text, 3, truncation_side="left") == "fox the fox "


def test_settings_of_a_directory(tmp_path: Path) -> None:
    word_pieces().save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "BertTokenizer",
        "pad_token": {"content": "[MASK]"},
        "chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "y"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_id == tokenizer.token_id("[MASK]")
    assert tokenizer.chat_template == "y"
    (tmp_path / "chat_template.jinja").write_text("z")
    assert tokenizer.chat_template == "y"
    assert load_tokenizer(tmp_path).chat_template == "z"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ValueError, match="`chat_template` is 3, expected a text or a list"):
        assert load_tokenizer(tmp_path).chat_template
