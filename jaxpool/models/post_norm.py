"""The post-norm encoder block of BERT and its kin: x = LN(x + attention(x)); x = LN(x + mlp(x))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from jaxpool.attention import AttentionMask, attention
from jaxpool.batch import Pick
from jaxpool.layers import ACTIVATIONS, apply_layers, dense, keep
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.norms import layer_norm
from jaxpool.params import QKV, Tree, linear, stack
from jaxpool.params import layer_norm as layer_norm_specs

Array = jax.Array

CAPTURES = ("attention", "layer")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes that BERT and its kin share; a family adds its own."""

    vocab_size: int
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


def config_fields(hf: HFConfig) -> dict[str, Any]:
    """The shared fields, read from config.json.

    Raises:
        ConfigError: the heads do not divide the width.
    """
    hidden_size, num_heads = hf.need("hidden_size"), hf.need("num_attention_heads")
    if hidden_size % num_heads:
        raise ConfigError(
            f"config.json: `hidden_size` {hidden_size} is no multiple of `num_attention_heads` {num_heads}"
        )
    return {
        "vocab_size": hf.need("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": hf.need("num_hidden_layers"),
        "num_heads": num_heads,
        "mlp_size": hf.need("intermediate_size"),
        "activation": hf.one_of("hidden_act", ACTIVATIONS, "gelu"),
        "epsilon": hf.get("layer_norm_eps", 1e-12),
    }


def block_specs(config: Config) -> Tree:
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


def pooler_specs(config: Config) -> Tree:
    """The tanh layer over the first token, which no embedding needs."""
    return {"pooler": linear({"embed": config.hidden_size}, {"pooled": config.hidden_size})}


def blocks(
    layers: Tree,
    x: Array,
    mask: AttentionMask,
    config: Config,
    *,
    bias: Array | None = None,
    capture: tuple[str, ...] = (),
    pick: Pick | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Runs the stack of blocks.

    Args:
        x: [R, T, D] in the compute dtype.
        bias: added to the attention scores of every layer, broadcastable to [R, N, T, S].
        capture: of "attention" (behind its norm) and "layer" (the block's output), each [L, R, T, D].
        pick: as `apply_layers` takes it.
    """
    dtype = x.dtype

    def block(x: Array, p: Tree, pick: Pick) -> tuple[Array, dict[str, Array]]:
        a, m = p["attention"], p["mlp"]
        with jax.named_scope("attention"):
            q, k, v = (dense(a[name], x, "rtd,dnh->rtnh", dtype=dtype) for name in QKV)
            mixed = attention(q, k, v, mask, bias=bias, dtype=dtype)
            attended = dense(a["output"], pick(mixed), "rtnh,nhd->rtd", add=pick(x))
            attended = layer_norm(a["norm"], attended, config.epsilon, dtype=dtype)
        with jax.named_scope("mlp"):
            inner = dense(m["up"], attended, activation=config.activation, dtype=dtype)
            x = layer_norm(m["norm"], dense(m["down"], inner, add=attended), config.epsilon, dtype=dtype)
        return x, keep(capture, attention=attended, layer=x)

    return apply_layers((block,), layers, x, pick)
