"""The parts of the pre-norm decoder blocks: rotary grouped-query attention and a gated MLP, each behind an RMSNorm.

Letters beside those of `layers`: K key/value heads. A part computes what is declared for it: biases and the norms of
queries and keys are there if the family declares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpool.attention import AttentionMask, attention
from jaxpool.batch import FEATURES, Batch, Pick
from jaxpool.layers import Layer, apply_layers, dense, keep
from jaxpool.models.family import Output
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.norms import rms_norm
from jaxpool.params import ParamSpec, Tree, embedding, linear, stack
from jaxpool.rotary import Rotary, read_rotary, rotate

Array = jax.Array
Norm = Callable[..., Array]

CAPTURES = ("embeddings", "attention", "layer")


class Kind(NamedTuple):
    """What may differ from layer to layer.

    Attributes:
        window: how many earlier and later tokens a token sees, or None for all.
        rotary: its position embeddings.
    """

    window: tuple[int, int] | None
    rotary: Rotary


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes that Llama and its kin share; a family adds its own.

    Attributes:
        pattern: the kinds of layers 0, 1, …, repeating.
        causal: whether a token sees no later one.
        embedding_scale: what token embeddings are multiplied by.
        norm_offset: RMSNorms scale by this plus their parameter.
        attention_bias: whether queries, keys and values have biases.
        output_bias: whether the attention's output has one.
        qk_norm: whether queries and keys are normed, head by head.
        image_token: the token in whose places a picture's rows stand; None for models that only read.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    kv_heads: int
    head_size: int
    mlp_size: int
    activation: str
    epsilon: float
    max_length: int
    pattern: tuple[Kind, ...]
    causal: bool = True
    embedding_scale: float = 1.0
    norm_offset: float = 0.0
    attention_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    image_token: int | None = None

    @property
    def activation_bytes_per_token(self) -> int:
        """The MLP's two inner rows beside the residual stream and q, k, v, in float32."""
        heads = (2 * self.num_heads + 2 * self.kv_heads) * self.head_size
        return 4 * (2 * self.mlp_size + 3 * self.hidden_size + heads)

    @property
    def norm(self) -> Norm:
        """The family's RMSNorm."""
        return partial(rms_norm, epsilon=self.epsilon, offset=self.norm_offset)


