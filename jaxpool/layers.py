"""The small parts that model families share. Letters: R rows, T tokens, D model, N heads, H head dim, F mlp.

Numerics (the same everywhere): matrix products take operands in the compute dtype and accumulate in float32,
float32 means float32 on every backend (`Precision.HIGHEST`), norms and activations are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.params import Tree

Array = jax.Array


def einsum(equation: str, x: Array, y: Array, dtype: Any = None) -> Array:
    """`jnp.einsum` in the compute dtype (default: that of `y`, the weights) with a float32 result.

    `preferred_element_type=float32` is the right arithmetic for the MXU and tensor cores, and on CPU it is what
    keeps a bf16 product in the bf16 unit instead of a conversion to float32.
    """
    dtype = jnp.dtype(dtype or y.dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    return jnp.einsum(
        equation, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32, precision=precision
    )


def dense(params: Tree, x: Array, equation: str = "...d,df->...f") -> Array:
    """Dense layer, float32 out. `equation` names the kernel's axes where there are more than two."""
    y = einsum(equation, x, params["kernel"])
    return y + params["bias"].astype(jnp.float32) if "bias" in params else y


def layer_norm(params: Tree, x: Array, epsilon: float) -> Array:
    """LayerNorm over the last axis in float32 (two-pass variance, as torch's)."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    scale, bias = params["scale"].astype(jnp.float32), params["bias"].astype(jnp.float32)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias


def l2_normalise(x: Array, epsilon: float = 1e-12) -> Array:
    """x / max(‖x‖₂, ε) over the last axis: `torch.nn.functional.normalize`."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), epsilon)


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    # Hugging Face's `hidden_act` names.
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
}


def keep(capture: tuple[str, ...], **values: Array) -> dict[str, Array]:
    """The values whose names were asked for: what a stage returns for `capture=`."""
    return {name: value for name, value in values.items() if name in capture}


def apply_layers(
    layer: Callable[[Array, Tree], tuple[Array, dict[str, Array]]], layers: Tree, x: Array
) -> tuple[Array, dict[str, Array]]:
    """Runs `layer(x, params) -> (x, captured)` over all layers.

    Args:
        layers: stacked leaves [L, …] (run by `lax.scan`, compiled once), or a dict of "0" … "L-1".

    Returns:
        The last x, and each captured value stacked [L, …].
    """
    if "0" not in layers:
        return jax.lax.scan(layer, x, layers)
    captured = []
    for index in range(len(layers)):
        x, values = layer(x, layers[str(index)])
        captured.append(values)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *captured)
