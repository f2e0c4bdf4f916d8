"""Ray Data: a dataset in, the same dataset with one more column out, worked out by a pool of actors.

Each actor holds one `LLM`. Which rows go where, how many actors there are, what is held back and what is done again
after a failure is Ray's business; docs/ray.md says what follows from that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxpool.integrations.tables import (
    Classification,
    Embedding,
    Reranking,
    Scoring,
    Work,
    add_answers,
    check_columns,
)

if TYPE_CHECKING:
    from ray.data import Dataset

# Rows that an actor is handed at once. The engine packs them into batches by tokens and plans 1,024 texts at a time,
# so more rows need no more device memory; they only make the last batch, which may not be full, rarer.
BATCH_ROWS = 2048

Concurrency = int | tuple[int, int] | tuple[int, int, int]
"""Actors: so many, (least, most), or (least, most, at first)."""


def embed_dataset(
    ds: Dataset,
    model: str | os.PathLike[str],
    *,
    column: str = "text",
    output: str = "embedding",
    prompt_name: str | None = None,
    prompt: str | None = None,
    llm_arguments: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_ROWS,
    concurrency: Concurrency = 1,
    **ray_arguments: Any,
) -> Dataset:
    """A dataset with its texts' embeddings: a fixed-size list of float32. Longer texts are cut.

    Like every transformation of Ray Data it is lazy, and rows need not come back in order.

    Args:
        ds: the dataset; a row is a text in `column`.
        model: as `LLM` takes it. A directory must be there on every node.
        column: where the texts are.
        output: the column that is added.
        prompt_name, prompt: as `LLM.embed_array` takes them.
        llm_arguments: further arguments of `LLM` (`dtype`, `pooler_config`, `compile_cache` …).
        batch_size: rows that an actor is handed at once; the engine's own batches are by tokens.
        concurrency: how many actors: a number, (least, most) or (least, most, at first).
        ray_arguments: what an actor needs, as `Dataset.map_batches` takes it: `num_cpus`, `num_gpus`, `memory`,
            `resources={"TPU": 4}`, `runtime_env` … Without any, an actor is one CPU: one stream, one core.

    Returns:
        The input's columns and `output`.

    Raises:
        ImportError: Ray Data is not installed.
        TypeError: `ds` is no dataset of Ray Data.
        ValueError: `column` is not there or `output` is, if the columns are known before the dataset is worked out;
            else, and for rows that hold no text, Ray raises it when the dataset is consumed.
    """
    work = Embedding(column, output, prompt_name, prompt)
    return _map(ds, work, model, llm_arguments, batch_size, concurrency, ray_arguments)


def classify_dataset(
    ds: Dataset,
    model: str | os.PathLike[str],
    *,
    column: str = "text",
    output: str = "probs",
    truncate_prompt_tokens: int | None = -1,
    llm_arguments: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_ROWS,
    concurrency: Concurrency = 1,
    **ray_arguments: Any,
) -> Dataset:
    """A dataset with the classes' probabilities of its texts: a fixed-size list of float32.

    Args:
        truncate_prompt_tokens: cut longer texts to so many tokens, −1 for the model's limit; None: a longer text is an
            error, which ends the job.
        ds, model, column, output, llm_arguments, batch_size, concurrency, ray_arguments: as `embed_dataset`, which
            also says what is returned and raised.
    """
    work = Classification(column, output, truncate_prompt_tokens)
    return _map(ds, work, model, llm_arguments, batch_size, concurrency, ray_arguments)


def score_dataset(
    ds: Dataset,
    model: str | os.PathLike[str],
    *,
    query_column: str = "query",
    document_column: str = "document",
    output: str = "score",
    instruction: str | None = None,
    truncate_prompt_tokens: int | None = -1,
    llm_arguments: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_ROWS,
    concurrency: Concurrency = 1,
    **ray_arguments: Any,
) -> Dataset:
    """A dataset with the score of each row's pair of texts: float32.

    Args:
        query_column, document_column: where the two texts are.
        instruction: as `LLM.score` takes it.
        truncate_prompt_tokens: as `classify_dataset`.
        ds, model, output, llm_arguments, batch_size, concurrency, ray_arguments: as `embed_dataset`, which also says
            what is returned and raised.
    """
    work = Scoring(query_column, document_column, output, instruction, truncate_prompt_tokens)
    return _map(ds, work, model, llm_arguments, batch_size, concurrency, ray_arguments)


def rerank_dataset(
    ds: Dataset,
    model: str | os.PathLike[str],
    *,
    query_column: str = "query",
    documents_column: str = "documents",
    output: str = "ranking",
    top_n: int | None = None,
    instruction: str | None = None,
    llm_arguments: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_ROWS,
    concurrency: Concurrency = 1,
    **ray_arguments: Any,
) -> Dataset:
    """A dataset with the ranking of each row's documents: a list of {index, score}, best first. Longer texts are cut.

    Args:
        query_column: where the query is.
        documents_column: where the documents are, a list of texts a row; an empty list has an empty ranking.
        top_n, instruction: as `LLM.rerank` takes them.
        ds, model, output, llm_arguments, batch_size, concurrency, ray_arguments: as `embed_dataset`, which also says
            what is returned and raised. A row is as much work as it has documents.
    """
    work = Reranking(query_column, documents_column, output, top_n, instruction)
    return _map(ds, work, model, llm_arguments, batch_size, concurrency, ray_arguments)


class Replica:
    """What an actor runs: one model, handed a batch of rows at a time."""

    def __init__(self, work: Work, model: str, llm_arguments: dict[str, Any]) -> None:
        if _on_one_cpu():
            _stay_on_one_core()
        from jaxpool.llm import LLM

        self._work = work
        self._llm = LLM(model, task=work.task, **llm_arguments)

    def __call__(self, batch: Any) -> Any:
        """`pyarrow.Table` in, `pyarrow.Table` out."""
        return add_answers(self._llm, self._work, batch)


def _map(
    ds: Dataset,
    work: Work,
    model: str | os.PathLike[str],
    llm_arguments: Mapping[str, Any] | None,
    batch_size: int,
    concurrency: Concurrency,
    ray_arguments: Mapping[str, Any],
) -> Dataset:
    data = _import_ray_data()
    if not isinstance(ds, data.Dataset):
        raise TypeError(f"ds: expected a dataset of Ray Data, got {type(ds).__name__}; see ray.data.from_items")
    own = dict(llm_arguments or {})
    if wrong := {"model", "task"} & set(own):
        raise ValueError(f"llm_arguments: {sorted(wrong)} are not for it to say: the function and its `model=` do")
    schema = ds.schema(fetch_if_missing=False)  # to fetch it would start the job
    if schema is not None:
        check_columns(schema.names, work)
    return ds.map_batches(
        Replica,
        fn_constructor_kwargs={"work": work, "model": os.fspath(model), "llm_arguments": own},
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=_pool(data, concurrency),
        **ray_arguments,
    )


def _pool(data: Any, concurrency: Concurrency) -> Any:
    if isinstance(concurrency, int):
        return data.ActorPoolStrategy(size=concurrency)
    return data.ActorPoolStrategy(**dict(zip(("min_size", "max_size", "initial_size"), concurrency, strict=False)))


def _import_ray_data() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise ImportError(f"datasets of Ray need Ray Data ({error}): pip install 'jaxpool[ray]'") from error
    return ray.data


def _on_one_cpu() -> bool:
    """Whether Ray gave this actor no accelerator and not more than one CPU."""
    import ray

    context = ray.get_runtime_context()
    return not any(context.get_accelerator_ids().values()) and context.get_assigned_resources().get("CPU", 0) <= 1


def _stay_on_one_core() -> None:
    """Makes XLA leave the other cores to other actors: Ray counts CPUs, but holds nobody to them."""
    import jax

    os.environ.setdefault("NPROC", "1")  # how many threads XLA takes, read when JAX starts
    if getattr(jax.config, "jax_num_cpu_devices", -1) < 1:  # unless somebody chose already
        jax.config.update("jax_num_cpu_devices", 1)
