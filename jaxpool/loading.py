"""A recipe's weights: from checkpoint files, through the families' tables. Onto devices: `placement.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpool.converters import head
from jaxpool.converters.checkpoint import Checkpoint, open_checkpoint
from jaxpool.converters.rules import Binding, Leaf, Rule, Table, bind, identity_table, skip
from jaxpool.converters.transforms import CheckpointError, Index, TokenRows
from jaxpool.params import ParamSpec, Tree, flatten, unflatten
from jaxpool.program import param_specs
from jaxpool.recipe import Recipe

Place = Callable[[str, Leaf, Callable[[Index | None], np.ndarray]], Any]


class Part(NamedTuple):
    """What one folder of a model holds.

    Attributes:
        folder: with the weights.
        table: their rules, with targets from the root of the tree.
        specs: the leaves to fill, by path.
        extras: leaves that no answer needs, filled if the checkpoint has them and they are asked for.
    """

    folder: Path
    table: Table
    specs: dict[str, ParamSpec]
    extras: dict[str, ParamSpec]


def family_table(recipe: Recipe) -> Table:
    """The rule table of the recipe's family; targets are below "backbone"."""
    return recipe.family.table or import_module(f"jaxpool.converters.{recipe.family.name}").TABLE


def parts(recipe: Recipe) -> Iterator[Part]:
    """The recipe's parameters by where they are stored."""
    specs = flatten(param_specs(recipe))
    elsewhere = [path for path in recipe.module_folders if any(name.startswith(f"{path}/") for name in specs)]
    own = {name: spec for name, spec in specs.items() if not name.startswith(tuple(f"{p}/" for p in elsewhere))}
    table = family_table(recipe)
    whole = table.whole("backbone", "head", _head_rules(recipe, table))
    targets = {rule.target for rule in whole.rules}
    extras = flatten(recipe.family.extras(recipe.config), "backbone/")
    yield Part(recipe.backbone_directory, whole, own, {name: s for name, s in extras.items() if name in targets})
    for path in elsewhere:
        below = {name: spec for name, spec in specs.items() if name.startswith(f"{path}/")}
        yield Part(recipe.directory / recipe.module_folders[path], head.TABLE.below(path), below, {})


def _head_rules(recipe: Recipe, table: Table) -> tuple[Rule, ...]:
    rules = recipe.head_rules
    if rules is None:
        return ()
    if isinstance(rules, str):
        return table.heads[rules]
    return (_rows_rule(rules, recipe.hf, table),)


def _rows_rule(rows: TokenRows, hf: Mapping[str, Any], table: Table) -> Rule:
    if table.logits is None:
        raise ValueError("this family has no language model's head that a score could be read from")
    if hf.get("final_logit_softcapping"):
        raise ValueError("config.json: `final_logit_softcapping` bends the logits that a score would be read from")
    own, embedding = table.logits
    tied = hf.get("tie_word_embeddings")
    # transformers' own default, where the file says nothing.
    tied = str(hf.get("model_type")).startswith("gemma") if tied is None else tied
    return Rule(embedding if tied else own, "0/linear/kernel", rows, shared=bool(tied))


def is_converted(directory: Path) -> bool:
    """Whether the directory holds a Flax param tree that `jaxpool convert` wrote."""
    return any((directory / f"flax_params.safetensors{end}").exists() for end in ("", ".index.json"))


def stored(recipe: Recipe, *, extras: bool = False) -> Iterator[tuple[Checkpoint, Binding]]:
    """Where every declared parameter is stored, found by names and shapes alone.

    Args:
        extras: whether the parameters that no answer needs are wanted too, where the checkpoint has them.

    Yields:
        A checkpoint, and which of the leaves are in it.

    Raises:
        FileNotFoundError, CheckpointError: weights missing, truncated, or not those of the model.
    """
    if is_converted(recipe.directory):
        kept = {name: spec for part in parts(recipe) for name, spec in part.extras.items()}
        checkpoint = open_checkpoint(recipe.directory)
        # What was kept when it was converted, or is another task's, is known here too, and may be left out.
        known = identity_table(unflatten(flatten(param_specs(recipe)) | kept))
        table = Table((*known.rules, *(skip(f"{name}/*") for name in ("tokens", "head"))))
        try:
            binding = bind(checkpoint.shapes, table, param_specs(recipe), kept if extras else None)
        except CheckpointError as error:
            raise CheckpointError(f"{error}\nIf an older jaxpool converted it, convert it anew.") from None
        yield checkpoint, binding
        return
    for part in parts(recipe):
        checkpoint = open_checkpoint(part.folder)
        yield checkpoint, bind(checkpoint.shapes, part.table, unflatten(part.specs), part.extras if extras else None)


def check(recipe: Recipe) -> None:
    """Whether the checkpoint fits the model, without reading a tensor. Errors as `stored`."""
    for _ in stored(recipe):
        pass


def load(recipe: Recipe, place: Place, *, exact: bool = False, extras: bool = False, threads: int = 1) -> Tree:
    """Reads every declared parameter, leaf by leaf. Errors as `stored`.

    Args:
        place: (path, leaf, read) -> array; `read(index)` gives the leaf, or its part under `index`.
        exact: whether layers stored in several dtypes, which stacking would convert, are an error.
        extras: as `stored`.
        threads: how many leaves are read at a time.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="jaxpool-load") as executor:
        placed = {
            path: executor.submit(place, path, leaf, partial(leaf.read, checkpoint.read, exact=exact))
            for checkpoint, binding in stored(recipe, extras=extras)
            for path, leaf in binding.items()
        }
        try:
            return unflatten({path: future.result() for path, future in placed.items()})
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def load_stored(recipe: Recipe) -> Tree:
    """The parameters as numpy arrays in their stored dtypes, extras that the checkpoint has included."""
    return load(recipe, lambda path, leaf, read: read(None), exact=True, extras=True)