def config_fields(hf: HFConfig, *, activation: str, head_size: int | None = None) -> dict[str, Any]:
    """The sizes, read from config.json.

    Args:
        activation: the attribute that names it (the default is for the family to know).
        head_size: the default of `head_dim`; None for width / heads.

    Raises:
        ConfigError: the kv heads do not divide the heads, or a head cannot be rotated.
    """
    hidden_size, num_heads = hf.need("hidden_size"), hf.need("num_attention_heads")
    kv_heads = hf.get("num_key_value_heads", num_heads)
    head_size = hf.get("head_dim", head_size or hidden_size // num_heads)
    if num_heads % kv_heads:
        raise ConfigError(
            f"config.json: `num_attention_heads` {num_heads} is no multiple of `num_key_value_heads` {kv_heads}"
        )
    if head_size % 2:
        raise ConfigError(f"config.json: heads have {head_size} features, and rotary positions need an even number")
    return {
        "vocab_size": hf.need("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": hf.need("num_hidden_layers"),
        "num_heads": num_heads,
        "kv_heads": kv_heads,
        "head_size": head_size,
        "mlp_size": hf.need("intermediate_size"),
        "activation": activation,
        "epsilon": hf.get("rms_norm_eps", 1e-6),
    }


def read_rope(hf: HFConfig, head_size: int) -> Rotary:
    """The rotary embeddings that all layers share: `rope_parameters`, or the older `rope_scaling` and `rope_theta`."""
    old, new, theta = hf.get("rope_scaling", None), hf.get("rope_parameters", None), hf.get("rope_theta", None)
    return make_rotary(old or new or {}, head_size, hf.need("max_position_embeddings"), theta or 10_000.0)


def make_rotary(parameters: Mapping[str, Any], head_size: int, max_positions: int, theta: float) -> Rotary:
    """`read_rotary` for models that rotate whole heads, with the default that transformers puts in."""
    if parameters.get("partial_rotary_factor") not in (None, 1):
        raise ConfigError("config.json: `partial_rotary_factor` is not understood: whole heads are rotated")
    kind = parameters.get("rope_type") or parameters.get("type")
    trained = {"original_max_position_embeddings": max_positions} if kind in ("llama3", "yarn") else {}
    return read_rotary(trained | dict(parameters), head_size, max_positions, theta)


def stretched_length(rotary: Rotary) -> int:
    """How long a text the positions reach: vLLM's rule (llama3's `max_position_embeddings` is the stretched one)."""
    settings = dict(rotary.settings)
    if rotary.kind not in ("linear", "dynamic", "yarn"):
        return rotary.max_positions
    trained = settings["original_max_position_embeddings"] if rotary.kind == "yarn" else rotary.max_positions
    return int(trained * settings["factor"])


def causal_window(tokens: int | None) -> tuple[int, int] | None:
    """transformers' `sliding_window` under a causal mask, which counts the token itself."""
    return None if tokens is None else (tokens - 1, 0)


def read_pattern(layer_types: Sequence[str], num_layers: int, kinds: Mapping[str, Kind]) -> tuple[Kind, ...]:
    """config.json's `layer_types` as the shortest pattern that repeats.

    Raises:
        ConfigError: a name that `kinds` lacks, or not one a layer.
    """
    if unknown := sorted(set(layer_types) - set(kinds)):
        raise ConfigError(f"config.json: `layer_types` has {unknown}, expected of {sorted(kinds)}")
    if len(layer_types) != num_layers:
        raise ConfigError(f"config.json: `layer_types` names {len(layer_types)} layers of {num_layers}")
    layers = [kinds[name] for name in layer_types]
    period = next(p for p in range(1, len(layers) + 1) if layers[p:] == layers[:-p])
    return tuple(layers[:period])


def norm_specs(config: Config, features: int, axis: str = "embed") -> Tree:
    """Declares an RMSNorm: `scale` [features]."""
    return {"scale": ParamSpec((features,), (axis,), init="zeros" if config.norm_offset else "ones")}


def attention_specs(config: Config) -> Tree:
    """An attention's parameters: kernels [D, N, H], [D, K, H] and [N, H, D], and the norm in front."""
    width = {"embed": config.hidden_size}
    heads = {"heads": config.num_heads, "head_dim": config.head_size}
    kv_heads = {"kv_heads": config.kv_heads, "head_dim": config.head_size}
    specs = {
        "norm": norm_specs(config, config.hidden_size),
        "query": linear(width, heads, bias=config.attention_bias),
        "key": linear(width, kv_heads, bias=config.attention_bias),
        "value": linear(width, kv_heads, bias=config.attention_bias),
        "output": linear(heads, width, bias=config.output_bias),
    }
    if config.qk_norm:
        specs |= {name: norm_specs(config, config.head_size, "head_dim") for name in ("query_norm", "key_norm")}
    return specs


def mlp_specs(config: Config, *, bias: bool = False) -> Tree:
    """A gated MLP's parameters: kernels [D, F] and [F, D], and the norm in front."""
    width, mlp = {"embed": config.hidden_size}, {"mlp": config.mlp_size}
    return {
        "norm": norm_specs(config, config.hidden_size),
        "gate": linear(width, mlp, bias=bias),
        "up": linear(width, mlp, bias=bias),
        "down": linear(mlp, width, bias=bias),
    }


def model_specs(config: Config, layer: Tree) -> Tree:
    """The Flax param tree around one layer's."""
    return {
        "embeddings": {"word": embedding(config.vocab_size, config.hidden_size, "vocab")},
        "layers": stack(layer, config.num_layers),
        "norm": norm_specs(config, config.hidden_size),
    }


@dataclass(frozen=True)
class Sight:
    """What a layer's attention needs to know beside its parameters: `angles` of `rotary`, and who sees whom."""

    angles: tuple[Array, Array]
    mask: AttentionMask


def attend(
    p: Tree,
    x: Array,
    sight: Sight,
    config: Config,
    pick: Pick,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    residual: bool = True,
) -> Array:
    """norm -> attention -> output.

    Args:
        p: as `attention_specs` declares them.
        x: [R, T, D] in the compute dtype.
        sight: the layer's.
        config: the model's.
        pick: of what comes behind the attention, the tokens that are wanted.
        scale, soft_cap: as for `attention`.
        residual: whether x is added.

    Returns:
        [R, W, D] of the tokens picked, in the compute dtype; float32 without x.
    """
    dtype, end = x.dtype, _end(pick(x), residual)
    x = config.norm(p["norm"], x, dtype=dtype)
    q, k, v = _project(p, x)
    if "query_norm" in p:
        # Rounded, as transformers' are: in float32 a GPU would write them out for the rotation to read (docs/gpu.md).
        q, k = config.norm(p["query_norm"], q, dtype=dtype), config.norm(p["key_norm"], k, dtype=dtype)
    q, k, v = (y.astype(dtype) for y in (rotate(q, sight.angles), rotate(k, sight.angles), v))
    mixed = attention(q, k, v, sight.mask, scale=scale, soft_cap=soft_cap, dtype=dtype)
    return dense(p["output"], pick(mixed), "rtnh,nhd->rtd", **end)


def _end(x: Array, residual: bool) -> dict[str, Any]:
    return {"add": x, "dtype": x.dtype} if residual else {}


def _project(p: Tree, x: Array) -> tuple[Array, Array, Array]:
    """Queries [R, T, N, H], keys and values [R, T, K, H]: of one fused product where `qkv` is declared."""
    if "qkv" not in p:
        k, v = (dense(p[name], x, "rtd,dkh->rtkh") for name in ("key", "value"))
        return dense(p["query"], x, "rtd,dnh->rtnh"), k, v
    groups = dense(p["qkv"], x, "rtd,dkgh->rtkgh")
    q, k, v = groups[:, :, :, :-2], groups[:, :, :, -2], groups[:, :, :, -1]
    return q.reshape(*q.shape[:2], -1, q.shape[-1]), k, v


def gated_mlp(p: Tree, x: Array, config: Config, *, residual: bool = True) -> Array:
    """norm -> activation(gate) · up -> down. Arguments and result as `attend`'s, all of [R, W, D]."""
    dtype, end = x.dtype, _end(x, residual)
    x = config.norm(p["norm"], x, dtype=dtype)
    # In this order a TPU holds fewer of the kernels that it gathers at a time (docs/tpu.md).
    up = dense(p["up"], x)
    return dense(p["down"], dense(p["gate"], x, activation=config.activation, times=up, dtype=dtype), **end)


def run(
    params: Tree, batch: Batch, config: Config, block: Callable[[Sight], Layer], capture: tuple[str, ...]
) -> Output:
    """Embeddings, the layers that `block` makes of each kind, and the last norm."""
    table = params["embeddings"]["word"]["embedding"]
    dtype = table.dtype
    with jax.named_scope("embeddings"):
        # The factor is rounded to the compute dtype first, as Gemma was trained.
        scale = jnp.asarray(config.embedding_scale, dtype).astype(jnp.float32)
        x = (table[batch.ids].astype(jnp.float32) * scale).astype(dtype)
        if config.image_token is not None and FEATURES in batch.arrays:
            seen = jnp.equal(batch.ids, config.image_token)
            x = jnp.where(seen[..., None], batch.arrays[FEATURES].astype(dtype), x)
    captured = keep(capture, embeddings=x)
    angles = {rotary: rotary.angles(batch) for rotary in {kind.rotary: None for kind in config.pattern}}
    layers = [
        block(Sight(angles[kind.rotary], AttentionMask.of(batch, causal=config.causal, window=kind.window)))
        for kind in config.pattern
    ]
    x, by_layer = apply_layers(layers, params["layers"], x, batch.pick)
    return Output(config.norm(params["norm"], x, dtype=dtype), captured | by_layer)
