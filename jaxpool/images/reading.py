"""Pictures as users give them -> what a tower takes, in threads: decoding and resizing release the GIL."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from jaxpool.batch import Sequence as TokenSequence
from jaxpool.images.opening import Limits, open_image
from jaxpool.images.picture import Picture, Reader
from jaxpool.pooling_params import Options
from jaxpool.prompts import Shown, TypedIds, check_ids
from jaxpool.recipe import Recipe
from jaxpool.tokens import Tokenizer

MAX_THREADS = 8
# Of width to height, or the other way.
LONGEST = 200


class _Waiting(Mapping[Shown, Sequence[Picture]]):
    """Pictures that may still be read. Looking one up raises what went wrong with it."""

    def __init__(self, reads: Mapping[Shown, Sequence[Future[Picture]]]) -> None:
        self._reads = reads

    def __getitem__(self, prompt: Shown) -> list[Picture]:
        return [future.result() for future in self._reads[prompt]]

    def __iter__(self) -> Iterator[Shown]:
        return iter(self._reads)

    def __len__(self) -> int:
        return len(self._reads)


class Pictures:
    """What reads the prompts with pictures of one model. Threads and processors are made when the first one comes.

    Args:
        recipe: the model's.
        tokenizer: the model's.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self._recipe, self._tokenizer = recipe, tokenizer
        self._making = threading.Lock()

    @contextmanager
    def opened(self, prompts: Iterable[Shown]) -> Iterator[Mapping[Shown, Sequence[Picture]]]:
        """Reads the pictures of prompts while the body does something else; they are waited for where they are taken.

        Raises:
            ValueError: the model reads none.
        """
        reads: dict[Shown, list[Future[Picture]]] = {}
        try:
            for prompt in dict.fromkeys(prompts):
                if self._recipe.family.tower is None:
                    raise ValueError(f"{prompt.name}: this model reads texts only, and no pictures")
                given = enumerate(prompt.pictures)
                reads[prompt] = [self._threads.submit(self._read, picture, prompt, i) for i, picture in given]
            yield _Waiting(reads)
        finally:
            for future in (future for futures in reads.values() for future in futures):
                future.cancel()

    def sequences(
        self,
        prompt: Shown,
        pictures: Sequence[Picture],
        owners: tuple[int, ...],
        options: Options,
        *,
        limit: int,
        before: str,
        special_tokens: bool,
    ) -> list[TokenSequence]:
        """What is computed for a prompt.

        Args:
            prompt: the prompt.
            pictures: its own.
            owners: the numbers of its requests.
            options: its own.
            limit: most tokens; a prompt with pictures is never cut.
            before: the text in front of every prompt.
            special_tokens: whether the tokenizer adds its own.

        Raises:
            ValueError: text and pictures that do not go together, or too many tokens.
        """
        how: dict[str, Any] = {name: getattr(options, name) for name in ("dimensions", "activate", "adapter")}
        if self._recipe.family.tower is not None and self._recipe.family.tower.answers:
            if prompt.prompt or len(pictures) != 1:
                raise ValueError(
                    f"{prompt.name}: this model embeds a text or one picture; got {len(pictures)} pictures"
                    + (" and a text" if prompt.prompt else "")
                )
            return list(pictures[0].sequences(owners, **how))
        ids, arrays = self.reader.place(self._ids(prompt, len(pictures), before, special_tokens), pictures)
        limit = limit if options.limit is None else min(limit, options.limit)
        if len(ids) > limit:
            raise ValueError(
                f"{prompt.name}: This model's maximum context length is {limit} tokens. However, your prompt contains "
                f"{len(ids)} input tokens, {sum(len(p.rows) for p in pictures)} of them of pictures, and a prompt "
                "with pictures is not cut."
            )
        return [TokenSequence(ids, owners, arrays=arrays, pictures=tuple(pictures), **how)]

    @property
    def reader(self) -> Reader:
        """The family's."""
        with self._making:
            return self._reader

    @cached_property
    def _reader(self) -> Reader:
        module = import_module(f"jaxpool.images.{self._recipe.family.name}")
        return module.make_reader(self._recipe.config, self._recipe.picture_format, self._tokenizer)

    def close(self) -> None:
        """Ends its threads."""
        if "_threads" in self.__dict__:
            self._threads.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="jaxpool-pictures")

    def _read(self, given: object, prompt: Shown, number: int) -> Picture:
        name = prompt.names[number]
        image = open_image(given, name, Limits())
        if max(image.size) > LONGEST * min(image.size):  # resized by its shorter edge, a line would fill the memory
            raise ValueError(
                f"{name}: {image.width}×{image.height} pixels, and one edge may be {LONGEST} times the other"
            )
        try:
            return self.reader.read(image, {**self._recipe.pictures.options, **prompt.options})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _ids(self, prompt: Shown, count: int, before: str, special_tokens: bool) -> np.ndarray:
        if isinstance(prompt.prompt, TypedIds):
            return check_ids(np.frombuffer(prompt.prompt.ids, np.int32), self._recipe.config.vocab_size, prompt.name)
        try:
            text = self.reader.write(before + prompt.prompt, count)
        except ValueError as error:
            raise ValueError(f"{prompt.name}: {error}") from None
        (encoded,) = self._tokenizer.encode([text], 2**31 - 1, special_tokens=special_tokens)
        return encoded.ids
