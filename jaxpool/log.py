"""The one logger, and a helper to say a thing once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("jaxpool")
_said: set[str] = set()


def once(message: str, level: int = logging.WARNING) -> None:
    """Logs `message` the first time it comes."""
    if message not in _said:
        _said.add(message)
        logger.log(level, message)


@contextmanager
def without_complaints() -> Iterator[None]:
    """Around imports that complain of what is not needed: of widgets in notebooks (tqdm), of torch (transformers)."""
    theirs = logging.getLogger("transformers")
    theirs.addFilter(_is_no_advice)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")
            yield
    finally:
        theirs.removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("PyTorch was not found")


def set_level(level: str) -> None:
    """Sets the level and, where nobody has set up logging, writes to stderr (for the command line)."""
    logger.setLevel(level.upper())
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("jaxpool %(levelname)s: %(message)s"))
        logger.addHandler(handler)
