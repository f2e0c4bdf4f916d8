"""Which code a figure is of: a mark of the package's own files, whether or not they are committed."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What the engine is made of; what stands in front of it, benchmarks, tests and pages change no figure.
FOLDERS = ("converters", "jaxpool", "native")
IN_FRONT = ("corpus", "integrations", "server")
ENDINGS = (".py", ".cc", ".h", ".jinja")


def mark(root: Path = ROOT) -> str:
    """Twelve hexadecimal digits of a SHA-256 over the files' names and bytes."""
    digest = hashlib.sha256()
    files = (file for folder in FOLDERS for file in (root / folder).rglob("*") if file.suffix in ENDINGS)
    for file in sorted(file for file in files if file.relative_to(root).parts[1] not in IN_FRONT):
        digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
