"""The post-norm encoder block of BERT and its kin: x = LN(x + attention(x)); x = LN(x + mlp(x))."""

from __future__ import annotations

from typing import Protocol

import jax

from jaxpool.attention import AttentionMask, attention
from jaxpool.layers import ACTIVATIONS, apply_layers, dense, keep, layer_norm
from jaxpool.params import Tree, linear, stack
from jaxpool.params import layer_norm as layer_norm_specs

Array = jax.Array

CAPTURES = ("attention", "layer")


class BlockConfig(Protocol):
    """The fields of a family's config that its blocks read."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    activation: str
    epsilon: float


def block_specs(config: BlockConfig) -> Tree:
    """The stacked layers' parameters; q, k and v kernels are [L, D, N, H], the output's [L, N, H, D]."""
    width = {"embed": config.hidden_size}
    heads = {"heads": config.num_heads, "head_dim": config.hidden_size // config.num_heads}
    mlp = {"mlp": config.mlp_size}
    layer = {
        "attention": {
            "query": linear(width, heads),
            "key": linear(width, heads),
            "value": linear(width, heads),
            "output": linear(heads, width),
            "norm": layer_norm_specs(config.hidden_size),
        },
        "mlp": {
            "up": linear(width, mlp),
            "down": linear(mlp, width),
            "norm": layer_norm_specs(config.hidden_size),
        },
    }
    return stack(layer, config.num_layers)


def blocks(
    layers: Tree,
    x: Array,
    mask: AttentionMask,
    config: BlockConfig,
    *,
    bias: Array | None = None,
    capture: tuple[str, ...] = (),
) -> tuple[Array, dict[str, Array]]:
    """Runs the stack of blocks.

    Args:
        x: [R, T, D] in the compute dtype.
        bias: added to the attention scores of every layer, broadcastable to [R, N, T, S].
        capture: of "attention" (behind its norm) and "layer" (the block's output), each [L, R, T, D].
    """
    dtype = x.dtype
    activation = ACTIVATIONS[config.activation]

    def block(x: Array, p: Tree) -> tuple[Array, dict[str, Array]]:
        a, m = p["attention"], p["mlp"]
        with jax.named_scope("attention"):
            q, k, v = (dense(a[name], x, "rtd,dnh->rtnh").astype(dtype) for name in ("query", "key", "value"))
            mixed = dense(a["output"], attention(q, k, v, mask, bias=bias).astype(dtype), "rtnh,nhd->rtd")
            attended = layer_norm(a["norm"], x + mixed, config.epsilon).astype(dtype)
        with jax.named_scope("mlp"):
            inner = activation(dense(m["up"], attended)).astype(dtype)
            x = layer_norm(m["norm"], attended + dense(m["down"], inner), config.epsilon).astype(dtype)
        return x, keep(capture, attention=attended, layer=x)

    return apply_layers(block, layers, x)
