"""Lazy reading of checkpoint files: names and shapes at once, tensors (or parts of them) when asked for.

safetensors (one file, or several with an index) and PyTorch's .bin (see `torch_bin`). Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16", which safetensors asks for)
import numpy as np

from jaxpool.converters.torch_bin import TorchFile
from jaxpool.converters.transforms import CheckpointError, Index

# The order in which a directory is searched; a stem.index.json beside it means that it is split over files.
STEMS = (("flax_params", "safetensors"), ("model", "safetensors"), ("pytorch_model", "bin"))


class _File(Protocol):
    def shapes(self) -> dict[str, tuple[int, ...]]: ...
    def read(self, key: str, index: Index | None) -> np.ndarray: ...


class SafetensorsFile:
    """One .safetensors file."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file ({error}); it may be truncated: fetch it again"
            ) from error
        self._lock = Lock()  # the reader moves a file position of its own

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, from the header."""
        return {key: tuple(self._file.get_slice(key).get_shape()) for key in self._file.keys()}  # noqa: SIM118

    def read(self, key: str, index: Index | None) -> np.ndarray:
        """A tensor, or its part under `index`."""
        with self._lock:
            if index is None or not index:
                return self._file.get_tensor(key)
            return self._file.get_slice(key)[index if len(index) > 1 else index[0]]


@dataclass
class Checkpoint:
    """The tensors of one directory.

    Attributes:
        path: the directory.
        shapes: every key's shape.
        stem: which of `STEMS` was found ("flax_params" for a converted one).
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    stem: str
    _home: Mapping[str, _File] = field(repr=False)

    def read(self, key: str, index: Index | None = None) -> np.ndarray:
        """One tensor in its stored dtype, or its part under `index`."""
        return self._home[key].read(key, index)


def read_json(path: Path) -> Any:
    """A JSON file; broken JSON is an error that names the file.

    Raises:
        ValueError: the file is not UTF-8 JSON, or is nested too deeply to read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also an integer of more digits than Python reads
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def open_checkpoint(directory: Path) -> Checkpoint:
    """Opens the weights of a model directory without reading them.

    Raises:
        FileNotFoundError: the directory holds no weights, or a file that its index names is missing.
        CheckpointError: a file is truncated, or two files hold the same key.
    """
    for stem, suffix in STEMS:
        single, index = directory / f"{stem}.{suffix}", directory / f"{stem}.{suffix}.index.json"
        if single.exists():
            return _open(directory, stem, [single])
        if index.exists():
            parts = sorted(set(read_json(index)["weight_map"].values()))
            return _open(directory, stem, [directory / part for part in parts])
    names = ", ".join(f"{stem}.{suffix}" for stem, suffix in STEMS)
    raise FileNotFoundError(f"{directory} holds no weights: none of {names} (or their .index.json) is there")


def _open(directory: Path, stem: str, paths: list[Path]) -> Checkpoint:
    if absent := [path.name for path in paths if not path.exists()]:
        raise FileNotFoundError(f"{directory}: the checkpoint's index names files that are missing: {absent}")
    home: dict[str, _File] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    doubled: list[str] = []
    for path in paths:
        file: _File = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
        own = file.shapes()
        doubled += [f"{key!r} (again in {path.name})" for key in own if key in shapes]
        shapes |= own
        home |= dict.fromkeys(own, file)
    if doubled:
        raise CheckpointError(f"{directory}: keys in more than one file: " + ", ".join(doubled))
    return Checkpoint(directory, shapes, stem, home)
