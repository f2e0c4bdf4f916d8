"""vLLM's names, over the years, for one question: whether the last step of a head is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# `normalize` was for embeddings, the next two for classifiers; `use_activation` came in their place (vLLM 0.13).
OF_EMBEDDINGS = ("normalize", "use_activation")
OF_CLASSIFIERS = ("softmax", "activation", "use_activation")
ALL_FLAGS = ("normalize", "softmax", "activation", "use_activation")


def check_flags(owner: Any) -> None:
    """Refuses flags of one object that are no booleans or contradict each other.

    Raises:
        ValueError: the names of the two.
    """
    for name in ALL_FLAGS:
        value = getattr(owner, name)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{type(owner).__name__}: `{name}` is {value!r}, expected True, False or None")
    for names in (OF_EMBEDDINGS, OF_CLASSIFIERS):
        given = {name: getattr(owner, name) for name in names if getattr(owner, name) is not None}
        if len(set(given.values())) > 1:
            said = " and ".join(f"`{name}`={value}" for name, value in given.items())
            raise ValueError(f"{type(owner).__name__}: {said} contradict each other")


def flag(owner: Any, names: Sequence[str]) -> bool | None:
    """What the first of `names` that is set says."""
    return next((value for name in names if (value := getattr(owner, name)) is not None), None)
