"""Language models that rerank: the tokens that they answer with, and the prompt that they were trained on.

Their config.json says nothing of it, so they are known by name; what a checkpoint's own files or the user say goes
before this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Reranker:
    """One kind of language model that reranks.

    Attributes:
        name: of its template in `templates/`.
        model_type: config.json's.
        pattern: what its checkpoints' names contain, in lower case.
        tokens: its answers; for two, (no, yes).
        difference: whether the score is the logit of "yes" minus that of "no".
    """

    name: str
    model_type: str
    pattern: str
    tokens: tuple[str, ...]
    difference: bool

    @cached_property
    def template(self) -> str:
        """Its prompt, as a jinja template over `messages` (roles "query" and "document") and `instruction`."""
        return (_TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8")


RERANKERS = (
    Reranker("qwen3_reranker", "qwen3", "qwen3-reranker", ("no", "yes"), difference=True),
    Reranker("mxbai_rerank_v2", "qwen2", "mxbai-rerank", ("0", "1"), difference=True),
    Reranker("bge_reranker_v2_gemma", "gemma", "bge-reranker-v2-gemma", ("Yes",), difference=False),
)


def named(directory: Path, hf: Mapping[str, Any]) -> Reranker | None:
    """The reranker that a checkpoint says it is.

    By its name (of its folder, of its hub repository above the snapshot, or in config.json), or by the tokens that a
    user's `hf_overrides` name in vLLM's way.
    """
    reranker = of_model_type(hf)
    if reranker is None:
        return None
    names = " ".join((*directory.parts[-3:], str(hf.get("_name_or_path", "")))).lower().replace("_", "-")
    tokens = tuple(hf.get("classifier_from_token") or ())
    return reranker if reranker.pattern in names or tokens == reranker.tokens else None


def of_model_type(hf: Mapping[str, Any]) -> Reranker | None:
    """The reranker that a language model of this type is, if it is one at all."""
    return next((reranker for reranker in RERANKERS if reranker.model_type == hf.get("model_type")), None)
