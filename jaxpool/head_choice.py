"""Which head a model gets: by the task that is asked for, its architecture, and its own files. One place decides."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpool import rerankers
from jaxpool.activations import by_labels, resolve_activation
from jaxpool.converters.transforms import TokenRows
from jaxpool.heads import Dense, Module
from jaxpool.log import once
from jaxpool.models.family import Family, Head
from jaxpool.models.hf_config import TEXTS, ConfigError
from jaxpool.tasks import AUTO, CLASSIFY, EMBED, SCORE, SIBLINGS, TOKEN_CLASSIFY
from jaxpool.tokenizer_files import read_chat_template
from jaxpool.tokens import load_tokenizer

_DIFFERENCE, _ROWS = "from_2_way_softmax", "no_post_processing"


@dataclass(frozen=True)
class Source:
    """What a model directory says of itself, read and not yet judged.

    Attributes:
        directory: with the transformer's own files.
        hf: config.json as a dict (after `hf_overrides`).
        family, architecture, config: what computes its backbone.
        saved: what sentence-transformers saved, as `sentence_transformers.read` gives it; empty if it did not.
    """

    directory: Path
    hf: Mapping[str, Any] = field(repr=False)
    family: Family
    architecture: str
    config: Any
    saved: Mapping[str, Any]

    @property
    def head(self) -> Head | None:
        """The architecture's own head."""
        build = self.family.heads.get(self.architecture)
        return build(self.config, self.hf) if build else None

    @property
    def is_decoder(self) -> bool:
        """Whether the backbone's last token has seen all others."""
        return self.family.pooling == "lasttoken"


def choose(asked: str, source: Source) -> dict[str, Any]:
    """The fields of the recipe that depend on the task.

    Args:
        asked: "auto", "score" or one of `tasks.TASKS`.

    Raises:
        ValueError: the model has nothing that answers the task, or its files contradict themselves.
    """
    task = own_task(source) if asked in (AUTO, SCORE) else asked
    guess = rerankers.named(source.directory, source.hf)
    if guess is None and asked in (SCORE, CLASSIFY) and _is_bare_language_model(source):
        guess = rerankers.of_model_type(source.hf)
        if guess is not None:
            task = CLASSIFY
            once(
                f"{source.directory}: {source.architecture} has no classifier, so it is read as a reranker like "
                f"{guess.name} (tokens {guess.tokens}, its prompt); task='embed' scores by cosine instead"
            )
    if asked == SCORE and task == TOKEN_CLASSIFY:
        raise ValueError(f"This model does not support the Scoring API: {source.architecture} answers for tokens")
    if task in (EMBED, SIBLINGS[EMBED]):
        return {"task": task, **_embedding(source)}
    return {"task": task, **_classifier(task, source, guess)}


def own_task(source: Source) -> str:
    """What the model is for, by its own files."""
    if "pooling" in source.saved:
        return EMBED
    if source.saved or source.hf.get("classifier_from_token") or rerankers.named(source.directory, source.hf):
        return CLASSIFY
    head = source.head
    return head.task if head else EMBED


def _is_bare_language_model(source: Source) -> bool:
    return (
        source.architecture.endswith("ForCausalLM") and not source.saved and not source.hf.get("classifier_from_token")
    )


def _embedding(source: Source) -> dict[str, Any]:
    if "pooling" in source.saved:
        return {name: value for name, value in source.saved.items() if name != "activation"}
    tower = source.family.tower
    # CLIP and its kin can be pooled in one way only.
    level = logging.INFO if tower is not None and tower.answers else logging.WARNING
    once(
        f"{source.directory}: no modules.json, so pooling is vLLM's default for {source.architecture}: "
        f"{source.family.pooling}, normalised",
        level,
    )
    return {"pooling": (source.family.pooling,), "activate": True}


