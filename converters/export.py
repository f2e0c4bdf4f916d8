"""Writing param trees: as Flax (`flax_params.safetensors`) and back as PyTorch (`model.safetensors`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxpool.converters.checkpoint import open_checkpoint
from jaxpool.params import Tree, flatten, unflatten

MAX_SHARD_BYTES = 4 * 2**30


def write_safetensors(
    directory: Path,
    stem: str,
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes tensors under `stem`: one file, or several of at most `max_shard_bytes` with an index beside them.

    Each file is written under another name and renamed when whole.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[Path, list[str]]] = []
    for shard in _shards(tensors, max_shard_bytes):
        part = directory / f"{stem}.part{len(parts)}"
        part.touch()
        mode = part.stat().st_mode  # what the user's umask gives; save_file leaves a file for its owner alone
        save_file(shard, part, metadata={"format": "pt" if stem == "model" else "flax"})
        part.chmod(mode)
        parts.append((part, list(shard)))
    if len(parts) == 1:
        parts[0][0].replace(directory / f"{stem}.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, (part, keys) in enumerate(parts, 1):
        name = f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors"
        part.replace(directory / name)
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _shards(tensors: Iterable[tuple[str, np.ndarray]], limit: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for key, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[key] = np.ascontiguousarray(tensor)
        size += tensor.nbytes
    yield shard


def save_params(directory: Path, params: Tree, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes a Flax param tree as safetensors, one tensor a leaf under its "a/b/c" path."""
    leaves = ((path, np.asarray(x)) for path, x in flatten(params).items())
    write_safetensors(directory, "flax_params", leaves, max_shard_bytes)


def load_params(directory: str | Path) -> Tree:
    """Reads the Flax param tree that `jaxpool convert` wrote: nested dict of numpy arrays in their stored dtypes.

    Raises:
        FileNotFoundError: `directory` holds no converted parameters.
    """
    checkpoint = open_checkpoint(Path(directory))
    if checkpoint.stem != "flax_params":
        raise FileNotFoundError(f"{directory} holds {checkpoint.stem}: not converted parameters (jaxpool convert)")
    return unflatten({key: checkpoint.read(key) for key in checkpoint.shapes})


def copy_metadata(source: Path, target: Path) -> None:
    """Copies what stands beside the weights (configs, tokenizer, module folders), so that the copy is a model."""
    suffixes = {".json", ".txt", ".model", ".jinja"}
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if path.is_file() and path.suffix in suffixes and not path.name.endswith(".index.json"):
            destination = target / relative
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(path.read_bytes())
