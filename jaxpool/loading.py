"""A recipe's weights: from checkpoint files, through the families' tables, onto the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpool.converters import head
from jaxpool.converters.checkpoint import Checkpoint, open_checkpoint
from jaxpool.converters.rules import Binding, Index, Leaf, Table, bind, identity_table
from jaxpool.params import Tree, unflatten
from jaxpool.recipe import Recipe
from jaxpool.sharding import param_sharding
from jaxpool.tasks import param_specs

Place = Callable[[str, Leaf, Callable[[Index | None], np.ndarray]], Any]


def backbone_table(recipe: Recipe) -> Table:
    """The rule table of the recipe's family."""
    return recipe.family.table or import_module(f"jaxpool.converters.{recipe.family.name}").TABLE


def parts(recipe: Recipe) -> Iterator[tuple[str, Path, Table, Tree]]:
    """The recipe's parameters by where they are stored: (path in the tree, folder, table, specs)."""
    specs = param_specs(recipe)
    yield "backbone", recipe.backbone_directory, backbone_table(recipe), specs["backbone"]
    for name, modules in (("tokens", recipe.token_modules), ("head", recipe.modules)):
        for i in range(len(modules)):
            if own := specs.get(name, {}).get(str(i)):
                path = f"{name}/{i}"
                yield path, recipe.directory / recipe.module_folders[path], head.TABLE, own


def is_converted(directory: Path) -> bool:
    """Whether the directory holds a Flax param tree that `jaxpool convert` wrote."""
    return any((directory / f"flax_params.safetensors{end}").exists() for end in ("", ".index.json"))


def stored(recipe: Recipe) -> Iterator[tuple[str, Checkpoint, Binding]]:
    """Where every declared parameter is stored, found by names and shapes alone.

    Yields:
        A prefix of paths in the tree, the checkpoint that holds these parameters, and their places in it.

    Raises:
        FileNotFoundError, CheckpointError: weights missing, truncated, or not those of the model.
    """
    if is_converted(recipe.directory):
        # What was optional when it was converted is known here too, and may be left out.
        known = identity_table(param_specs(with_optional(recipe)))
        checkpoint = open_checkpoint(recipe.directory)
        yield "", checkpoint, bind(checkpoint.shapes, known, param_specs(recipe))
        return
    for prefix, folder, table, specs in parts(recipe):
        checkpoint = open_checkpoint(folder)
        yield f"{prefix}/", checkpoint, bind(checkpoint.shapes, table, specs)


def check(recipe: Recipe) -> None:
    """Whether the checkpoint fits the model, without reading a tensor. Errors as `stored`."""
    for _ in stored(recipe):
        pass


def load(recipe: Recipe, place: Place, *, exact: bool = False) -> Tree:
    """Reads every declared parameter, leaf by leaf. Errors as `stored`.

    Args:
        place: (path, leaf, read) -> array; `read(index)` gives the leaf, or its part under `index`.
        exact: whether layers stored in several dtypes, which stacking would convert, are an error.
    """
    flat: dict[str, Any] = {}
    for prefix, checkpoint, binding in stored(recipe):
        for path, leaf in binding.items():
            flat[prefix + path] = place(prefix + path, leaf, partial(leaf.read, checkpoint.read, exact=exact))
    return unflatten(flat)


def load_to_mesh(recipe: Recipe, mesh: Mesh, dtype: Any) -> Tree:
    """The parameters on a mesh in the compute dtype (heads in float32), each device reading its own part only."""

    def place(path: str, leaf: Leaf, read: Callable[[Index | None], np.ndarray]) -> jax.Array:
        target = leaf.spec.dtype_or(dtype)
        pieces: dict[Any, np.ndarray] = {}  # devices with the same part share one reading

        def part(index: Index | None) -> np.ndarray:
            index = index or ()
            key = tuple((s.start, s.stop) for s in index)
            if key not in pieces:
                pieces[key] = np.asarray(read(index)).astype(target, copy=False)
            return pieces[key]

        return jax.make_array_from_callback(leaf.spec.shape, param_sharding(leaf.spec, mesh), part)

    return load(recipe, place)


def load_stored(recipe: Recipe) -> Tree:
    """The parameters as numpy arrays in their stored dtypes, optional ones that the checkpoint has included."""
    return load(with_optional(recipe), lambda path, leaf, read: read(None), exact=True)


def with_optional(recipe: Recipe) -> Recipe:
    """The recipe with the optional parts declared that its checkpoint holds weights for."""
    if not hasattr(recipe.config, "pooler"):
        return recipe
    checkpoint = open_checkpoint(recipe.directory if is_converted(recipe.directory) else recipe.backbone_directory)
    canonical = backbone_table(recipe).canonical
    has = any(canonical(key).startswith(("pooler.", "backbone/pooler/")) for key in checkpoint.shapes)
    return replace(recipe, config=replace(recipe.config, pooler=has))
