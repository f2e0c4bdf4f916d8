"""What a user's call comes to: the task, the requests with their options, and how their texts are read.

`LLM` and the server make their calls here, so that both check the same and say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from jaxpool import scoring
from jaxpool.pooling_params import Options, PoolingParams, spread
from jaxpool.prompts import Shown, parse_prompts, parse_text
from jaxpool.reading import Reading, Request, check_truncation, make_reading
from jaxpool.recipe import Recipe
from jaxpool.scoring import Side
from jaxpool.tasks import CLASSIFY, EMBED, PER_TOKEN, pooling_task
from jaxpool.tokens import Tokenizer

OneOrEach = PoolingParams | Sequence[PoolingParams] | None
Pairs = tuple[list[Side], list[Side]]


class Call(NamedTuple):
    """One call.

    Attributes:
        task: of the recipe's.
        requests: prompts with their options.
        reading: how the prompts are read.
    """

    task: str
    requests: list[Request]
    reading: Reading


class Calls:
    """Makes the calls of one instance.

    Args:
        recipe: the instance's.
        tokenizer: the instance's.
        name: of the model, for errors.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, name: str) -> None:
        self.recipe, self._tokenizer, self._name = recipe, tokenizer, name

    def encode(
        self,
        prompts: Any,
        params: OneOrEach = None,
        *,
        pooling_task: str | None = None,
        truncate: Any = None,
        tokenization: Mapping[str, Any] | None = None,
        none: bool = False,
    ) -> Call:
        """A call that answers for each prompt.

        Args:
            prompts, params, pooling_task, truncate, tokenization: as `LLM.encode` takes them.
            none: whether there may be no prompt.

        Raises:
            ValueError: as `LLM.encode`.
        """
        task = self.task(pooling_task)
        parsed = [] if none and is_none(prompts) else parse_prompts(prompts)
        tower = self.recipe.family.tower
        if tower is not None and tower.answers and task != EMBED and any(isinstance(p, Shown) for p in parsed):
            raise ValueError(f"a picture has one vector; task {task!r} is for texts")
        requests = list(zip(parsed, self.options(params, len(parsed), task), strict=True))
        return Call(task, requests, self._reading(self.default_prompt(), truncate, tokenization, task))

    def pairs(self, data_1: Any, data_2: Any, *, none: bool = False) -> Pairs:
        """Both sides, one with one. Errors as `scoring.parse_pairs`."""
        if none and is_none(data_1) and is_none(data_2):
            return [], []
        return scoring.parse_pairs(data_1, data_2, self.recipe)

    def score(
        self,
        pairs: Pairs,
        params: OneOrEach = None,
        *,
        truncate: Any = None,
        tokenization: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        instruction: str | None = None,
        none: bool = False,
    ) -> Call:
        """A call that answers for each pair; of a model that embeds, for each first side and then for each second.

        Raises:
            ValueError: as `LLM.score`.
        """
        if self.recipe.embeds:
            if chat_template is not None or instruction is not None:
                raise ValueError("chat_template and instruction are for models that read both texts at once")
            self.check_one_vector("score")
            each = spread(params, len(pairs[0]))
            how = {"truncate": truncate, "tokenization": tokenization, "none": none}
            return self.encode([*pairs[0], *pairs[1]], [*each, *each], pooling_task=EMBED, **how)
        self.check_one_score()
        each = spread(params, len(pairs[0]))
        special = self._tokenizer.special_tokens
        write = scoring.PairWriter(self.recipe, special, chat_template, _instruction(instruction, each))
        options = self.options(each, len(each), CLASSIFY)
        first, second = (cast("list[str]", side) for side in pairs)  # `scoring.parse_side` has refused pictures
        requests: list[Request] = [(write(*pair), own) for *pair, own in zip(first, second, options, strict=True)]
        return Call(CLASSIFY, requests, self._reading("", truncate, tokenization, CLASSIFY))

    def task(self, name: str | None) -> str:
        """The task that a user's name for it means on this instance. Errors as `tasks.pooling_task`."""
        return pooling_task(name, self.recipe.task, self.recipe.tasks)

    def options(self, params: OneOrEach, count: int, task: str) -> list[Options]:
        """The options in full, one a request. Errors as `PoolingParams.resolve`."""
        options = []
        for own in spread(params, count):
            limit = own.truncate_prompt_tokens
            if limit is not None:
                limit = check_truncation(limit, self.recipe.max_length, self._tokenizer)
            options.append(replace(own.resolve(self.recipe, self._name, task), limit=limit))
        return options

    def cutting(self, prompt: str) -> Reading:
        """Of the methods that cut what is too long; what is embedded in parts is longer than the model's limit."""
        if self.recipe.chunked:
            return replace(self._reading(prompt, None, None, EMBED), cut=True)
        return self._reading(prompt, -1, None, EMBED)

    def default_prompt(self) -> str:
        """What an embedding model puts in front of every text, unasked."""
        embeds, name = self.recipe.embeds, self.recipe.default_prompt
        return self.recipe.prompts[name] if embeds and name else ""

    def prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        """What is put in front of each text.

        Raises:
            ValueError: no such name, or no text.
        """
        if prompt is not None:
            return parse_text(prompt, "prompt")
        if prompt_name is None:
            return self.default_prompt()
        if prompt_name not in self.recipe.prompts:
            raise ValueError(f"prompt_name is {prompt_name!r}, expected one of {list(self.recipe.prompts)}")
        return self.recipe.prompts[prompt_name]

    def check_embeds(self, method: str) -> None:
        """Raises ValueError unless the model embeds."""
        if not self.recipe.embeds:
            raise ValueError(
                f"{method}: Embedding API is not supported by this model. Try converting the model using "
                "`--convert embed` (here: task='embed')."
            )

    def check_one_vector(self, method: str) -> None:
        """Raises ValueError unless the instance gives one vector a text."""
        self.check_embeds(method)
        if self.recipe.task in PER_TOKEN:
            raise ValueError(f"{method}: this instance keeps every token's vector (pooling ALL); use encode")

    def check_classifies(self, what: str, convert: str) -> None:
        """Raises ValueError if the model embeds."""
        if self.recipe.embeds:
            raise ValueError(
                f"{what} API is not supported by this model. Try converting the model using "
                f"`--convert {convert}` (here: task='{convert}')."
            )

    def check_one_score(self) -> None:
        """Raises ValueError unless the model gives one number a pair."""
        if CLASSIFY not in self.recipe.tasks or not self.recipe.modules:
            raise ValueError("This model does not support the Scoring API.")
        if (classes := self.recipe.width(CLASSIFY)) != 1:
            raise ValueError(f"Scoring API is only enabled for num_labels == 1. This model has {classes}.")

    def _reading(self, prompt: str, truncate: Any, tokenization: Mapping[str, Any] | None, task: str) -> Reading:
        in_parts = self.recipe.chunked and task not in PER_TOKEN
        return make_reading(self.recipe, self._tokenizer, prompt, truncate, tokenization, in_parts=in_parts)


def is_none(given: Any) -> bool:
    """Whether a list of nothing is given."""
    return isinstance(given, (list, tuple)) and not given


def _instruction(instruction: str | None, params: Sequence[PoolingParams]) -> str | None:
    """The instruction of a call: said outright, or in vLLM's place for it."""
    said = {(own.extra_kwargs or {}).get("chat_template_kwargs", {}).get("instruction") for own in params}
    if len(said - {None}) > 1 or (None not in (instruction, *said) and said != {instruction}):
        raise ValueError("instruction: one call takes one instruction")
    return instruction if instruction is not None else next(iter(said - {None}), None)
