"""The heads that families share: how transformers' `*ForSequenceClassification` and reward models end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxpool.heads import Dense
from jaxpool.models.family import Head
from jaxpool.models.hf_config import INTEGER, OBJECT, ConfigError

# "<extra_0>" in the vocabulary of Qwen 2.5, which ends a step.
STEP_TAG = 151_651

CLASSIFIER, TOKEN_CLASSIFIER, REWARD = "classification", "token_classification", "reward"


def labels(values: Mapping[str, Any]) -> int:
    """How many classes config.json names: `id2label`, or `num_labels`, or two as transformers supposes.

    Raises:
        ConfigError: the two disagree, or are of the wrong kind.
    """
    OBJECT.check(values.get("id2label"), "config.json", "id2label")
    numbers = [values.get(name) for name in ("num_labels", "_num_labels")]
    for number in numbers:
        INTEGER.check(number, "config.json", "num_labels")
    named = values.get("id2label")
    given = next((number for number in numbers if number is not None), None)
    if named is None:
        return 2 if given is None else given
    if given is not None and given != len(named) and "num_labels" in values:
        raise ConfigError(f"config.json: `num_labels` is {given}, but `id2label` names {len(named)}")
    return len(named)


def tanh_classifier(config: Any, values: Mapping[str, Any]) -> Head:
    """BERT's and RoBERTa's: a tanh layer over the first token, then the classes."""
    width = config.hidden_size
    return Head(CLASSIFIER, (Dense(width, width), Dense(width, labels(values), activation="identity")))


def relu_classifier(config: Any, values: Mapping[str, Any]) -> Head:
    """DistilBERT's: a relu layer over the first token, then the classes."""
    width = config.hidden_size
    modules = (Dense(width, width, activation="relu"), Dense(width, labels(values), activation="identity"))
    return Head(CLASSIFIER, modules)


def linear_classifier(config: Any, values: Mapping[str, Any]) -> Head:
    """The decoders': the classes from the last token, without bias."""
    return Head(CLASSIFIER, (Dense(config.hidden_size, labels(values), bias=False, activation="identity"),))


def token_classifier(config: Any, values: Mapping[str, Any]) -> Head:
    """The encoders': the classes of every token."""
    classes = Dense(config.hidden_size, labels(values), activation="identity")
    return Head(TOKEN_CLASSIFIER, (classes,), task="token_classify")


def reward(config: Any, values: Mapping[str, Any]) -> Head:
    """Qwen2ForRewardModel's: a relu layer and one value for every token, as they are."""
    return _mlp(config.hidden_size, 1, activation="identity")


def process_reward(config: Any, values: Mapping[str, Any]) -> Head:
    """Qwen2ForProcessRewardModel's: two classes a token, of which those at the ends of steps count."""
    tag = STEP_TAG if config.vocab_size > STEP_TAG else None
    return replace(_mlp(config.hidden_size, 2, activation="softmax"), step=True, step_tag_id=tag)


def _mlp(width: int, values: int, *, activation: str) -> Head:
    modules = (Dense(width, width, activation="relu"), Dense(width, values, activation="identity"))
    return Head(REWARD, modules, task="token_classify", activation=activation)


def value_head(config: Any, values: Mapping[str, Any]) -> Head:
    """InternLM2ForRewardModel's: one value for every token, as it is."""
    modules = (Dense(config.hidden_size, 1, bias=False, activation="identity"),)
    return Head(REWARD, modules, task="token_classify", activation="identity")
