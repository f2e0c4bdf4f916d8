"""Random texts, prompts and options for one instance: what its users might send, nothing that it refuses."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from jaxpool import LLM, PoolingParams
from tests.tiny import SENTENCES

WORDS = " ".join(SENTENCES).split()
# Nothing to see, or no word at all: a tokenizer that adds special tokens makes something of them.
BLANK = ("", " ", "\n\t", ".")
Choices = dict[str, Sequence[Any]]
"""By the name of an option, its values."""


class Texts:
    """Draws from a seed.

    Args:
        llm: whose limit and vocabulary they are for.
        options: of `PoolingParams`, what requests may ask for.
        seed: of the draws.
        end: what a text ends its parts with ("" for nothing): the token of a step.
    """

    def __init__(self, llm: LLM, options: Choices, seed: int, end: str = "") -> None:
        self.random, self.limit, self.end = random.Random(seed), llm.recipe.max_length, end
        self._options, self._vocabulary = options, llm.recipe.config.vocab_size

    def size(self, most: int) -> int:
        """How many requests a call has: as often 1 or 2 as 256 to 512."""
        return min(most, int(2 ** self.random.uniform(0, 9)))

    def text(self, most: int | None = None, *, blank: bool = True) -> str:
        """Words, few or many: up to twice what the model reads, or `most` bytes."""
        if blank and not self.end and self.random.random() < 0.05:
            return self.random.choice(BLANK)
        words = self.random.choices(WORDS, k=int(2 ** self.random.uniform(0, (2 * self.limit).bit_length() - 1)))
        text = "".join(word + self.random.choice((" ", " ", self.end or " ")) for word in words)
        return text if most is None else text.encode()[:most].decode(errors="ignore").strip() or "a"

    def ids(self, most: int | None = None) -> list[int]:
        """Any ids of the vocabulary."""
        return self.random.choices(range(self._vocabulary), k=self.random.randint(1, most or 2 * self.limit))

    def prompts(self, count: int, most: int | None = None, *, blank: bool = True) -> list[Any]:
        """Texts and ids, bare or in a dict."""
        forms = (
            lambda: self.text(most, blank=blank),
            lambda: {"prompt": self.text(most, blank=blank)},
            lambda: self.ids(most),
            lambda: {"prompt_token_ids": self.ids(most)},
        )
        return [self.random.choice(forms)() for _ in range(count)]

    def params(self) -> PoolingParams | None:
        """Options of one request, or for all of a call."""
        return PoolingParams(**dict(self._drawn())) if self.random.random() < 0.8 else None

    def each(self, count: int) -> Any:
        """Options of a call: none, the same for all, or any mixture."""
        if self.random.random() < 0.3:
            return self.params()
        return [self.params() or PoolingParams() for _ in range(count)]

    def cut(self) -> dict[str, Any]:
        """How a call cuts its texts; vLLM has two places to say it."""
        longest = self.random.choice((-1, self.limit, self.random.randint(5, self.limit)))
        if self.random.random() < 0.5:
            return {"truncate_prompt_tokens": longest}
        side = self.random.choice(({}, {"truncation_side": "left"}, {"truncation_side": "right"}))
        return {"tokenization_kwargs": {"truncate_prompt_tokens": longest, **side}}

    def call(self, count: int) -> dict[str, Any]:
        """The prompts and arguments of one call: cut, or short enough not to be, or without special tokens."""
        most = self.limit - 8  # bytes; no tokenizer here makes more tokens of a text than that
        return self.random.choice((
            lambda: {"prompts": self.prompts(count), **self.cut()},
            lambda: {"prompts": self.prompts(count, most)},
            lambda: {
                "prompts": self.prompts(count, most, blank=False),
                "tokenization_kwargs": {"add_special_tokens": False},
            },
        ))() | {"pooling_params": self.each(count), "use_tqdm": False}  # fmt: skip

    def _drawn(self) -> Iterator[tuple[str, Any]]:
        # Flags are other names of one thing, so only one of them is said.
        flags = [name for name in self._options if name in ("normalize", "softmax", "activation", "use_activation")]
        said = self.random.choice(flags) if flags else None
        for name, values in self._options.items():
            if name not in flags or name == said:
                yield name, self.random.choice(values)
