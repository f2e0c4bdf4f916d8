"""The pre-norm block of the vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929), of texts and of patches.

x = x + attention(LN(x)); x = x + mlp(LN(x)), with biases: CLIP's, SigLIP's and the towers of the models that see.
Letters beside those of `layers`: P patches, C values of a patch's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxpool.attention import AttentionMask, attention
from jaxpool.batch import ArraySpec, Pick
from jaxpool.layers import ACTIVATIONS, apply_layers, dense, keep
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.norms import layer_norm
from jaxpool.params import QKV, ParamSpec, Tree, linear, stack
from jaxpool.params import layer_norm as layer_norm_specs
from jaxpool.rotary import rotate

Array = jax.Array

CAPTURES = ("embeddings", "attention", "layer")
COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes of a stack of blocks."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    activation: str
    epsilon: float

    @property
    def activation_bytes_per_token(self) -> int:
        """The MLP's inner row beside the residual stream and q, k, v, in float32."""
        return 4 * (2 * self.mlp_size + 6 * self.hidden_size)


def config_fields(hf: HFConfig, *, width: int, layers: int, heads: int, mlp: int, activation: str) -> dict[str, Any]:
    """The sizes, read from a part of config.json.

    Args:
        width, layers, heads, mlp, activation: what the file need not say (transformers writes only what differs).

    Raises:
        ConfigError: the heads do not divide the width.
    """
    hidden_size, num_heads = hf.get("hidden_size", width), hf.get("num_attention_heads", heads)
    if hidden_size % num_heads:
        raise ConfigError(
            f"config.json: `hidden_size` {hidden_size} is no multiple of `num_attention_heads` {num_heads}"
        )
    return {
        "hidden_size": hidden_size,
        "num_layers": hf.get("num_hidden_layers", layers),
        "num_heads": num_heads,
        "mlp_size": hf.get("intermediate_size", mlp),
        "activation": hf.one_of("hidden_act", ACTIVATIONS, activation),
    }


def pixels(patch_size: int, frames: int = 1) -> ArraySpec:
    """What a patch looks like: its pixels as bytes, in the order in which the kernel takes them."""
    return ArraySpec((COLOURS * frames * patch_size**2,), np.uint8)


def block_specs(config: Config) -> Tree:
    """The stacked layers' parameters; q, k and v kernels are [L, D, N, H]."""
    width, mlp = {"embed": config.hidden_size}, {"mlp": config.mlp_size}
    heads = {"heads": config.num_heads, "head_dim": config.hidden_size // config.num_heads}
    layer = {
        "attention": {
            "norm": layer_norm_specs(config.hidden_size),
            **{name: linear(width, heads) for name in QKV},
            "output": linear(heads, width),
        },
        "mlp": {
            "norm": layer_norm_specs(config.hidden_size),
            "up": linear(width, mlp),
            "down": linear(mlp, width),
        },
    }
    return stack(layer, config.num_layers)


def patch_specs(patch_size: int, width: int, *, bias: bool, frames: int = 1) -> Tree:
    """The embedding of patches: a kernel [3, F, p, p, D], as a convolution's whose steps are as long as itself."""
    sides = (COLOURS, frames, patch_size, patch_size)
    specs: Tree = {"kernel": ParamSpec((*sides, width), (*["pixels"] * 4, "embed"), inputs=4)}
    return specs | ({"bias": ParamSpec((width,), ("embed",), init="zeros")} if bias else {})


def embed_patches(p: Tree, x: Array, patch_size: int, frames: int = 1) -> Array:
    """Normalised pixels [R, P, C] -> float32 [R, P, D]."""
    x = x.reshape(*x.shape[:2], COLOURS, frames, patch_size, patch_size)
    return dense(p, x, "rpcfyx,cfyxd->rpd")


def blocks(
    layers: Tree,
    x: Array,
    mask: AttentionMask,
    config: Config,
    *,
    angles: tuple[Array, Array] | None = None,
    capture: tuple[str, ...] = (),
    pick: Pick | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Runs the stack of blocks.

    Args:
        x: [R, T, D] in the compute dtype.
        angles: of queries and keys, where they are rotated.
        capture: of "attention" (the stream behind it) and "layer" (the block's output), each [L, R, T, D].
        pick: as `apply_layers` takes it.
    """
    dtype = x.dtype

    def block(x: Array, p: Tree, pick: Pick) -> tuple[Array, dict[str, Array]]:
        a, m = p["attention"], p["mlp"]
        with jax.named_scope("attention"):
            normed = layer_norm(a["norm"], x, config.epsilon, dtype=dtype)
            q, k, v = (dense(a[name], normed, "rtd,dnh->rtnh") for name in QKV)
            if angles is not None:
                q, k = rotate(q, angles), rotate(k, angles)
            mixed = attention(q.astype(dtype), k.astype(dtype), v.astype(dtype), mask, dtype=dtype)
            attended = dense(a["output"], pick(mixed), "rtnh,nhd->rtd", add=pick(x), dtype=dtype)
        with jax.named_scope("mlp"):
            normed = layer_norm(m["norm"], attended, config.epsilon, dtype=dtype)
            inner = dense(m["up"], normed, activation=config.activation, dtype=dtype)
            x = dense(m["down"], inner, add=attended, dtype=dtype)
        return x, keep(capture, attention=attended, layer=x)

    return apply_layers((block,), layers, x, pick)


def first_layers(layers: Tree, count: int) -> Tree:
    """Those of a stack, or of a dict of "0" … "L-1", that a tower runs where its last ones are not looked at."""
    if "0" in layers:
        return {str(i): layers[str(i)] for i in range(count)}
    return jax.tree.map(lambda leaf: leaf[:count], layers)
