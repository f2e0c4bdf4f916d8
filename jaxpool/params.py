"""Parameters, each declared once.

A family describes its weights as a nested dict of `ParamSpec`s in Flax naming (`kernel` [in, …out], `bias`,
`scale`, `embedding`). Everything else that needs to know about the weights is derived from that declaration:
abstract arrays for ahead-of-time compiles, random values for tests, the checkpoint's validation, shardings
and the memory plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import jax
import numpy as np

Tree = dict[str, Any]
"""A nested dict with arrays (or `ParamSpec`s) as leaves: what `flax.linen` calls `params`."""
QKV = ("query", "key", "value")
"""The names of an attention's products with its input, in the order in which checkpoints fuse them."""


@dataclass(frozen=True)
class ParamSpec:
    """Shape and logical axes of one parameter.

    Attributes:
        shape: the parameter's shape.
        axes: one logical axis name a dimension (`vocab embed heads kv_heads head_dim mlp parts layers classes`),
            or None for a dimension that is never sharded. `sharding.RULES` maps them to mesh axes.
        dtype: a fixed dtype (heads and poolers stay float32), or None for the model's own.
        init: how `random_params` fills it: "normal", "zeros" or "ones".
        inputs: of a kernel, how many of its axes (behind `layers`) a product sums over; 0 for what is no kernel.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: str | None = None
    init: str = "normal"
    inputs: int = 0

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"ParamSpec: shape {self.shape} and axes {self.axes} differ in length")

    def dtype_or(self, default: Any) -> np.dtype:
        """The dtype that the parameter has in a model of dtype `default`."""
        return jax.numpy.dtype(self.dtype or default)


def linear(
    inputs: Mapping[str, int], outputs: Mapping[str, int], *, bias: bool = True, dtype: str | None = None
) -> Tree:
    """Declares a dense layer: `kernel` [*inputs, *outputs] and, unless `bias=False`, `bias` [*outputs]."""
    shape = (*inputs.values(), *outputs.values())
    specs: Tree = {"kernel": ParamSpec(shape, (*inputs, *outputs), dtype, inputs=len(inputs))}
    if bias:
        specs["bias"] = ParamSpec(tuple(outputs.values()), tuple(outputs), dtype, "zeros")
    return specs


def layer_norm(features: int, *, bias: bool = True, dtype: str | None = None) -> Tree:
    """Declares a LayerNorm over the `embed` axis: `scale` and, unless `bias=False`, `bias` [features]."""
    specs: Tree = {"scale": ParamSpec((features,), ("embed",), dtype, "ones")}
    if bias:
        specs["bias"] = ParamSpec((features,), ("embed",), dtype, "zeros")
    return specs


def embedding(rows: int, features: int, axis: str | None = None) -> Tree:
    """Declares an embedding table: `embedding` [rows, features]."""
    return {"embedding": ParamSpec((rows, features), (axis, "embed"))}


def stack(layer: Tree, count: int) -> Tree:
    """Declares `count` equal layers stored stacked: every leaf gains a leading `layers` axis."""
    return map_leaves(lambda s: replace(s, shape=(count, *s.shape), axes=("layers", *s.axes)), layer)


def map_leaves(fn: Callable[[Any], Any], tree: Tree) -> Tree:
    """Applies `fn` to every leaf, those of quantised kernels included."""
    return jax.tree.map(fn, tree)


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Nested dict -> flat dict with "a/b/c" paths (as `flax.traverse_util.flatten_dict(sep="/")`)."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def abstract(specs: Tree, dtype: Any, sharding: Callable[[ParamSpec], Any] = lambda spec: None) -> Tree:
    """The tree of `jax.ShapeDtypeStruct`s that a program compiled for these parameters takes."""
    return map_leaves(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype_or(dtype), sharding=sharding(s)), specs)


def random_params(specs: Tree, dtype: Any = "float32", seed: int = 0, scale: float = 0.02) -> Tree:
    """A tree of random numpy arrays, for tests and for benchmarks of shapes whose weights are not at hand."""
    rng = np.random.default_rng(seed)
    fill: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
        "normal": lambda shape: rng.standard_normal(shape, np.float32) * scale,
        "zeros": lambda shape: np.zeros(shape, np.float32),
        "ones": lambda shape: np.ones(shape, np.float32),
    }
    return map_leaves(lambda s: fill[s.init](s.shape).astype(s.dtype_or(dtype)), specs)


def count(specs: Tree) -> int:
    """Number of parameters."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(specs))


def one_layer(spec: ParamSpec) -> ParamSpec:
    """A stacked parameter's declaration for one layer by itself."""
    return replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])


def stacked_depth(specs: Tree) -> int:
    """How many layers are stacked under `layers`; 0 if none are."""
    declared = jax.tree.leaves(specs.get("layers", {}))
    stacked = declared and all(spec.axes[:1] == ("layers",) for spec in declared)
    return declared[0].shape[0] if stacked else 0


def unstack_specs(specs: Tree) -> Tree:
    """The declarations of what `unstack_layers` makes of stacked layers."""
    return _each_stack(
        specs, lambda layers, depth: dict.fromkeys(map(str, range(depth)), map_leaves(one_layer, layers))
    )


def unstack_layers(params: Tree) -> Tree:
    """Stacked `layers` (leading axis, or a list) -> dicts of "0" … "L-1": what `layers.apply_layers` also takes."""
    return _each_stack(
        params,
        lambda layers, depth: {str(i): jax.tree.map(itemgetter(i), layers, is_leaf=_is_list) for i in range(depth)},
    )


def _each_stack(tree: Tree, unstack: Callable[[Tree, int], Tree]) -> Tree:
    """`unstack(layers, depth)` instead of every `layers`, those of a tower within the model too."""

    def changed(name: str, node: Any) -> Any:
        if name == "layers":
            first = jax.tree.leaves(node, is_leaf=_is_list)[0]
            return unstack(node, first.shape[0] if hasattr(first, "shape") else len(first))
        return _each_stack(node, unstack) if isinstance(node, dict) else node

    return {name: changed(name, node) for name, node in tree.items()}


def _is_list(leaf: Any) -> bool:
    return isinstance(leaf, list)
