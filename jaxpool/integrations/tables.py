"""Tables in, tables with one more column out: what an `LLM` answers to the rows of a `pyarrow.Table`.

A `Work` says which columns are read, what is asked, and how the column that is added is called. It is plain data, so
that it can be sent to other processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from jaxpool.corpus import arrow
from jaxpool.scoring import rank
from jaxpool.tasks import CLASSIFY, EMBED, SCORE

if TYPE_CHECKING:
    from jaxpool.llm import LLM


class Work(Protocol):
    """What is asked of a model.

    Attributes:
        task: as `LLM` takes it.
        columns: those that are read.
        output: the column that is added.
    """

    task: ClassVar[str]

    @property
    def columns(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def output(self) -> str: ...  # noqa: D102

    def answers(self, llm: LLM, table: Any) -> Any:
        """One entry a row, as a `pyarrow.Array`; its type does not depend on the rows, nor on there being any."""
        ...


@dataclass(frozen=True)
class Embedding:
    """Texts' embeddings: a fixed-size list of float32. Longer texts are cut.

    Attributes:
        column: the texts.
        output: see `Work`.
        prompt_name, prompt: as `LLM.embed_array` takes them.
    """

    task: ClassVar[str] = EMBED
    column: str
    output: str
    prompt_name: str | None = None
    prompt: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Work`."""
        return (self.column,)

    def answers(self, llm: LLM, table: Any) -> Any:
        """See `Work`."""
        return _vectors(llm.embed_array(_texts(table, self.column), prompt_name=self.prompt_name, prompt=self.prompt))


@dataclass(frozen=True)
class Classification:
    """Texts' classes: a fixed-size list of float32, one a class.

    Attributes:
        column: the texts.
        output: see `Work`.
        truncate_prompt_tokens: as `LLM.classify` takes it.
    """

    task: ClassVar[str] = CLASSIFY
    column: str
    output: str
    truncate_prompt_tokens: int | None = -1

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Work`."""
        return (self.column,)

    def answers(self, llm: LLM, table: Any) -> Any:
        """See `Work`."""
        probs = np.empty((table.num_rows, llm.recipe.width(CLASSIFY)), np.float32)
        if table.num_rows:
            texts, cut = _texts(table, self.column), self.truncate_prompt_tokens
            outputs = llm.classify(texts, truncate_prompt_tokens=cut, use_tqdm=False)
            probs[:] = [output.outputs.probs for output in outputs]
        return _vectors(probs)


@dataclass(frozen=True)
class Scoring:
    """Scores of a text with another one: float32.

    Attributes:
        query, document: the columns of both texts.
        output: see `Work`.
        instruction, truncate_prompt_tokens: as `LLM.score` takes them.
    """

    task: ClassVar[str] = SCORE
    query: str
    document: str
    output: str
    instruction: str | None = None
    truncate_prompt_tokens: int | None = -1

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Work`."""
        return (self.query, self.document)

    def answers(self, llm: LLM, table: Any) -> Any:
        """See `Work`."""
        pairs = zip(_texts(table, self.query), _texts(table, self.document), strict=True)
        scores = _scores(llm, pairs, self.instruction, self.truncate_prompt_tokens)
        return arrow.import_pyarrow("tables").array(scores, "float32")


@dataclass(frozen=True)
class Reranking:
    """Rankings of a row's documents: a list of {index, score}, best first. Longer texts are cut.

    Attributes:
        query: the column of the queries.
        documents: the column of their documents, each entry a list of texts, which may be empty.
        output: see `Work`.
        top_n, instruction: as `LLM.rerank` takes them.
    """

    task: ClassVar[str] = SCORE
    query: str
    documents: str
    output: str
    top_n: int | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        rank((), (), self.top_n, False)  # a wrong top_n is said before the work, not after

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Work`."""
        return (self.query, self.documents)

    def answers(self, llm: LLM, table: Any) -> Any:
        """See `Work`."""
        pa = arrow.import_pyarrow("tables")
        queries, lists = _texts(table, self.query), _lists_of_texts(table, self.documents)
        # The pairs of all rows in one call: a row by itself would seldom fill a batch.
        pairs = ((query, text) for query, texts in zip(queries, lists, strict=True) for text in texts)
        scores = iter(_scores(llm, pairs, self.instruction, -1))
        ranked = [rank([next(scores) for _ in texts], texts, self.top_n, False) for texts in lists]
        kind = pa.list_(pa.struct([("index", pa.int32()), ("score", pa.float32())]))
        return pa.array([[{"index": one.index, "score": one.score} for one in row] for row in ranked], kind)


def check_columns(names: Iterable[str], work: Work) -> None:
    """Finds out whether a table has the columns that are read, and not yet the one that is added.

    Raises:
        ValueError: otherwise; the columns that are there are named.
    """
    there = list(names)
    if missing := [name for name in work.columns if name not in there]:
        raise ValueError(f"column {missing[0]!r} is not there, expected one of {there}")
    if work.output in there:
        raise ValueError(f"column {work.output!r} is there already: rename or drop it, or give output= another name")


def add_answers(llm: LLM, work: Work, table: Any) -> Any:
    """A `pyarrow.Table` with the column of answers behind its own.

    Raises:
        ValueError: as `check_columns`; a row that holds no text (its number, column and other columns are named).
    """
    if not table.num_columns:  # a block without rows may have lost its columns
        return table
    check_columns(table.column_names, work)
    return table.append_column(work.output, work.answers(llm, table))


def _vectors(values: np.ndarray) -> Any:
    pa = arrow.import_pyarrow("tables")
    kind = pa.list_(pa.float32(), values.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)


def _scores(llm: LLM, pairs: Iterable[tuple[str, str]], instruction: str | None, cut: int | None) -> list[float]:
    pairs = list(pairs)
    if not pairs:
        return []
    first, second = (list(texts) for texts in zip(*pairs, strict=True))
    outputs = llm.score(first, second, truncate_prompt_tokens=cut, use_tqdm=False, instruction=instruction)
    return [output.outputs.score for output in outputs]


def _texts(table: Any, column: str) -> list[str]:
    values = table.column(column).to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise _no_text(table, column, row, "", value, "a text")
    return values


def _lists_of_texts(table: Any, column: str) -> list[list[str]]:
    values = table.column(column).to_pylist()
    for row, texts in enumerate(values):
        if not isinstance(texts, list):
            raise _no_text(table, column, row, "", texts, "a list of texts")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise _no_text(table, column, row, f"[{i}]", text, "a text")
    return values


def _no_text(table: Any, column: str, row: int, place: str, value: Any, expected: str) -> ValueError:
    # A row has no number of its own in a distributed table: its other columns say which one it is.
    others = table.drop_columns([column]).slice(row, 1).to_pylist()
    which = f", where the other columns are {others[0]!r:.200}" if others and others[0] else ""
    found = "null" if value is None else f"{value!r:.60}"
    return ValueError(
        f"column {column!r}{place}, row {row} of a batch of {table.num_rows}{which}: expected {expected}, "
        f"got {found}; drop such rows first, or fill them"
    )
