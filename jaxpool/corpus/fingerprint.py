"""What decides the bytes of a job's output, written down so that a resumed run can be held against it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpool.llm import LLM
    from jaxpool.recipe import Recipe

# Of a model's directory, what is read beside the weights.
_SMALL = (".json", ".txt", ".model", ".jinja")
# Those that compute or write.
_PACKAGES = ("jaxpool", "jax", "jaxlib", "numpy", "tokenizers", "pyarrow")
# Objects that the others follow from, or that are a place on this disk.
_UNTOLD = ("directory", "family", "hf", "module_folders")

_MOST_SHOWN = 12


def fingerprint(llm: LLM) -> dict[str, Any]:
    """The model's files, its recipe, the machine and the versions, as plain JSON.

    Args:
        llm: the model, loaded.
    """
    import jax

    device = jax.devices()[0]
    return {
        "model_files": file_digests(llm.recipe),
        "recipe": {f.name: _plain(getattr(llm.recipe, f.name)) for f in fields(llm.recipe) if f.name not in _UNTOLD},
        "dtype": str(llm.dtype),
        "batch_tokens": llm.memory_plan().batch_tokens,
        "layout": llm.layout,
        "machine": {
            "processor": platform.machine(),
            "platform": device.platform,
            "device": device.device_kind,
            "devices": jax.device_count(),
        },
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def file_digests(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of every file that a model is read from, by its path in the model's directory."""
    digests = {}
    for path in sorted(_files(recipe)):
        with path.open("rb") as file:
            digests[path.relative_to(recipe.directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _files(recipe: Recipe) -> Iterator[Path]:
    from jaxpool.converters.checkpoint import STEMS  # with JAX: what is refused before needs none of it

    folders = {recipe.directory, recipe.backbone_directory}
    folders |= {recipe.directory / folder for folder in recipe.module_folders.values()}
    for folder in folders:
        yield from (path for path in folder.glob("*") if path.suffix in _SMALL and path.is_file())
        for stem, suffix in STEMS:
            if weights := list(folder.glob(f"{stem}*.{suffix}")):
                yield from weights
                break  # the others are not read


def differences(stored: Any, now: Any, name: str = "") -> list[str]:
    """What is not as it was, a line each: "arguments.column: 'text' then, 'body' now"."""
    if isinstance(stored, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*stored, *now])
        places = [(key, f"{name}.{key}" if name else str(key)) for key in keys]
        absent = "nothing"
        return [
            line for key, place in places for line in differences(stored.get(key, absent), now.get(key, absent), place)
        ]
    return [] if stored == now else [f"{name}: {stored!r:.100} then, {now!r:.100} now"]


def refuse(output: Path, lines: list[str]) -> None:
    """Refuses to resume a job that is not the same any more.

    Raises:
        ValueError: there are any differences; they are listed.
    """
    if not lines:
        return
    more = f"\n  … and {len(lines) - _MOST_SHOWN} more" if len(lines) > _MOST_SHOWN else ""
    raise ValueError(
        f"output {output} was begun otherwise, and its shards would not go together:\n  "
        + "\n  ".join(lines[:_MOST_SHOWN])
        + f"{more}\nResume it as it was begun, or write to another directory"
    )


def _plain(value: Any) -> Any:
    """As JSON has it, so that what is read back is equal to what was written."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **_plain(asdict(value))}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, type(None))) else repr(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
