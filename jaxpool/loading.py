"""A recipe's weights: from checkpoint files, through the families' tables, onto the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxpool.converters import head
from jaxpool.converters.checkpoint import Checkpoint, open_checkpoint
from jaxpool.converters.rules import Binding, Index, Leaf, Rule, Table, TokenRows, bind, identity_table, skip
from jaxpool.params import ParamSpec, Tree, flatten, one_layer, stacked_depth, unflatten, unstack_layers
from jaxpool.program import device_specs, param_specs
from jaxpool.quantization import QuantArray, quantise
from jaxpool.recipe import Recipe
from jaxpool.sharding import param_sharding

# Layers from which on a CPU's programs take too long to compile unstacked; kinds of TPU that copy stacks.
DEEP, COPIES_STACKS = 12, ("TPU7x", "TPU v7")

Read = Callable[[Index], np.ndarray]
OnMesh = Callable[[ParamSpec, Read], jax.Array]
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
        yield checkpoint, bind(checkpoint.shapes, table, param_specs(recipe), kept if extras else None)
        return
    for part in parts(recipe):
        checkpoint = open_checkpoint(part.folder)
        yield checkpoint, bind(checkpoint.shapes, part.table, unflatten(part.specs), part.extras if extras else None)


def check(recipe: Recipe) -> None:
    """Whether the checkpoint fits the model, without reading a tensor. Errors as `stored`."""
    for _ in stored(recipe):
        pass


def load(recipe: Recipe, place: Place, *, exact: bool = False, extras: bool = False) -> Tree:
    """Reads every declared parameter, leaf by leaf. Errors as `stored`.

    Args:
        place: (path, leaf, read) -> array; `read(index)` gives the leaf, or its part under `index`.
        exact: whether layers stored in several dtypes, which stacking would convert, are an error.
        extras: as `stored`.
    """
    flat: dict[str, Any] = {}
    for checkpoint, binding in stored(recipe, extras=extras):
        for path, leaf in binding.items():
            flat[path] = place(path, leaf, partial(leaf.read, checkpoint.read, exact=exact))
    return unflatten(flat)


def keeps_stacks(recipe: Recipe, mesh: Mesh) -> bool:
    """Whether a program takes its layers stacked: compiled once for all, unless it would copy them on every call.

    XLA copies whole stacks on TPU7x and, on other TPUs too, where kinds of layer alternate (docs/tpu.md); on CPUs it
    copies each layer out of its stack, and programs of few layers compile nearly as fast without.
    """
    device, depth = mesh.devices.flat[0], stacked_depth(param_specs(recipe)["backbone"])
    if depth == 0:
        return True
    if device.platform == "cpu":
        return depth > DEEP
    alternating = len(getattr(recipe.config, "pattern", ())) > 1
    return not (device.device_kind.startswith(COPIES_STACKS) or (device.platform == "tpu" and alternating))


def load_to_mesh(
    recipe: Recipe, mesh: Mesh, dtype: Any, *, fsdp: bool = False, stacked: bool = True, extras: bool = False
) -> Tree:
    """The parameters on a mesh in the compute dtype (heads in float32), each device reading its own part only.

    Kernels that the recipe quantises are quantised on the way, a layer at a time.

    Args:
        recipe: whose.
        mesh: where they go.
        dtype: the compute dtype.
        fsdp: as `sharding.param_sharding`.
        stacked: whether layers are stacked, or stand one by one as `params.unstack_layers` puts them.
        extras: as `stored`.
    """
    specs = flatten(device_specs(recipe))

    def on_mesh(spec: ParamSpec, read: Read) -> jax.Array:
        target = spec.dtype_or(dtype)
        return _on_mesh(
            spec, lambda index: read(index).astype(target, copy=False), param_sharding(spec, mesh, fsdp=fsdp)
        )

    def place_one(spec: ParamSpec | QuantArray, read: Read) -> jax.Array | QuantArray:
        return _quantised(spec, on_mesh, read) if isinstance(spec, QuantArray) else on_mesh(spec, read)

    def place(path: str, leaf: Leaf, read: Read) -> Any:
        spec = specs.get(path, leaf.spec)
        if stacked or leaf.spec.axes[:1] != ("layers",):
            return place_one(spec, read)
        layer = jax.tree.map(one_layer, spec)
        return [place_one(layer, partial(_of_layer, read, i)) for i in range(leaf.spec.shape[0])]

    params = load(recipe, place, extras=extras)
    return params if stacked else params | {"backbone": unstack_layers(params["backbone"])}


def _of_layer(read: Read, layer: int, index: Index) -> np.ndarray:
    return read((slice(layer, layer + 1), *index))[0]


def _on_mesh(spec: ParamSpec, read: Read, sharding: NamedSharding) -> jax.Array:
    pieces: dict[Any, np.ndarray] = {}  # devices with the same part share one reading

    def part(index: Index | None) -> np.ndarray:
        index = index or ()
        key = tuple((s.start, s.stop) for s in index)
        if key not in pieces:
            pieces[key] = read(index)
        return pieces[key]

    return jax.make_array_from_callback(spec.shape, sharding, part)


def _quantised(spec: QuantArray, on_mesh: OnMesh, read: Read) -> QuantArray:
    """Values and scales. A scale needs all inputs of its channel, also where they lie on other devices."""
    inputs, stacked = spec.values.inputs, int(spec.values.axes[0] == "layers")
    all_inputs = (slice(None),) * inputs

    def layers(which: Index, outputs: Index) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not which:
            yield quantise(read((*all_inputs, *outputs)), inputs, rotated=spec.activations)
            return
        for layer in range(*which[0].indices(spec.values.shape[0])):  # one at a time: each is in float32 meanwhile
            kernel = read((slice(layer, layer + 1), *all_inputs, *outputs))[0]
            yield quantise(kernel, inputs, rotated=spec.activations)

    def together(found: list[np.ndarray]) -> np.ndarray:
        return np.stack(found) if stacked else found[0]

    def values(index: Index) -> np.ndarray:
        which, own, outputs = index[:stacked], index[stacked : stacked + inputs], index[stacked + inputs :]
        return together([values[own] for values, _ in layers(which, outputs)])

    def scale(index: Index) -> np.ndarray:
        return together([scale for _, scale in layers(index[:stacked], index[stacked:])])

    return QuantArray(on_mesh(spec.values, values), on_mesh(spec.scale, scale), spec.activations)


def load_stored(recipe: Recipe) -> Tree:
    """The parameters as numpy arrays in their stored dtypes, extras that the checkpoint has included."""
    return load(recipe, lambda path, leaf, read: read(None), exact=True, extras=True)
