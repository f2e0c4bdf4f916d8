"""Pairs of texts: how they are given, which belongs to which, and how a pair becomes a prompt or a cosine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpool.chat_templates import check_template, read_template, render_pair
from jaxpool.prompts import Pair, Parsed, Written, parse_text
from jaxpool.recipe import Recipe


class Ranked(NamedTuple):
    """A document's place in a ranking: its number among the documents given, and its score."""

    index: int  # type: ignore[assignment]  # hides the method of tuples
    score: float


class RankedDocument(NamedTuple):
    """As `Ranked`, with the document."""

    index: int  # type: ignore[assignment]  # hides the method of tuples
    score: float
    document: str


def parse_pairs(first: Any, second: Any, architecture: str = "") -> tuple[list[str], list[str]]:
    """The texts of both sides, one with one: 1 with 1, 1 with N, or N with N.

    Raises:
        ValueError: no texts, or numbers that do not fit; the words are vLLM's.
    """
    texts_1, texts_2 = _texts(first, "data_1", architecture), _texts(second, "data_2", architecture)
    if not texts_1:
        raise ValueError("At least one text element must be given")
    if not texts_2:
        raise ValueError("At least one text_pair element must be given")
    if len(texts_1) == 1:
        texts_1 = texts_1 * len(texts_2)
    if len(texts_1) != len(texts_2):
        raise ValueError(f"Input lengths must be either 1:1, 1:N or N:N, got {len(texts_1)} and {len(texts_2)}")
    return texts_1, texts_2


def _texts(given: Any, name: str, architecture: str) -> list[str]:
    if isinstance(given, (str, Mapping)):
        return [parse_side(given, name, architecture)]
    if not isinstance(given, Sequence):
        raise ValueError(f"{name}: expected a text or a list of texts, got {type(given).__name__}")
    return [parse_side(item, f"{name}[{i}]", architecture) for i, item in enumerate(given)]


def parse_side(item: Any, name: str, architecture: str = "this model") -> str:
    """A text, {"prompt": text} or {"content": [{"type": "text", "text": …}]}. Raises ValueError."""
    if not isinstance(item, Mapping):
        return parse_text(item, name)
    if set(item) == {"prompt"}:
        return parse_text(item["prompt"], f"{name}['prompt']")
    content = item.get("content")
    if set(item) != {"content"} or not isinstance(content, Sequence):
        raise ValueError(f"{name}: expected a text, {{'prompt': …}} or {{'content': […]}}, got keys {sorted(item)}")
    if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
        raise ValueError(f"{name}: MultiModalParam is not supported for {architecture}")
    return "".join(parse_text(part.get("text"), name) for part in content)


class PairWriter:
    """Makes prompts of pairs, as the model reads them.

    Args:
        recipe: of a classifier.
        special_tokens: the tokenizer's, which a template may use.
        template: the user's, instead of the model's own.
        instruction: for the template; None: the checkpoint's default prompt, or the template's own.

    Raises:
        ValueError: an instruction for a model without a template, or a template that drops a text.
    """

    def __init__(
        self,
        recipe: Recipe,
        special_tokens: Mapping[str, str],
        template: str | None = None,
        instruction: str | None = None,
    ) -> None:
        own = None if template is None else read_template(template)
        self._template = own or recipe.template
        self._generation_prompt = recipe.generation_prompt
        self._special_tokens = special_tokens
        self._separated = recipe.separated
        if instruction is None and recipe.default_prompt:
            instruction = recipe.prompts[recipe.default_prompt] or None
        elif instruction is not None and self._template is None:
            raise ValueError("instruction: this model has no prompt template that an instruction could stand in")
        self._instruction = instruction
        if self._template is not None:
            check_template(self._template)

    def __call__(self, query: str, document: str) -> Parsed:
        """The prompt of one pair."""
        if self._template is not None:
            write = lambda document: self._render(query, document)  # noqa: E731
            return Written(write(document), document, write)
        if self._instruction:
            query = self._instruction + query  # sentence-transformers' default prompt
        return Pair(query, document) if self._separated else query + document

    def _render(self, query: str, document: str) -> str:
        return render_pair(
            self._template or "",
            query,
            document,
            self._instruction,
            generation_prompt=self._generation_prompt,
            special_tokens=self._special_tokens,
        )


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines of the rows of `a` with those of `b`, float32 [n]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return ((a * b).sum(-1) / np.maximum(norms, 1e-12)).astype(np.float32)


def rank(
    scores: Sequence[float], documents: Sequence[str], top_n: int | None, return_documents: bool
) -> list[Ranked] | list[RankedDocument]:
    """Documents by falling score, equal ones in the order given.

    Raises:
        ValueError: `top_n` below 1.
    """
    if top_n is not None and (not isinstance(top_n, int) or top_n < 1):
        raise ValueError(f"top_n is {top_n!r}, expected at least 1, or None for all")
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[:top_n]
    if return_documents:
        return [RankedDocument(i, scores[i], documents[i]) for i in order]
    return [Ranked(i, scores[i]) for i in order]
