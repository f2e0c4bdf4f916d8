"""From a file of texts to a file of embeddings, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpool.corpus.reading import Chunk, Corpus, Survey, open_corpus
from jaxpool.corpus.writing import EMBEDDING, check_output, keeps_columns, open_output

if TYPE_CHECKING:
    from jaxpool.llm import LLM


@dataclass(frozen=True)
class Job:
    """Files that have been looked at and found fit. Attributes: as `prepare` takes them, and what it found."""

    corpus: Corpus
    survey: Survey
    output: Path

    def run(
        self, llm: LLM, *, prompt_name: str | None = None, prompt: str | None = None, progress: bool = False
    ) -> str:
        """Embeds all texts and writes the output, which appears when it is whole.

        Args:
            llm: the model.
            prompt_name, prompt: as `LLM.embed_array` takes them.
            progress: whether to show a bar on a terminal.

        Returns:
            A line for people: what was done, and how fast.

        Raises:
            ValueError: as `LLM.embed_stream`; no output is left then.
        """
        stream = lambda texts: llm.embed_stream(  # noqa: E731
            texts, prompt_name=prompt_name, prompt=prompt, use_tqdm=self._bar if progress else False
        )
        tokens, truncated, start = llm.stats.tokens, llm.stats.truncated, time.perf_counter()
        pairs = with_vectors(self.corpus.chunks(self.survey.schema), stream)
        with open_output(self.output, llm.recipe.embedding_size, self.survey.schema) as write, closing(pairs):
            for chunk, vectors in pairs:
                write(chunk, vectors)
        seconds = time.perf_counter() - start
        return (
            f"{self.survey.texts:,} texts, {llm.stats.tokens - tokens:,} tokens, "
            f"{llm.stats.truncated - truncated:,} truncated, {llm.stats.padding_share:.1%} padding, "
            f"{seconds:.2f} s, {self.survey.texts / seconds:,.1f} texts/s -> {self.output}"
        )

    def _bar(self, **settings: Any) -> Any:
        from tqdm.auto import tqdm

        # disable=None: no bar where stderr is no terminal.
        return tqdm(**settings | {"total": self.survey.texts, "disable": None})


def prepare(source: Path, output: Path, column: str = "text") -> Job:
    """Looks at the input and the output before a model is loaded: what is wrong with them is found here.

    Args:
        source: .txt, .jsonl or .parquet (see `reading.open_corpus`).
        output: .npy or .parquet (see `writing.open_output`).
        column: of the input, where the texts are.

    Raises:
        ValueError, OSError, ImportError: as `open_corpus`, `Corpus.survey` and `check_output`; an input that has
            a column "embedding" already, or that is the output.
    """
    corpus = open_corpus(source, column)
    check_output(output)
    if output.exists() and output.samefile(source):
        raise ValueError(f"output {output} is the input; it would be replaced")
    survey = corpus.survey(columns=keeps_columns(output))
    if survey.schema is not None and EMBEDDING in survey.schema.names:
        raise ValueError(f"input {source}: there is a column {EMBEDDING!r} already, which the output adds")
    return Job(corpus, survey, output)


def with_vectors(
    chunks: Iterable[Chunk], embed: Callable[[Iterator[str]], Iterator[np.ndarray]]
) -> Generator[tuple[Chunk, np.ndarray], None, None]:
    """Each chunk with its vectors.

    Args:
        chunks: drawn from as far ahead as `embed` draws texts.
        embed: a stream of texts -> a stream of float32 [D] in the same order, which may lag behind.

    Yields:
        (chunk, float32 [n, D]).
    """
    waiting: deque[Chunk] = deque()

    def texts() -> Iterator[str]:
        for chunk in chunks:
            waiting.append(chunk)
            yield from chunk.texts

    vectors: list[np.ndarray] = []
    for vector in embed(texts()):
        vectors.append(vector)
        if len(vectors) == len(waiting[0].texts):
            yield waiting.popleft(), np.stack(vectors)
            vectors = []
