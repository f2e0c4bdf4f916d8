"""Requests -> sequences: how the texts of one call are read, cut, refused, and computed once if they come twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxpool.batch import Sequence as TokenSequence
from jaxpool.chunks import split
from jaxpool.endings import Ending
from jaxpool.images.reading import Pictures
from jaxpool.pooling_params import Options
from jaxpool.prompts import Pair, Parsed, Shown, TypedIds, Written, check_ids
from jaxpool.recipe import Recipe
from jaxpool.tokens import Encoded, Tokenizer

Request = tuple[Parsed, Options]

# Of transformers' tokenizers; here padding is the planner's affair.
_NO_SAY = ("padding", "return_tensors", "return_attention_mask", "return_token_type_ids")


@dataclass(frozen=True)
class Reading:
    """How the texts of one call are read.

    Attributes:
        prompt: what is put in front of each text (of a pair: of its first text).
        limit: most tokens.
        cut: whether longer texts are cut, or refused.
        special_tokens: whether the tokenizer adds its special tokens.
        side: "right" or "left", where a text is cut; None: as the checkpoint says.
        in_parts: whether longer texts are computed in parts of `limit` tokens.
        most: with `in_parts`, most tokens of a whole text; None: any number.
    """

    prompt: str
    limit: int
    cut: bool
    special_tokens: bool = True
    side: str | None = None
    in_parts: bool = False
    most: int | None = None

    @property
    def longest(self) -> int:
        """Tokens of a text that are read at all."""
        return (self.most or 2**31 - 1) if self.in_parts else self.limit


def make_reading(
    recipe: Recipe,
    tokenizer: Tokenizer,
    prompt: str,
    truncate: Any = None,
    tokenization: Mapping[str, Any] | None = None,
    *,
    in_parts: bool = False,
) -> Reading:
    """From vLLM's arguments.

    Args:
        truncate: `truncate_prompt_tokens`: None refuses longer texts, −1 cuts at the model's limit, k at k tokens.
        tokenization: `tokenization_kwargs`: truncate_prompt_tokens, truncation, max_length, truncation_side,
            add_special_tokens, do_lower_case, padding.
        in_parts: whether this call's longer texts are computed in parts.

    Raises:
        ValueError: a value that makes no sense, one said twice, or a name that is not known; the words are vLLM's.
    """
    rest = dict(tokenization or {})
    inner = rest.pop("truncate_prompt_tokens", None)
    if None not in (truncate, inner) and truncate != inner:
        raise ValueError(f"truncate_prompt_tokens is {truncate} and in tokenization_kwargs {inner}: give only one")
    truncate = inner if truncate is None else truncate
    length, truncation = rest.pop("max_length", None), rest.pop("truncation", None)
    if truncation not in (None, False, True, "longest_first"):
        raise ValueError(f"tokenization_kwargs: truncation is {truncation!r}, expected True, False or 'longest_first'")
    if truncation and truncate is None:
        truncate = -1 if length is None else length
    if rest.pop("do_lower_case", recipe.lower_case) != recipe.lower_case:
        raise ValueError(f"tokenization_kwargs: do_lower_case is {recipe.lower_case} in this checkpoint")
    side, special = rest.pop("truncation_side", None), rest.pop("add_special_tokens", True)
    if side not in (None, "left", "right"):
        raise ValueError(f"truncation_side is {side!r}, expected 'left' or 'right'")
    if unknown := sorted(set(rest) - set(_NO_SAY)):
        raise ValueError(f"tokenization_kwargs: {unknown} are not supported")
    limit = recipe.max_length if truncate is None else check_truncation(truncate, recipe.max_length, tokenizer)
    return Reading(
        prompt,
        limit,
        truncate is not None,
        bool(special),
        side,
        in_parts and truncate is None,
        recipe.max_embed_len,
    )


def check_truncation(truncate: Any, longest: int, tokenizer: Tokenizer) -> int:
    """The limit that `truncate_prompt_tokens` means.

    Raises:
        ValueError: no such number; the words are vLLM's.
    """
    if not isinstance(truncate, int) or isinstance(truncate, bool):
        raise ValueError(f"truncate_prompt_tokens is {truncate!r}, expected an int or None")
    if truncate > longest:
        raise ValueError(
            f"truncate_prompt_tokens value ({truncate}) is greater than max_model_len ({longest}). "
            "Please request a smaller truncation size."
        )
    if truncate == -1:
        return longest
    if truncate <= tokenizer.special_count:
        raise ValueError(
            f"truncate_prompt_tokens is {truncate}, expected -1 or more than the "
            f"{tokenizer.special_count} special tokens"
        )
    return truncate


class Reader:
    """Tokenises windows of requests, and reads their pictures. Threads share it.

    Args:
        recipe: of the model.
        tokenizer: the model's.

    Raises:
        ValueError: the model's texts are padded, and the tokenizer's files do not say how.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._ending = Ending(recipe, tokenizer)
        self._pictures = Pictures(recipe, tokenizer)

    def read(self, start: int, window: Sequence[Request], reading: Reading) -> list[TokenSequence]:
        """One window of requests -> sequences; a request that comes more than once is computed once.

        Args:
            start: the number of the window's first request.

        Raises:
            ValueError: too long, without any token, or out of vocabulary; the request's number is named.
        """
        owners: dict[Request, list[int]] = {}
        for i, request in enumerate(window):
            owners.setdefault(request, []).append(start + i)
        with self._pictures.opened(prompt for prompt, _ in owners if isinstance(prompt, Shown)) as opened:
            read = list(dict.fromkeys(prompt for prompt, _ in owners if not isinstance(prompt, Shown)))
            encoded = self._encode(read, reading)
            return [
                sequence
                for (prompt, options), numbers in owners.items()
                for sequence in (
                    self._pictures.sequences(
                        prompt,
                        opened[prompt],
                        tuple(numbers),
                        options,
                        limit=reading.limit,
                        before=reading.prompt,
                        special_tokens=reading.special_tokens,
                    )
                    if isinstance(prompt, Shown)
                    else self._sequences(prompt, options, encoded[prompt], numbers, reading)
                )
            ]

    def close(self) -> None:
        """Ends its threads, if it has any."""
        self._pictures.close()

    def _encode(self, prompts: Sequence[Parsed], reading: Reading) -> dict[Parsed, Encoded]:
        """Every kind of prompt in one call of the tokenizer."""
        encoded: dict[Parsed, Encoded] = {}
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        written = [prompt for prompt in prompts if isinstance(prompt, Written)]
        pairs = [prompt for prompt in prompts if isinstance(prompt, Pair)]
        encoded |= dict(zip(texts, self._texts([reading.prompt + text for text in texts], reading), strict=True))
        encoded |= dict(zip(written, self._written([prompt.text for prompt in written], reading), strict=True))
        if reading.cut:
            too_long = {prompt: encoded[prompt] for prompt in written if encoded[prompt].truncated}
            encoded |= {prompt: self._fit(prompt, whole, reading) for prompt, whole in too_long.items()}
        prompted = [(reading.prompt + first, second) for first, second in pairs]
        joined = self._tokenizer.encode_pairs(prompted, reading.limit, truncation_side=reading.side)
        encoded |= dict(zip(pairs, joined, strict=True))
        for prompt in prompts:
            if isinstance(prompt, TypedIds):
                encoded[prompt] = self._ids(prompt, reading)
        return encoded

    def _ids(self, prompt: TypedIds, reading: Reading) -> Encoded:
        ids = np.frombuffer(prompt.ids, np.int32)
        # The types are cut with the ids: they stand at the end.
        types = np.arange(len(ids)) >= len(ids) - prompt.second
        kept, kept_types = (self._tokenizer.cut_ids(x, reading.longest, reading.side) for x in (ids, types))
        return Encoded(kept, len(ids), int(kept_types.sum()))

    def _texts(self, texts: list[str], reading: Reading) -> list[Encoded]:
        return self._tokenizer.encode(
            texts, reading.longest, special_tokens=reading.special_tokens, truncation_side=reading.side
        )

    def _written(self, texts: list[str], reading: Reading) -> list[Encoded]:
        return self._texts(texts, replace(reading, special_tokens=reading.special_tokens and not self._recipe.chat))

    def _fit(self, prompt: Written, encoded: Encoded, reading: Reading) -> Encoded:
        """Cuts the document, so that what the template puts round it stays whole."""
        (frame,) = self._written([prompt.write("")], reading)
        if frame.truncated:
            raise ValueError(
                f"This model's maximum context length is {reading.limit} tokens, and a query with its prompt alone "
                f"takes {frame.total}. Please reduce the length of the query."
            )
        document, room, whole = prompt.document, reading.limit - frame.total, encoded.total
        while encoded.truncated:
            document = self._tokenizer.cut_text(document, room, truncation_side=reading.side)
            (encoded,) = self._written([prompt.write(document)], reading)
            # Tokens may join or part where the document meets the prompt; and a template may hold it twice.
            room -= max((encoded.total - reading.limit) // 2, 1)
        return Encoded(encoded.ids, whole)

    def _sequences(
        self, prompt: Parsed, options: Options, encoded: Encoded, numbers: list[int], reading: Reading
    ) -> Iterator[TokenSequence]:
        name, ids = f"prompts[{numbers[0]}]", encoded.ids
        limit, cut = reading.longest, reading.cut
        if options.limit is not None:
            limit, cut = options.limit, True
            (encoded,) = self._encode([prompt], _cut_at(reading, limit)).values()
            ids = encoded.ids
        if isinstance(prompt, TypedIds):
            check_ids(np.frombuffer(prompt.ids, np.int32), self._recipe.config.vocab_size, name)
        if encoded.truncated and not cut:
            raise ValueError(
                f"{name}: This model's maximum context length is {limit} tokens. However, your prompt contains at "
                f"least {encoded.total} input tokens. Please reduce the length of the input prompt, or pass "
                "truncate_prompt_tokens=-1."
            )
        if len(ids) == 0:
            raise ValueError(f"{name}: the text has no tokens, and this model's tokenizer adds none")
        token = getattr(self._recipe.config, "image_token", None)
        if token is not None and (ids == token).any():
            raise ValueError(f"{name}: the prompt has a place for a picture (token {token}), and none was given")
        ids = self._ending(ids)
        whole = TokenSequence(
            ids,
            tuple(numbers),
            truncated=encoded.truncated,
            step_tag_id=options.step_tag_id,
            skip=min(self._skip(reading.prompt), len(ids) - 1) if isinstance(prompt, str) else 0,
            second=encoded.second,
            dimensions=options.dimensions,
            activate=options.activate,
            adapter=options.adapter,
        )
        # Without parts a prompt's own limit may be beyond the call's.
        yield from split(whole, reading.limit) if reading.in_parts else (whole,)

    def _skip(self, prompt: str) -> int:
        return 0 if self._recipe.include_prompt or not prompt else self._tokenizer.prompt_length(prompt)


def _cut_at(reading: Reading, limit: int) -> Reading:
    return Reading(reading.prompt, limit, True, reading.special_tokens, reading.side)
