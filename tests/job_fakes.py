"""A model that is none: numbers from a text's bytes, quickly, without JAX, so that processes can be forked and killed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

WIDTH = 8


class FakeLLM:
    """Looks to a job like an `LLM`. A text's vector depends on its place in its stream, as a real one's last bits do.

    Args:
        pause: called at the start of a stream, and whenever vectors are ready.
    """

    model = "fake"

    def __init__(self, pause: Any = lambda: None) -> None:
        self._pause = pause
        self.recipe = SimpleNamespace(embedding_size=WIDTH, directory="nowhere")
        self.stats = SimpleNamespace(tokens=0, computed_tokens=0, truncated=0)
        self.special_count = 2

    def takes_empty(self, prompt_name: str | None = None, prompt: str | None = None) -> bool:
        """As `LLM.takes_empty`."""
        return bool(prompt) or self.special_count > 0

    def embed_stream(
        self, texts: Iterable[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> Iterator[np.ndarray]:
        """As `LLM.embed_stream`; reads 300 texts ahead."""
        return self._stream(texts)

    def _stream(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        self._pause()
        for place, text in enumerate(texts):
            self.stats.tokens += len(text)
            self.stats.computed_tokens += len(text) + 1
            waiting.append(np.arange(WIDTH, dtype=np.float32) + (zlib.crc32(text.encode()) % 1000) + place / 2**20)
            if len(waiting) > 300:
                self._pause()
                yield from waiting
                waiting = []
        yield from waiting


def use_fake_fingerprint() -> None:
    """There is nothing of a fake model's on the disk that could be digested."""
    from jaxpool.corpus import shards

    shards.fingerprint = lambda llm: {"model_files": {"weights": "fake"}}


def run(inputs: list[str], output: str, *, resume: bool = False, llm: FakeLLM | None = None, **settings: Any) -> str:
    """`jaxpool embed` with a fake model."""
    from pathlib import Path

    from jaxpool.corpus.embedding import Embedder
    from jaxpool.corpus.shards import Settings, open_directory, prepare_shards
    from jaxpool.corpus.stopping import Stop

    chosen = Settings(**settings)
    files, directory = open_directory(inputs, Path(output), chosen)
    with directory.locked():
        job = prepare_shards(files, directory, chosen, resume=resume)
        return "" if job is None else job.run(Embedder(llm or FakeLLM(), chosen.prompt_name, chosen.prompt), Stop(20))
