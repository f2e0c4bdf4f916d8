"""`PoolerConfig`: how an instance pools, over what the checkpoint says. vLLM's names, old and new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from jaxpool.activation_flags import OF_CLASSIFIERS, OF_EMBEDDINGS, check_flags, flag
from jaxpool.activations import by_labels
from jaxpool.converters.transforms import TokenRows
from jaxpool.heads import Calibrate, Dense, Module, Select, chain_width
from jaxpool.log import once
from jaxpool.pooling_params import check_dimensions
from jaxpool.recipe import Recipe
from jaxpool.tasks import AUTO, NAMES, PER_TOKEN, SIBLINGS, TOKEN_CLASSIFY

# vLLM's name -> the pooler's; the last three are sentence-transformers' own.
SEQUENCE_TYPES = {
    "CLS": "cls",
    "LAST": "lasttoken",
    "MEAN": "mean",
    "MAX": "max",
    "MEAN_SQRT_LEN_TOKENS": "mean_sqrt_len_tokens",
    "WEIGHTEDMEAN": "weightedmean",
}
TOKEN_TYPES = ("ALL", "STEP")
POOLING_TYPES = (*SEQUENCE_TYPES, *TOKEN_TYPES)


@dataclass(frozen=True)
class PoolerConfig:
    """How to pool; None leaves what the checkpoint says.

    Attributes:
        pooling_type: "CLS", "LAST", "MEAN" or sentence-transformers' "MAX", "MEAN_SQRT_LEN_TOKENS", "WEIGHTEDMEAN"
            (one answer a text); "ALL" (one a token), "STEP" (one a token that ends a step).
        seq_pooling_type, tok_pooling_type: the same in vLLM's newest names.
        task: of `LLM`'s `task`.
        normalize, softmax, activation, use_activation: whether the last step is done: for embeddings normalisation
            (`normalize`), for classifiers their activation (`softmax`, `activation`), for both `use_activation`.
        dimensions: Matryoshka: entries to keep of every embedding.
        step_tag_id: for "STEP", the token at which answers are read.
        returned_token_ids: the entries of the answer to keep: of a model without a head of its own, the tokens whose
            logits are the answer.
        logit_mean, logit_sigma: classes become (logit − mean) / sigma before the activation.
        logit_bias, logit_scale: their older names: logit_mean, and 1 / logit_sigma.
        enable_chunked_processing: embed longer texts in parts, averaged by their tokens.
        max_embed_len: most tokens of such a text.
        enable_flash_late_interaction: accepted; it sets how vLLM computes, never what.
    """

    pooling_type: str | None = None
    seq_pooling_type: str | None = None
    tok_pooling_type: str | None = None
    task: str | None = None
    normalize: bool | None = None
    softmax: bool | None = None
    activation: bool | None = None
    use_activation: bool | None = None
    dimensions: int | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | tuple[int, ...] | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    logit_bias: float | None = None
    logit_scale: float | None = None
    enable_chunked_processing: bool | None = None
    max_embed_len: int | None = None
    enable_flash_late_interaction: bool = True

    def __post_init__(self) -> None:
        for name, allowed in _TYPES.items():
            value = getattr(self, name)
            if value is not None and str(value).upper() not in allowed:
                raise ValueError(f"{name} is {value!r}, expected one of {list(allowed)}")
        for name in ("seq_pooling_type", "tok_pooling_type"):
            if None not in (self.pooling_type, getattr(self, name)):
                raise ValueError(f"Cannot set both `pooling_type` and `{name}`")
        if self.task is not None and self.task not in NAMES:
            raise ValueError(f"Unsupported task: {self.task!r} Supported tasks: {NAMES}")
        check_flags(self)
        for old, new in (("logit_bias", "logit_mean"), ("logit_scale", "logit_sigma")):
            if None not in (getattr(self, old), getattr(self, new)):
                raise ValueError(f"PoolerConfig: `{old}` and `{new}` are one setting: give only one")
        if self.logit_sigma == 0:
            raise ValueError("logit_sigma cannot be 0 (division by zero)")
        if self.logit_scale == 0:
            raise ValueError("logit_scale cannot be 0: every class would be alike")
        if self.max_embed_len is not None and self.max_embed_len < 1:
            raise ValueError(f"max_embed_len is {self.max_embed_len}, expected at least 1")

    @classmethod
    def of(cls, value: PoolerConfig | Mapping[str, Any] | None) -> PoolerConfig:
        """From a `PoolerConfig`, a dict of its fields, or None.

        Raises:
            ValueError: something else, or a field that there is not.
        """
        if isinstance(value, PoolerConfig):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"pooler_config: expected a PoolerConfig or a dict of its fields, got {value!r:.60}")
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(value or {}) - set(known)):
            raise ValueError(f"PoolerConfig: unknown fields {unknown}, expected of {known}")
        return cls(**(value or {}))

    @property
    def sequence_type(self) -> str | None:
        """How one answer a text is pooled, by the pooler's name."""
        name = str(self.seq_pooling_type or self.pooling_type or "").upper()
        return SEQUENCE_TYPES.get(name)

    @property
    def token_type(self) -> str | None:
        """ "ALL" or "STEP", if asked for."""
        name = str(self.tok_pooling_type or self.pooling_type or "").upper()
        return name if name in TOKEN_TYPES else None

    def asked(self, task: str) -> str:
        """The task of the instance, where `LLM`'s arguments leave it open: steps are a reward model's."""
        if task == AUTO and self.token_type == "STEP":
            return TOKEN_CLASSIFY
        return task

    def apply(self, recipe: Recipe, model: str = "") -> Recipe:
        """The recipe with this configuration over it.

        Args:
            model: its name, for errors.

        Raises:
            ValueError: what is asked for does not fit the checkpoint's modules, or its task.
        """
        recipe = self._apply_pooling(recipe)
        recipe = self._apply_columns(recipe)
        recipe = self._apply_calibration(recipe)
        recipe = self._apply_activation(recipe)
        if self.dimensions is not None:
            check_dimensions(self.dimensions, recipe, model)
            recipe = replace(recipe, dimensions=self.dimensions)
        if self.enable_chunked_processing or self.max_embed_len is not None:
            recipe = self._apply_chunks(recipe)
        return recipe

    def _apply_pooling(self, recipe: Recipe) -> Recipe:
        if self.sequence_type is not None:
            recipe = replace(recipe, pooling=(self.sequence_type,))
            # A text type asked for by itself asks for one answer a text.
            if recipe.task in PER_TOKEN and self.seq_pooling_type is None:
                recipe = replace(recipe, task=SIBLINGS[recipe.task], step=False, activate_texts=None)
            chain_width(recipe.modules, replace(recipe, modules=()).width(recipe.task),
                        f"pooler_config (pooling_type {self.seq_pooling_type or self.pooling_type!r})")  # fmt: skip
        if self.token_type is not None:
            task = recipe.task if recipe.task in PER_TOKEN else SIBLINGS[recipe.task]
            step = self.token_type == "STEP"
            if step and recipe.embeds:
                raise ValueError("pooler_config: STEP pooling is for reward models; task='reward' makes it one")
            recipe = replace(recipe, task=task, step=step)
            chain_width(recipe.modules, replace(recipe, modules=()).width(task),
                        f"pooler_config (pooling_type {self.token_type!r})")  # fmt: skip
        if self.step_tag_id is not None:
            if not recipe.step:
                raise ValueError("pooler_config: step_tag_id is for STEP pooling")
            recipe = replace(recipe, step_tag_id=self.step_tag_id)
        return recipe

    def _apply_columns(self, recipe: Recipe) -> Recipe:
        if self.returned_token_ids is None:
            return recipe
        ids = tuple(self.returned_token_ids)
        if not ids or not all(isinstance(i, int) and i >= 0 for i in ids):
            raise ValueError(f"returned_token_ids is {self.returned_token_ids!r}, expected at least one token id")
        if recipe.embeds:
            raise ValueError("pooler_config: returned_token_ids is for classifiers and reward models")
        if recipe.modules:
            chain_width((Select(ids),), recipe.vector_size, "pooler_config (returned_token_ids)")
            final = by_labels(len(ids)) if recipe.final == "softmax" else recipe.final
            return replace(recipe, modules=(*recipe.modules, Select(ids)), final=final)
        # Without a head of its own the model's answers are logits: these rows of its head, never all of them.
        vocab = recipe.config.vocab_size
        if max(ids) >= vocab:
            raise ValueError(f"returned_token_ids: token id {max(ids)} is out of vocabulary (0 … {vocab - 1})")
        modules: tuple[Module, ...] = (Dense(recipe.config.hidden_size, len(ids), bias=False, activation="identity"),)
        return replace(
            recipe, modules=modules, head_rules=TokenRows(ids, vocab), final=by_labels(len(ids)), activate=True
        )

    def _apply_calibration(self, recipe: Recipe) -> Recipe:
        mean = self.logit_mean if self.logit_mean is not None else self.logit_bias
        sigma = 1 / self.logit_scale if self.logit_scale is not None else self.logit_sigma
        if mean is None and sigma is None:
            return recipe
        if recipe.embeds:
            raise ValueError("pooler_config: logit_mean and logit_sigma are for classifiers")
        calibrate = Calibrate(mean or 0.0, 1.0 if sigma is None else sigma)
        return replace(recipe, modules=(*recipe.modules, calibrate))

    def _apply_activation(self, recipe: Recipe) -> Recipe:
        own, other = (OF_EMBEDDINGS, ("softmax", "activation")) if recipe.embeds else (OF_CLASSIFIERS, ("normalize",))
        if not recipe.embeds and not recipe.modules and self.normalize:
            return replace(recipe, final="normalize", activate=True)  # rewards that are hidden states
        if ignored := [name for name in other if getattr(self, name)]:
            once(f"pooler_config: {', '.join(ignored)} has no say in a model that answers {recipe.task!r}")
        activate = flag(self, own)
        return recipe if activate is None else replace(recipe, activate=activate, activate_texts=None)

    def _apply_chunks(self, recipe: Recipe) -> Recipe:
        if not recipe.embeds or recipe.task in PER_TOKEN:
            raise ValueError("pooler_config: enable_chunked_processing is for embeddings of whole texts")
        if self.max_embed_len is not None and self.max_embed_len < recipe.max_length:
            raise ValueError(f"max_embed_len is {self.max_embed_len}, less than the model's {recipe.max_length} tokens")
        if not self.enable_chunked_processing:
            raise ValueError("pooler_config: max_embed_len needs enable_chunked_processing")
        return replace(recipe, chunked=True, max_embed_len=self.max_embed_len)


_TYPES = {
    "pooling_type": POOLING_TYPES,
    "seq_pooling_type": tuple(SEQUENCE_TYPES),
    "tok_pooling_type": TOKEN_TYPES,
}
