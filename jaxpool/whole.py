"""Outputs that appear only when they are whole: written under another name beside it, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name to write under: renamed to `path` at the end, deleted if anything fails (Ctrl-C too).

    A file that is at `path` already is replaced at the end, and stays as it is if anything fails.
    """
    part = _beside(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """`whole_file` for a directory: the one to write in. Parents of `path` are made.

    Raises:
        FileExistsError: `path` is there already and not an empty directory; nothing in it is touched.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"output {path} is there already, and not an empty directory")
    part = _beside(path)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            path.rmdir()
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _beside(path: Path) -> Path:
    # In the same directory, since a rename does not cross file systems; the process keeps two runs apart.
    return path.with_name(f".{path.name}.part{os.getpid()}")
