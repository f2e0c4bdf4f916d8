"""Heads: what stands behind (or, for token embeddings, before) the pooler. Float32 throughout.

The modules of a sentence-transformers checkpoint that act on vectors: Dense, LayerNorm, Normalize.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from jaxpool.layers import ACTIVATIONS, dense, l2_normalise
from jaxpool.layers import layer_norm as apply_layer_norm
from jaxpool.params import Tree, layer_norm, linear

Array = jax.Array

# torch.nn.LayerNorm's default, which sentence-transformers' LayerNorm module uses.
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Dense:
    """activation(x · W + b), plus x (or its own projection) where `residual`."""

    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "tanh"
    residual: bool = False

    def param_specs(self) -> Tree:
        """`linear`, and `residual` where the shortcut needs a projection."""
        inputs, outputs = {"embed": self.inputs}, {"pooled": self.outputs}
        specs = {"linear": linear(inputs, outputs, bias=self.bias, dtype="float32")}
        if self.residual and self.inputs != self.outputs:
            specs["residual"] = linear(inputs, outputs, bias=False, dtype="float32")
        return specs

    def __call__(self, params: Tree, x: Array) -> Array:
        """[…, inputs] -> […, outputs]."""
        y = ACTIVATIONS[self.activation](dense(params["linear"], x))
        if not self.residual:
            return y
        return y + (dense(params["residual"], x) if "residual" in params else x)


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm over the vector."""

    width: int

    def param_specs(self) -> Tree:
        """`norm`: scale and bias."""
        return {"norm": layer_norm(self.width, dtype="float32")}

    def __call__(self, params: Tree, x: Array) -> Array:
        """[…, width] -> […, width]."""
        return apply_layer_norm(params["norm"], x, LAYER_NORM_EPSILON)


@dataclass(frozen=True)
class Normalize:
    """x / max(‖x‖₂, 1e-12)."""

    def param_specs(self) -> Tree:
        """None."""
        return {}

    def __call__(self, params: Tree, x: Array) -> Array:
        """[…, D] -> […, D]."""
        return l2_normalise(x)


Module = Dense | LayerNorm | Normalize


def chain_specs(modules: Sequence[Module]) -> Tree:
    """The params of a chain: one entry a module that has any, under its place in the chain."""
    return {str(i): specs for i, module in enumerate(modules) if (specs := module.param_specs())}


def apply_chain(modules: Sequence[Module], params: Tree, x: Array) -> Array:
    """Applies the modules in order."""
    for i, module in enumerate(modules):
        with jax.named_scope(type(module).__name__.lower()):
            x = module(params.get(str(i), {}), x)
    return x
