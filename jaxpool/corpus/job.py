"""From files of texts to one file of embeddings, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jaxpool.corpus.chunk import Feed
from jaxpool.corpus.embedding import Embedder, Stretch
from jaxpool.corpus.files import Files, FilesSurvey, open_files
from jaxpool.corpus.report import Report
from jaxpool.corpus.sources import is_url
from jaxpool.corpus.writing import EMBEDDING, check_output, keeps_columns, open_output

Inputs = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Job:
    """Files that have been looked at and found fit. Attributes: what `prepare` found, and the output."""

    files: Files
    survey: FilesSurvey
    output: Path

    def run(self, embedder: Embedder, *, progress: bool = False, log: IO[str] | None = None) -> str:
        """Embeds all texts and writes the output, which appears when it is whole.

        Args:
            embedder: the model.
            progress: whether to show a bar on a terminal.
            log: where to write JSON lines; None: nowhere.

        Returns:
            A line for people: what was done, and how fast.

        Raises:
            ValueError: as `LLM.embed_stream`; no output is left then.
        """
        rows, llm = self.survey.rows, embedder.llm
        feed = Feed(self.files.chunks(self.survey, empty=embedder.takes_empty))
        with closing(Report(llm.stats, rows, bar=progress, log=log)) as report:
            report.say("start", output=str(self.output))
            pairs = Stretch(embedder, feed.take(rows), rows, report).pairs()
            with open_output(self.output, llm.recipe.embedding_size, self.survey.schema) as write, closing(pairs):
                for chunk, vectors in pairs:
                    write(chunk, vectors)
            report.say("done", output=str(self.output))
            return f"{report.line()} -> {self.output}"


def prepare(inputs: Inputs, output: Path, column: str = "text") -> Job:
    """Looks at the input and the output before a model is loaded: what is wrong with them is found here.

    Args:
        inputs: files, globs, directories, URLs (see `sources.expand`).
        output: .npy or .parquet (see `writing.open_output`).
        column: of the input, where the texts are.

    Raises:
        ValueError, OSError, ImportError: as `open_files`, `Files.survey` and `check_output`; an input that has
            a column "embedding" already, or that is the output or would hold it.
    """
    files = open_files(inputs, column)
    check_output(output)
    check_apart(inputs, files, output)
    survey = files.survey(columns=keeps_columns(output))
    check_columns(files, survey)
    return Job(files, survey, output)


def check_apart(inputs: Inputs, files: Files, output: Path) -> None:
    """Refuses an output that is an input, or that would be one in the next run.

    Raises:
        ValueError: so it is.
    """
    for name in files.names:
        if output.exists() and not is_url(name) and output.samefile(name):
            raise ValueError(f"output {output} is the input; it would be replaced")
    for directory in map(Path, inputs):
        if directory.is_dir() and output.resolve().is_relative_to(directory.resolve()):
            raise ValueError(f"output {output} lies in the input {directory}; it would be an input of the next run")


def check_columns(files: Files, survey: FilesSurvey) -> None:
    """Refuses columns that the output adds.

    Raises:
        ValueError: there is one.
    """
    if survey.schema is not None and EMBEDDING in survey.schema.names:
        raise ValueError(
            f"input {', '.join(files.names):.200}: there is a column {EMBEDDING!r} already, which the output adds"
        )
