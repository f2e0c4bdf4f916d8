"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) beside the weights they adapt, each sequence with its own.

An adapted layer has `adapted` in the place of `kernel` (or `embedding`): the original and, of all A adapters of rank K,
the factors `down` [*in, A, K] and `up` [A, K, *out]. The inner products of all adapters are worked out at once, which
is A·K columns beside a kernel's thousands, and a token's are zeroed but for its own adapter's. So one program computes
batches that mix them, and nothing is merged. What is declared plain is computed plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool import layers, params
from jaxpool.batch import Batch, by_token
from jaxpool.layers import einsum, finish
from jaxpool.params import ParamSpec, Tree

Array = jax.Array

_ADAPTERS = (None, None)  # neither their number nor their rank is ever sharded


def linear(inputs: Mapping[str, int], outputs: Mapping[str, int], adapters: int, rank: int) -> Tree:
    """Declares a dense layer with bias: as `params.linear` where `adapters` is 0."""
    specs = params.linear(inputs, outputs)
    if adapters:
        specs["adapted"] = {
            "kernel": specs.pop("kernel"),
            "down": ParamSpec((*inputs.values(), adapters, rank), (*inputs, *_ADAPTERS)),
            "up": ParamSpec((adapters, rank, *outputs.values()), (*_ADAPTERS, *outputs)),
        }
    return specs


def embedding(rows: int, features: int, adapters: int, rank: int, axis: str | None = None) -> Tree:
    """Declares an embedding table: as `params.embedding` where `adapters` is 0."""
    specs = params.embedding(rows, features, axis)
    if not adapters:
        return specs
    down = ParamSpec((rows, adapters, rank), (axis, *_ADAPTERS))
    return {"adapted": specs | {"down": down, "up": ParamSpec((adapters, rank, features), (*_ADAPTERS, "embed"))}}


def choose(batch: Batch, adapters: int, scale: float) -> Array:
    """float32 [R, T, A]: `scale` (LoRA's α / rank) at the token's own adapter, 0 elsewhere; adapter 0 is none."""
    return jax.nn.one_hot(by_token(batch, batch.adapter) - 1, adapters, dtype=jnp.float32) * scale


def dense(layer: Tree, x: Array, chosen: Array, equation: str = "rtd,df->rtf", **end: Any) -> Array:
    """`layers.dense` with each token's adapter, all in float32: x·kernel + (x·down)·up + bias.

    Args:
        x: [R, T, *in].
        chosen: as `choose` gives it; of the same tokens as x.
        equation: x's axes, the kernel's, the result's; "a" and "k" are taken.
        end: what follows, as for `layers.finish`.
    """
    if "adapted" not in layer:
        return layers.dense(layer, x, equation, **end)
    adapted = layer["adapted"]
    tokens, kernel, result = equation.replace("->", ",").split(",")
    inputs = "".join(axis for axis in kernel if axis not in result)
    inner = einsum(f"{tokens},{inputs}ak->rtak", x, adapted["down"])
    y = einsum(equation, x, adapted["kernel"]) + _up(adapted, inner, chosen, result)
    return finish(y, layer["bias"], **end)


def look_up(table: Tree, ids: Array, chosen: Array) -> Array:
    """The rows of a table for ids [R, T], each with its token's adapter: float32 [R, T, D]."""
    if "adapted" not in table:
        return table["embedding"][ids].astype(jnp.float32)
    adapted = table["adapted"]
    return adapted["embedding"][ids].astype(jnp.float32) + _up(adapted, adapted["down"][ids], chosen, "rtd")


def _up(adapted: Tree, inner: Array, chosen: Array, result: str) -> Array:
    outputs = result.removeprefix("rt")
    return einsum(f"rtak,ak{outputs}->{result}", inner.astype(jnp.float32) * chosen[..., None], adapted["up"])
