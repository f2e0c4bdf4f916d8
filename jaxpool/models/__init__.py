"""The model families: which file answers for which architecture."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from jaxpool.models.family import Family

_FAMILY_FILES = (
    "bert",
    "mpnet",
    "jina",
    "roberta",
    "distilbert",
    "modernbert",
    "llama",
    "gemma",
    "internlm2",
    "clip",
    "siglip",
    "qwen2_vl",
    "llava_next",
    "phi3_v",
)


# What `register` added: a registry is the one thing here that outlives a call.
_REGISTERED: list[Family] = []


def register(family: Family) -> None:
    """Lets a family of one's own in: from now on `LLM` and `load` answer for its architectures.

    Args:
        family: with a `table`; its architectures take precedence over jaxpool's own.

    Raises:
        ValueError: it has no rule table, so nothing says where its weights come from.
    """
    if family.table is None:
        raise ValueError(f"register: family {family.name!r} has no `table` of checkpoint rules")
    _REGISTERED[:] = [family, *(other for other in _REGISTERED if other.name != family.name)]


def families() -> tuple[Family, ...]:
    """Every family that jaxpool knows, registered ones first."""
    return (*_REGISTERED, *(import_module(f"jaxpool.models.{name}").FAMILY for name in _FAMILY_FILES))


def find_family(config: Mapping[str, Any]) -> tuple[Family, str]:
    """The family that computes config.json's model, and the architecture's name.

    Raises:
        ValueError: no family answers for it; the error names what is supported.
    """
    architectures = config.get("architectures") or []
    model_type = config.get("model_type")
    answering = [family for family in families() if family.answers(config)]
    for family in answering:
        for architecture in architectures:
            if architecture in family.all_architectures:
                return family, architecture
    for family in answering:
        if not architectures and model_type in family.model_types:
            return family, family.architectures[0]
    known = sorted({name for family in families() for name in family.all_architectures})
    asked = ", ".join(architectures) or f"model_type {model_type!r}"
    raise ValueError(f"config.json: architecture {asked} is not supported; supported are {', '.join(known)}")
