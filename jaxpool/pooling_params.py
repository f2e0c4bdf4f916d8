"""`PoolingParams`: what one request asks of the pooler, over the instance's own settings. vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxpool.recipe import Recipe


@dataclass(frozen=True)
class PoolingParams:
    """Options of one request; None leaves the instance's. Requests with different ones share batches and programs.

    Attributes:
        dimensions: Matryoshka (arXiv:2205.13147): keep the first so many entries, before normalising.
        normalize: whether the vector is brought to length 1 (vLLM ≥ 0.13: `use_activation`).
        use_activation: the newer name of `normalize` for embeddings.
    """

    dimensions: int | None = None
    normalize: bool | None = None
    use_activation: bool | None = None

    def __post_init__(self) -> None:
        if None not in (self.normalize, self.use_activation) and self.normalize != self.use_activation:
            raise ValueError("PoolingParams: `normalize` and `use_activation` contradict each other")

    def resolve(self, recipe: Recipe, model: str) -> Options:
        """The options in full.

        Raises:
            ValueError: dimensions that the model was not trained for; the texts are vLLM's.
        """
        normalise = self.normalize if self.normalize is not None else self.use_activation
        if self.dimensions is not None:
            _check_dimensions(self.dimensions, recipe, model)
        return Options(
            dimensions=self.dimensions or recipe.vector_size,
            activate=recipe.ends_normalised if normalise is None else normalise,
        )


@dataclass(frozen=True)
class Options:
    """What the program is told of one sequence: entries to keep, and whether to normalise."""

    dimensions: int
    activate: bool


def spread(params: Any, count: int) -> list[PoolingParams]:
    """One `PoolingParams` for all prompts, or one each.

    Raises:
        ValueError: not `PoolingParams`, or not one a prompt.
    """
    if params is None or isinstance(params, PoolingParams):
        return [params or PoolingParams()] * count
    if not isinstance(params, Sequence) or not all(isinstance(p, PoolingParams) for p in params):
        raise ValueError(f"pooling_params: expected PoolingParams or a list of them, got {type(params).__name__}")
    if len(params) != count:
        raise ValueError(f"The lengths of prompts ({count}) and params ({len(params)}) must be the same.")
    return list(params)


def _check_dimensions(dimensions: int, recipe: Recipe, model: str) -> None:
    allowed = recipe.hf.get("matryoshka_dimensions")
    if not (allowed or recipe.hf.get("is_matryoshka")):
        raise ValueError(
            f'Model "{model}" does not support matryoshka representation, changing output dimensions will lead to '
            f"poor results: it does not support Matryoshka embeddings; dimensions must be unset "
            f"(received dimensions={dimensions}). hf_overrides={{'is_matryoshka': True}} says that it does."
        )
    if dimensions < 1:
        raise ValueError(f"Dimensions must be greater than 0, got {dimensions}")
    if allowed and dimensions not in allowed:
        raise ValueError(
            f'Model "{model}" only supports {sorted(allowed)} matryoshka dimensions, use other output dimensions will '
            f"lead to poor results (Matryoshka dimensions; got {dimensions})."
        )
    if dimensions > recipe.embedding_size:
        raise ValueError(
            f'Model "{model}" only supports dimensions in range [1, {recipe.embedding_size}], got {dimensions}.'
        )
