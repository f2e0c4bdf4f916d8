"""`--middleware`: what a user puts in front of the application, by the name that Python imports it by, as vLLM's."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from inspect import iscoroutinefunction
from typing import Any

from fastapi import FastAPI


def find(name: str) -> Any:
    """An ASGI middleware's class, or a coroutine function `(request, call_next)`.

    Args:
        name: MODULE.NAME.

    Raises:
        ImportError: no such module, or nothing of that name in it.
        ValueError: neither a class nor such a function.
    """
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"--middleware {name!r}: expected MODULE.NAME")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"--middleware {name}: {error}") from error
    if not isinstance(found, type) and not iscoroutinefunction(found):
        raise ValueError(f"--middleware {name}: neither a class nor a coroutine function")
    return found


def install(app: FastAPI, found: Iterable[Any]) -> None:
    """Puts each, as `find` found it, in front of what is there; the application has not started yet."""
    for own in found:
        if iscoroutinefunction(own):
            app.middleware("http")(own)
        else:
            app.add_middleware(own)
