"""`PoolerConfig`: how an instance pools, over what the checkpoint says. vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from jaxpool.heads import Normalize
from jaxpool.recipe import Recipe
from jaxpool.sentence_transformers import width_behind

# vLLM's name -> the pooler's.
POOLING_TYPES = {
    "CLS": "cls",
    "LAST": "lasttoken",
    "MEAN": "mean",
    "ALL": "all",
    "MAX": "max",
    "MEAN_SQRT_LEN_TOKENS": "mean_sqrt_len_tokens",
    "WEIGHTEDMEAN": "weightedmean",
}


@dataclass(frozen=True)
class PoolerConfig:
    """How to pool; None leaves what the checkpoint says.

    Attributes:
        pooling_type: "CLS", "LAST", "MEAN", "ALL" (every token's vector), or sentence-transformers' "MAX",
            "MEAN_SQRT_LEN_TOKENS", "WEIGHTEDMEAN".
        normalize: whether vectors are brought to length 1 (vLLM ≥ 0.13: `use_activation`).
        use_activation: the newer name of `normalize` for embeddings.
    """

    pooling_type: str | None = None
    normalize: bool | None = None
    use_activation: bool | None = None

    def __post_init__(self) -> None:
        if self.pooling_type is not None and str(self.pooling_type).upper() not in POOLING_TYPES:
            raise ValueError(f"pooling_type is {self.pooling_type!r}, expected one of {list(POOLING_TYPES)}")
        if None not in (self.normalize, self.use_activation) and self.normalize != self.use_activation:
            raise ValueError("PoolerConfig: `normalize` and `use_activation` contradict each other")

    @classmethod
    def of(cls, value: PoolerConfig | dict[str, Any] | None) -> PoolerConfig:
        """From a `PoolerConfig`, a dict of its fields, or None.

        Raises:
            ValueError: a field that there is not.
        """
        if isinstance(value, PoolerConfig):
            return value
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(value or {}) - set(known)):
            raise ValueError(f"PoolerConfig: unknown fields {unknown}, expected of {known}")
        return cls(**(value or {}))

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with this configuration over it.

        Raises:
            ValueError: the pooling's vectors do not fit the checkpoint's modules.
        """
        if self.pooling_type is not None:
            recipe = replace(recipe, pooling=(POOLING_TYPES[self.pooling_type.upper()],))
            width = replace(recipe, modules=()).vector_size
            for module in recipe.modules:
                width = width_behind(module, width, f"pooler_config (pooling_type {self.pooling_type!r})")
        normalise = self.normalize if self.normalize is not None else self.use_activation
        if normalise is not None and normalise != recipe.ends_normalised:
            # An inner Normalize is part of the model's maths; only the last one is a choice.
            recipe = replace(recipe, modules=(*recipe.modules, Normalize()) if normalise else recipe.modules[:-1])
        return recipe
