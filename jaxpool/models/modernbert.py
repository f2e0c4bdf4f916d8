"""ModernBERT (Warner et al. 2024, arXiv:2412.13663) as in transformers' `modeling_modernbert.py`: what it computes.

Pre-norm blocks with rotary positions and a gated MLP. Most layers see a window of tokens only, the others all of
them, and each of the two kinds has rotary frequencies of its own. Layer 0 has no norm before its attention, as the
embeddings have just been normed: its parameters are declared apart from the stack.
Where the weights come from: `converters/modernbert.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.attention import AttentionMask, attention
from jaxpool.batch import Batch, Pick
from jaxpool.heads import Dense, LayerNorm
from jaxpool.layers import ACTIVATIONS, Layer, apply_layers, dense, keep
from jaxpool.models.classification import CLASSIFIER, labels
from jaxpool.models.family import Family, Head, Output
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.models.pre_norm import Kind, Sight, make_rotary, read_pattern
from jaxpool.norms import layer_norm
from jaxpool.params import QKV, Tree, embedding, linear, stack
from jaxpool.params import layer_norm as layer_norm_specs
from jaxpool.rotary import rotate

Array = jax.Array

FULL, SLIDING = "full_attention", "sliding_attention"
_UNSCALED = {"rope_type": "default"}  # which `rope_scaling` overrules only if it spells its kind the same way


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes of a ModernBERT.

    Attributes:
        pattern: the kinds of layers 0, 1, …, repeating: of full or of sliding attention.
        attention_bias, mlp_bias, norm_bias: which parts have biases.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    activation: str
    epsilon: float
    max_length: int
    pattern: tuple[Kind, ...]
    attention_bias: bool
    mlp_bias: bool
    norm_bias: bool

    @property
    def activation_bytes_per_token(self) -> int:
        """The MLP's two inner rows and their product beside the residual stream and q, k, v, in float32."""
        return 4 * (3 * self.mlp_size + 6 * self.hidden_size)


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `ModernBertConfig`), in today's spelling and in that before transformers 5."""
    hf = HFConfig(
        values,
        # Of training, of the heads, of how the original was compiled; and two that its first release copied from BERT.
        ignore="""
            classifier_activation classifier_bias classifier_pooling decoder_bias deterministic_flash_attn
            embedding_dropout initializer_cutoff_factor layer_norm_eps mlp_dropout position_embedding_type
            reference_compile repad_logits_with_grad sparse_pred_ignore_index sparse_prediction
        """.split(),
    )
    hf.only("is_causal", False)
    hf.only("causal_mask", False)
    hidden_size, num_heads = hf.need("hidden_size"), hf.need("num_attention_heads")
    if hidden_size % num_heads:
        raise ConfigError(
            f"config.json: `hidden_size` {hidden_size} is no multiple of `num_attention_heads` {num_heads}"
        )
    max_length = hf.get("max_position_embeddings", 8192)
    config = Config(
        vocab_size=hf.need("vocab_size"),
        hidden_size=hidden_size,
        num_layers=hf.need("num_hidden_layers"),
        num_heads=num_heads,
        mlp_size=hf.need("intermediate_size"),
        activation=hf.one_of("hidden_activation", ACTIVATIONS, "gelu"),
        epsilon=hf.get("norm_eps", 1e-5),
        max_length=max_length,
        pattern=_read_pattern(hf, hidden_size // num_heads, max_length),
        attention_bias=hf.get("attention_bias", False),
        mlp_bias=hf.get("mlp_bias", False),
        norm_bias=hf.get("norm_bias", False),
    )
    hf.finish()
    return config


def _read_pattern(hf: HFConfig, head_size: int, max_length: int) -> tuple[Kind, ...]:
    new, scaling = hf.get("rope_parameters", {FULL: _UNSCALED, SLIDING: _UNSCALED}), hf.get("rope_scaling", {})
    if unknown := sorted(set(new) - {FULL, SLIDING}):
        raise ConfigError(f"config.json: `rope_parameters` has {unknown}, expected {FULL!r} and {SLIDING!r}")
    window = hf.get("local_attention", 128) // 2
    windows = {FULL: None, SLIDING: (window, window)}
    thetas = {FULL: hf.get("global_rope_theta", 160_000.0), SLIDING: hf.get("local_rope_theta", 10_000.0)}
    kinds = {
        name: Kind(windows[name], make_rotary((new.get(name) or {}) | scaling, head_size, max_length, theta))
        for name, theta in thetas.items()
    }
    depth, every = hf.need("num_hidden_layers"), hf.get("global_attn_every_n_layers", 3)
    names = hf.get("layer_types", [SLIDING if i % every else FULL for i in range(depth)])
    return read_pattern(names, depth, kinds)


def param_specs(config: Config) -> Tree:
    """The Flax param tree; q, k and v kernels are [D, N, H], those of the MLP's two products [D, F]."""
    width = {"embed": config.hidden_size}
    heads = {"heads": config.num_heads, "head_dim": config.hidden_size // config.num_heads}
    mlp = {"mlp": config.mlp_size}
    norm = layer_norm_specs(config.hidden_size, bias=config.norm_bias)
    layer = {
        "attention": {
            "norm": norm,
            **{name: linear(width, heads, bias=config.attention_bias) for name in QKV},
            "output": linear(heads, width, bias=config.attention_bias),
        },
        "mlp": {
            "norm": norm,
            "gate": linear(width, mlp, bias=config.mlp_bias),
            "up": linear(width, mlp, bias=config.mlp_bias),
            "down": linear(mlp, width, bias=config.mlp_bias),
        },
    }
    specs = {
        "embeddings": {"word": embedding(config.vocab_size, config.hidden_size, "vocab"), "norm": norm},
        "first": {**layer, "attention": {name: part for name, part in layer["attention"].items() if name != "norm"}},
        "norm": norm,
    }
    if config.num_layers > 1:
        specs["layers"] = stack(layer, config.num_layers - 1)
    return specs


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Hidden states [R, W, D]; captures "embeddings", "attention" and "layer", both behind the residual sum."""
    e = params["embeddings"]
    dtype = e["word"]["embedding"].dtype
    with jax.named_scope("embeddings"):
        x = layer_norm(e["norm"], e["word"]["embedding"][batch.ids], config.epsilon, dtype=dtype)
    captured = keep(capture, embeddings=x)
    masks = {kind: AttentionMask.of(batch, window=kind.window) for kind in config.pattern}
    blocks = {kind: _block(Sight(kind.rotary.angles(batch), masks[kind]), config, capture) for kind in masks}
    first, *others = (blocks[kind] for kind in config.pattern)
    alone = "layers" not in params
    x, by_layer = apply_layers((first,), {"0": params["first"]}, x, batch.pick if alone else None)
    if not alone:
        x, rest = apply_layers((*others, first), params["layers"], x, batch.pick)
        by_layer = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), by_layer, rest)
    x = layer_norm(params["norm"], x, config.epsilon, dtype=dtype)
    return Output(x, captured | by_layer)


def _block(sight: Sight, config: Config, capture: tuple[str, ...]) -> Layer:
    def block(x: Array, p: Tree, pick: Pick) -> tuple[Array, dict[str, Array]]:
        a, m, dtype = p["attention"], p["mlp"], x.dtype
        with jax.named_scope("attention"):
            y = layer_norm(a["norm"], x, config.epsilon, dtype=dtype) if "norm" in a else x
            q, k, v = (dense(a[name], y, "rtd,dnh->rtnh") for name in QKV)
            q, k = rotate(q, sight.angles), rotate(k, sight.angles)
            mixed = attention(q.astype(dtype), k.astype(dtype), v.astype(dtype), sight.mask, dtype=dtype)
            attended = dense(a["output"], pick(mixed), "rtnh,nhd->rtd", add=pick(x), dtype=dtype)
        with jax.named_scope("mlp"):
            normed = layer_norm(m["norm"], attended, config.epsilon, dtype=dtype)
            up = dense(m["up"], normed)
            inner = dense(m["gate"], normed, activation=config.activation, times=up, dtype=dtype)
            x = dense(m["down"], inner, add=attended, dtype=dtype)
        return x, keep(capture, attention=attended, layer=x)

    return block


def classifier(config: Config, values: Mapping[str, Any]) -> Head:
    """A dense layer with its activation, a norm, then the classes; over the first token or over their mean."""
    hf = HFConfig(values)
    pooling = hf.one_of("classifier_pooling", ("cls", "mean"), "cls")
    modules = (*_prediction(config, hf), Dense(config.hidden_size, labels(values), activation="identity"))
    return Head(CLASSIFIER, modules, pooling=pooling)


def token_classifier(config: Config, values: Mapping[str, Any]) -> Head:
    """The same chain over every token."""
    modules = (*_prediction(config, HFConfig(values)), Dense(config.hidden_size, labels(values), activation="identity"))
    return Head(CLASSIFIER, modules, task="token_classify")


def _prediction(config: Config, hf: HFConfig) -> tuple[Dense, LayerNorm]:
    width, bias = config.hidden_size, hf.get("classifier_bias", False)
    dense = Dense(width, width, bias=bias, activation=hf.one_of("classifier_activation", ACTIVATIONS, "gelu"))
    hf.refuse()
    return dense, LayerNorm(width, bias=config.norm_bias, epsilon=config.epsilon)


FAMILY = Family(
    name="modernbert",
    architectures=("ModernBertModel", "ModernBertForMaskedLM"),
    model_types=("modernbert",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="cls",
    captures=("embeddings", "attention", "layer"),
    picks=True,
    heads={"ModernBertForSequenceClassification": classifier, "ModernBertForTokenClassification": token_classifier},
)
