"""`PoolingParams`: what one request asks of the pooler, over the instance's own settings. vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jaxpool.activation_flags import OF_CLASSIFIERS, OF_EMBEDDINGS, check_flags, flag
from jaxpool.recipe import Recipe
from jaxpool.tasks import CLASSIFY, EMBED, TOKEN_CLASSIFY, TOKEN_EMBED

_EMBEDDING = (*OF_EMBEDDINGS, "dimensions", "adapter")
_CLASSIFIER = (*OF_CLASSIFIERS, "adapter")
_VALID = {EMBED: _EMBEDDING, TOKEN_EMBED: _EMBEDDING, CLASSIFY: _CLASSIFIER, TOKEN_CLASSIFY: _CLASSIFIER}
_OF_STEPS = ("step_tag_id", "returned_token_ids")
# Of older versions of vLLM; they have no say in what is computed.
_NO_SAY = ("use_cross_encoder", "additional_data")


@dataclass(frozen=True)
class PoolingParams:
    """Options of one request; None leaves the instance's. Requests with different ones share batches and programs.

    Attributes:
        dimensions: Matryoshka (arXiv:2205.13147): keep the first so many entries, before normalising.
        normalize, softmax, activation, use_activation: whether the last step is done, as in `PoolerConfig`.
        adapter: the name of the adapter to compute with, of a model that has several; "none" for the bare model.
        step_tag_id: the token at which a process reward model's answers are read.
        returned_token_ids: as the instance's; another choice needs an instance of its own.
        truncate_prompt_tokens: cut this prompt to so many tokens, −1 for the model's limit.
        extra_kwargs: vLLM's place for `chat_template_kwargs` (`instruction`) of `score`.
        use_cross_encoder, additional_data: of older versions of vLLM; they change nothing.
    """

    dimensions: int | None = None
    normalize: bool | None = None
    softmax: bool | None = None
    activation: bool | None = None
    use_activation: bool | None = None
    adapter: str | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | tuple[int, ...] | None = None
    truncate_prompt_tokens: int | None = None
    extra_kwargs: Mapping[str, Any] | None = None
    use_cross_encoder: bool = False
    additional_data: Any = None

    def __post_init__(self) -> None:
        check_flags(self)

    def resolve(self, recipe: Recipe, model: str, task: str | None = None) -> Options:
        """The options in full.

        Args:
            model: its name, for errors.
            task: of the request; None for the instance's own.

        Raises:
            ValueError: what the task does not take, or the model was not trained for; the texts are vLLM's.
        """
        task = task or recipe.task
        self._check(task, recipe)
        if self.dimensions is not None:
            check_dimensions(self.dimensions, recipe, model)
        activate = flag(self, OF_EMBEDDINGS if recipe.embeds else OF_CLASSIFIERS)
        tag = self.step_tag_id if self.step_tag_id is not None else recipe.step_tag_id
        return Options(
            dimensions=self.dimensions or recipe.dimensions or recipe.width(task),
            activate=recipe.activates(task) if activate is None else activate,
            adapter=_adapter_number(self.adapter, recipe.adapters),
            step_tag_id=tag if recipe.step and task == TOKEN_CLASSIFY else None,
        )

    def _check(self, task: str, recipe: Recipe) -> None:
        valid = (*_VALID[task], *_OF_STEPS) if recipe.step and task == TOKEN_CLASSIFY else _VALID[task]
        general = ("truncate_prompt_tokens", "extra_kwargs", *_NO_SAY)
        names = [f.name for f in fields(self) if f.name not in (*valid, *general)]
        if wrong := [name for name in names if getattr(self, name) is not None]:
            raise ValueError(
                f"Task {task!r} only supports {list(valid)} parameters, does not support {wrong} parameters"
            )
        if self.returned_token_ids is not None:
            raise ValueError(
                "returned_token_ids decides which rows of the head are computed, so it belongs to the instance: "
                "pooler_config={'returned_token_ids': […]}"
            )


@dataclass(frozen=True)
class Options:
    """What the engine is told of one sequence.

    Attributes:
        dimensions: entries to keep.
        activate: whether the last step is done.
        adapter: number of the adapter, 0 for none.
        step_tag_id: the token whose answers are given; None for all tokens'.
        limit: this prompt is cut to so many tokens; None: as the call says.
    """

    dimensions: int
    activate: bool
    adapter: int = 0
    step_tag_id: int | None = None
    limit: int | None = None


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


def _adapter_number(name: str | None, adapters: tuple[str, ...]) -> int:
    if name is None:
        return len(adapters)  # the last, as in vLLM; 0 where there are none
    if name == "none":
        return 0
    if name not in adapters:
        raise ValueError(f"adapter is {name!r}, expected one of {[*adapters, 'none']}")
    return adapters.index(name) + 1


def check_dimensions(dimensions: int, recipe: Recipe, model: str) -> None:
    """Whether an embedding of the model may be cut to so many entries.

    Raises:
        ValueError: the model does not say that it may; the words are vLLM's, of its old and new versions.
    """
    allowed = recipe.hf.get("matryoshka_dimensions")
    if not recipe.embeds:
        raise ValueError(f"dimensions is {dimensions}, but Model {model!r} gives no embeddings")
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
