"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118) and Gemma 3's text model (2025, arXiv:2503.19786).

As in transformers' `modeling_gemma2.py` and `modeling_gemma3.py`: Llama's parts with a norm behind attention and MLP
as well, layers that see a window between layers that see all, soft-capped scores in Gemma 2, norms of queries and keys
in Gemma 3. The first Gemma has Llama's block: `llama.py`. Where the weights come from: `converters/gemma.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxpool.batch import Batch, Pick
from jaxpool.layers import ACTIVATIONS, Array, Layer, keep
from jaxpool.models import pre_norm
from jaxpool.models.classification import linear_classifier
from jaxpool.models.family import Family, Output
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.params import Tree


@dataclass(frozen=True, kw_only=True)
class Config(pre_norm.Config):
    """The sizes of a Gemma 2 or 3.

    Attributes:
        scale: of the attention scores.
        soft_cap: of the scaled scores, or None.
    """

    scale: float
    soft_cap: float | None = None


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `Gemma2Config`, `Gemma3TextConfig`)."""
    # The language model's own soft cap, and how generated text is cached.
    hf = HFConfig(values, ignore=("final_logit_softcapping", "cache_implementation", "_sliding_window_pattern"))
    kind = hf.need("model_type")
    if kind not in _READERS:
        raise ConfigError(f"config.json: `model_type` is {kind!r}, expected one of {sorted(_READERS)}")
    fields = _READERS[kind](hf)
    hf.finish()
    return Config(**fields)


def _shared(hf: HFConfig) -> dict[str, Any]:
    hf.only("is_causal", True)
    hf.only("hidden_act", "gelu_pytorch_tanh")  # nobody reads it: Gemma's own attribute is hidden_activation
    activation = hf.one_of("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    fields = pre_norm.config_fields(hf, activation=activation, head_size=256)
    return fields | {
        "attention_bias": hf.get("attention_bias", False),
        "output_bias": hf.get("attention_bias", False),
        "embedding_scale": fields["hidden_size"] ** 0.5,
        "norm_offset": 1.0,
        "scale": hf.get("query_pre_attn_scalar", 256) ** -0.5,
    }


def _pattern(hf: HFConfig, num_layers: int, period: int, full: Any, window: Any) -> tuple[pre_norm.Kind, ...]:
    types = [("full" if (i + 1) % period == 0 else "sliding") + "_attention" for i in range(num_layers)]
    kinds = {"full_attention": full, "sliding_attention": window}
    return pre_norm.read_pattern(hf.get("layer_types", types), num_layers, kinds)


def _gemma2(hf: HFConfig) -> dict[str, Any]:
    # transformers applies it to some batches and not to others: its masks know nothing of it.
    hf.only("use_bidirectional_attention", False)
    fields = _shared(hf)
    full = pre_norm.Kind(None, pre_norm.read_rope(hf, fields["head_size"]))
    tokens = hf.get("sliding_window", 4096)
    hf.only("sliding_window_size", tokens)  # the first configs say it twice
    window = full._replace(window=pre_norm.causal_window(tokens))
    return fields | {
        "max_length": pre_norm.stretched_length(full.rotary),
        "pattern": _pattern(hf, fields["num_layers"], 2, full, window),
        "soft_cap": hf.nullable("attn_logit_softcapping", 50.0),
    }


def _gemma3(hf: HFConfig) -> dict[str, Any]:
    hf.only("attn_logit_softcapping", None)
    hf.only("use_bidirectional_attention", True, False)
    fields = _shared(hf)
    causal = not hf.get("use_bidirectional_attention", False)
    tokens = hf.get("sliding_window", 4096)
    size, positions = fields["head_size"], hf.need("max_position_embeddings")
    full, local = _gemma3_rotary(hf)
    # EmbeddingGemma's window is the width of what a token sees on both sides together.
    window = pre_norm.causal_window(tokens) if causal else (tokens // 2, tokens // 2)
    return fields | {
        "causal": causal,
        "max_length": positions,  # vLLM's rule: Gemma 3's is the stretched length already
        "pattern": _pattern(
            hf,
            fields["num_layers"],
            hf.get("sliding_window_pattern", 6),
            pre_norm.Kind(None, pre_norm.make_rotary(full, size, positions, 1_000_000.0)),
            pre_norm.Kind(window, pre_norm.make_rotary(local, size, positions, 10_000.0)),
        ),
        "qk_norm": True,
    }


def _gemma3_rotary(hf: HFConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotary parameters of layers that see all, and of layers that see a window, in either spelling."""
    new = hf.get("rope_parameters", {})
    if unknown := sorted(set(new) - {"full_attention", "sliding_attention"}):
        raise ConfigError(f"config.json: `rope_parameters` has {unknown}, expected parameters by kind of layer")
    old = hf.get("rope_scaling", {})
    if old and "rope_type" not in old:
        raise ConfigError("config.json: `rope_scaling` has no `rope_type`, and transformers would pass over it")
    full = {"rope_theta": hf.get("rope_theta", None)} | (new.get("full_attention") or {})
    local = {"rope_theta": hf.get("rope_local_base_freq", None)} | (new.get("sliding_attention") or {})
    return full | old, local


_READERS: Mapping[str, Callable[[HFConfig], dict[str, Any]]] = {"gemma2": _gemma2, "gemma3_text": _gemma3}


def param_specs(config: Config) -> Tree:
    """The Flax param tree."""
    after = {"post_norm": pre_norm.norm_specs(config, config.hidden_size)}
    layer = {"attention": pre_norm.attention_specs(config) | after, "mlp": pre_norm.mlp_specs(config) | after}
    return pre_norm.model_specs(config, layer)


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Hidden states [R, W, D] behind the last norm; captures "embeddings", and the streams "attention", "layer"."""

    def block(sight: pre_norm.Sight) -> Layer:
        def layer(x: Array, p: Tree, pick: Pick) -> tuple[Array, dict[str, Array]]:
            a, m, dtype = p["attention"], p["mlp"], x.dtype
            with jax.named_scope("attention"):
                mixed = pre_norm.attend(
                    a, x, sight, config, pick, scale=config.scale, soft_cap=config.soft_cap, residual=False
                )
                attended = (pick(x) + config.norm(a["post_norm"], mixed)).astype(dtype)
            with jax.named_scope("mlp"):
                inner = pre_norm.gated_mlp(m, attended, config, residual=False)
                x = (attended + config.norm(m["post_norm"], inner)).astype(dtype)
            return x, keep(capture, attention=attended, layer=x)

        return layer

    return pre_norm.run(params, batch, config, block, capture)


FAMILY = Family(
    name="gemma",
    architectures=("Gemma2Model", "Gemma2ForCausalLM", "Gemma3TextModel", "Gemma3ForCausalLM"),
    model_types=tuple(_READERS),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="lasttoken",
    captures=pre_norm.CAPTURES,
    picks=True,
    heads={f"{name}ForSequenceClassification": linear_classifier for name in ("Gemma2", "Gemma3Text", "Gemma3")},
)
