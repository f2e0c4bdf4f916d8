"""Whole model directories, from PyTorch's names to Flax's and back."""

from __future__ import annotations

from pathlib import Path

from jaxpool.converters.export import MAX_SHARD_BYTES, copy_metadata, save_params, write_safetensors
from jaxpool.converters.rules import to_checkpoint
from jaxpool.loading import load_stored, parts
from jaxpool.params import flatten
from jaxpool.recipe import Recipe, read_recipe
from jaxpool.whole import whole_directory


def to_flax(source: Path, output: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> Recipe:
    """Writes a model with its Flax param tree as weights; `LLM(output)` and `load_params(output)` read it.

    Weights keep their stored dtypes, bit for bit.

    Args:
        source: a model directory, converted or not.
        output: a directory that is empty or not there; it appears when it is whole.
        max_shard_bytes: most bytes of one file of weights.

    Returns:
        The model's recipe.

    Raises:
        FileNotFoundError, CheckpointError: as `loading.load`.
        FileExistsError: something is in `output`.
        ValueError: `output` lies inside `source`.
    """
    recipe = read_recipe(source)
    _refuse_inside(source, output)
    with whole_directory(output) as part:
        save_params(part, load_stored(recipe), max_shard_bytes)
        copy_metadata(source, part)
    return recipe


def to_hf(source: Path, output: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> Recipe:
    """Writes a model with PyTorch's names as weights, each module's in its own folder: what transformers and
    sentence-transformers read. Arguments, returns and errors as `to_flax`.
    """
    recipe = read_recipe(source)
    _refuse_inside(source, output)
    with whole_directory(output) as part:
        leaves = flatten(load_stored(recipe))
        for stored in parts(recipe):
            own = {path: leaves[path] for path in (*stored.specs, *stored.extras) if path in leaves}
            target = part / stored.folder.relative_to(recipe.directory)
            write_safetensors(target, "model", to_checkpoint(own, stored.table), max_shard_bytes)
        copy_metadata(source, part)
    return recipe


def _refuse_inside(source: Path, output: Path) -> None:
    # The model's files are copied with all folders below it.
    if output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"output {output} lies inside the model's directory {source}")
