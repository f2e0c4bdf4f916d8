"""Heads: what stands behind (or, for token embeddings, before) the pooler. Float32 throughout.

The modules of a sentence-transformers checkpoint that act on vectors (Dense, LayerNorm, Normalize), and what
classifiers need beside them. A head is a chain of them and a last step (`Final`), which a request may switch off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from jaxpool.layers import ACTIVATIONS, dense, l2_normalise
from jaxpool.norms import layer_norm as apply_layer_norm
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
        y = dense(params["linear"], x, activation=self.activation)
        if not self.residual:
            return y
        return y + (dense(params["residual"], x) if "residual" in params else x)


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm over the vector."""

    width: int
    bias: bool = True
    epsilon: float = LAYER_NORM_EPSILON

    def param_specs(self) -> Tree:
        """`norm`: scale, and bias where there is one."""
        return {"norm": layer_norm(self.width, bias=self.bias, dtype="float32")}

    def __call__(self, params: Tree, x: Array) -> Array:
        """[…, width] -> […, width]."""
        return apply_layer_norm(params["norm"], x, self.epsilon)


@dataclass(frozen=True)
class Select:
    """Some entries of the vector: those of the classes (or tokens) that count."""

    entries: tuple[int, ...]

    def param_specs(self) -> Tree:
        """None."""
        return {}

    def __call__(self, params: Tree, x: Array) -> Array:
        """[…, C] -> […, len(entries)]."""
        return x[..., np.array(self.entries)]


@dataclass(frozen=True)
class Calibrate:
    """(x − mean) / sigma: vLLM's calibration of logits."""

    mean: float = 0.0
    sigma: float = 1.0

    def param_specs(self) -> Tree:
        """None."""
        return {}

    def __call__(self, params: Tree, x: Array) -> Array:
        """[…, C] -> […, C]."""
        return (x - self.mean) / self.sigma


@dataclass(frozen=True)
class Normalize:
    """x / max(‖x‖₂, 1e-12)."""

    def param_specs(self) -> Tree:
        """None."""
        return {}

    def __call__(self, params: Tree, x: Array) -> Array:
        """[…, D] -> […, D]."""
        return l2_normalise(x)


Module = Dense | LayerNorm | Normalize | Select | Calibrate

Final = Callable[[Array], Array]
# Last steps, by name: of embeddings "normalize", of classifiers the others.
FINAL: Mapping[str, Final] = {
    "normalize": l2_normalise,
    "softmax": partial(jax.nn.softmax, axis=-1),
    **{name: ACTIVATIONS[name] for name in ("identity", "sigmoid", "tanh", "relu", "gelu", "silu")},
}


def width_behind(module: Module, width: int, source: object) -> int:
    """The width of the vectors behind a module that gets them of `width`.

    Args:
        source: where the module (or what stands before it) was asked for, for the error.

    Raises:
        ValueError: the module takes vectors of another width.
    """
    if isinstance(module, Select):
        if wrong := [entry for entry in module.entries if not 0 <= entry < width]:
            raise ValueError(f"{source}: entries {wrong} of vectors of {width}")
        return len(module.entries)
    takes = module.inputs if isinstance(module, Dense) else module.width if isinstance(module, LayerNorm) else width
    if takes != width:
        raise ValueError(f"{source}: {type(module).__name__} takes vectors of {takes}, but gets vectors of {width}")
    return module.outputs if isinstance(module, Dense) else width


def chain_width(modules: Sequence[Module], width: int, source: object = "the head") -> int:
    """`width_behind` a whole chain."""
    for module in modules:
        width = width_behind(module, width, source)
    return width


def chain_specs(modules: Sequence[Module]) -> Tree:
    """The params of a chain: one entry a module that has any, under its place in the chain."""
    return {str(i): specs for i, module in enumerate(modules) if (specs := module.param_specs())}


def apply_chain(modules: Sequence[Module], params: Tree, x: Array) -> Array:
    """Applies the modules in order."""
    for i, module in enumerate(modules):
        with jax.named_scope(type(module).__name__.lower()):
            x = module(params.get(str(i), {}), x)
    return x