def _classifier(task: str, source: Source, reranker: rerankers.Reranker | None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: source.saved[name] for name in ("prompts", "default_prompt", "source") if name in source.saved
    }
    template = reranker.template if reranker else None
    if source.saved.get("messages"):
        template = read_chat_template(source.directory)
        if template is None:
            raise ValueError(f"{source.directory}: pairs are put together by a chat template, but there is none")
        fields |= {"chat": True, "generation_prompt": source.saved.get("generation_prompt", False)}
    fields |= {
        "template": template,
        "separated": bool(source.hf.get("use_sep_token", not source.is_decoder or bool(source.saved))),
        "pooling": (source.family.pooling,),
    }
    rows = _token_rows(source, reranker)
    head = source.head
    if rows is not None:
        count = 1 if rows.difference else len(rows.ids)
        modules: tuple[Module, ...] = (Dense(source.config.hidden_size, count, bias=False, activation="identity"),)
        final = source.saved.get("activation") or by_labels(count)
        return fields | {"modules": modules, "head_rules": rows, "final": final, "activate": True}
    if head is None and task == CLASSIFY:
        head = _sequence_classifier(source)
    if head is None:
        return fields | {"modules": (), "final": "identity", "activate": False}
    labels = head.modules[-1].outputs if isinstance(head.modules[-1], Dense) else 0
    final = source.saved.get("activation") or head.activation or resolve_activation(source.hf, labels)
    return fields | {
        "modules": head.modules,
        "head_rules": head.rules,
        "final": final,
        # A classifier's value for every token is a reward: raw, as in vLLM's `task="reward"`.
        "activate": not (task == TOKEN_CLASSIFY and head.task == CLASSIFY),
        "activate_texts": True if head.task == CLASSIFY else None,
        "pooling": (head.pooling or source.family.pooling,),
        "step": head.step,
        "step_tag_id": head.step_tag_id,
    }


def _sequence_classifier(source: Source) -> Head:
    """The head that this family's classifiers have, for a checkpoint that calls itself something else."""
    for architecture, build in source.family.heads.items():
        if architecture.endswith("ForSequenceClassification"):
            return build(source.config, source.hf)
    raise ValueError(
        f"Classification API is not supported by this model: {source.architecture} has no classifier that jaxpool knows"
    )


def _token_rows(source: Source, reranker: rerankers.Reranker | None) -> TokenRows | None:
    """The rows of the language model's head that the model answers with, if it is one that does."""
    vocab = source.config.vocab_size
    if "score_tokens" in source.saved:
        ids, difference = source.saved["score_tokens"]
        return TokenRows(_in_vocabulary(ids, vocab), vocab, difference)
    hf = source.hf
    tokens = hf.get("classifier_from_token")
    TEXTS.check(tokens, "config.json", "classifier_from_token")
    if tokens:
        default = _DIFFERENCE if hf.get("is_original_qwen3_reranker") else None
        method = hf.get("method") or default or (_DIFFERENCE if len(tokens) == 2 else _ROWS)
        if method not in (_DIFFERENCE, _ROWS):
            raise ConfigError(f"config.json: `method` is {method!r}, expected {_DIFFERENCE!r} or {_ROWS!r}")
        if method == _DIFFERENCE and len(tokens) != 2:
            raise ConfigError(f"config.json: {_DIFFERENCE!r} takes two tokens, `classifier_from_token` is {tokens}")
        return TokenRows(_ids(source, tokens), vocab, method == _DIFFERENCE)
    # One that was converted to a classifier has its own weights for it.
    if reranker is not None and source.head is None:
        return TokenRows(_ids(source, reranker.tokens), vocab, reranker.difference)
    return None


def _ids(source: Source, tokens: list[str] | tuple[str, ...]) -> tuple[int, ...]:
    tokenizer = load_tokenizer(source.directory)
    ids = tuple(tokenizer.token_id(token) for token in tokens)
    if None in ids:
        missing = [token for token, i in zip(tokens, ids, strict=True) if i is None]
        raise ValueError(f"{source.directory}: the tokenizer has no tokens {missing}, which the score is read from")
    return tuple(i for i in ids if i is not None)


def _in_vocabulary(ids: tuple[int, ...], vocab: int) -> tuple[int, ...]:
    if wrong := [i for i in ids if not 0 <= i < vocab]:
        raise ValueError(f"token ids {wrong} are out of vocabulary (0 … {vocab - 1})")
    return ids
