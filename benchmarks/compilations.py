"""What JAX compiles, by JAX's own word, and who asked for it: the engine's counter sees nothing but its programs."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path

import jax

import jaxpool

# Sent at the end of every compilation, in the thread that asked for it; also where a cache on disk had the program.
_EVENT = "/jax/core/compile/backend_compile_duration"
_PACKAGE = Path(jaxpool.__file__).parent


class Compilations:
    """Listens while it is entered.

    Attributes:
        found: by program and origin, how often.
    """

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def __enter__(self) -> Compilations:
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _EVENT:
            self.found[f"{kwargs.get('fun_name', 'a program')}, from {_origin()}"] += 1


def _origin() -> str:
    """The innermost line of jaxpool that stands in the stack; where there is none, the innermost outside JAX."""
    frames = traceback.extract_stack()[:-2]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    others = [frame for frame in frames if "/jax/" not in frame.filename and "contextlib" not in frame.filename]
    frame = (own or others or frames)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} ({frame.name})"
