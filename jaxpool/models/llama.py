"""Llama (Touvron et al. 2023, arXiv:2302.13971) and the models of its block, as in transformers' `modeling_llama.py`.

Mistral (Jiang et al. 2023, arXiv:2310.06825) adds a window, Qwen2 (Yang et al. 2024, arXiv:2407.10671) biases, Qwen3
(Yang et al. 2025, arXiv:2505.09388) norms of queries and keys, Gemma (Gemma Team 2024, arXiv:2403.08295) a factor on
the embeddings and norms that scale by 1 + their parameter. Gemma 2 and 3 have a block of their own: `gemma.py`.
Where the weights come from: `converters/llama.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxpool.batch import Batch, Pick
from jaxpool.layers import ACTIVATIONS, Array, Layer, keep
from jaxpool.models import pre_norm
from jaxpool.models.classification import linear_classifier, process_reward, reward
from jaxpool.models.family import Family, Output
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.params import Tree


@dataclass(frozen=True, kw_only=True)
class Config(pre_norm.Config):
    """The sizes of a Llama.

    Attributes:
        mlp_bias: whether the MLP's three products have biases.
    """

    mlp_bias: bool = False


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `LlamaConfig`, `MistralConfig`, `Qwen2Config`, `Qwen3Config`, `GemmaConfig`)."""
    # How many parts the first Llama's products were cut into while training: the sums are the same.
    hf = HFConfig(values, ignore=("pretraining_tp",))
    kind = hf.need("model_type")
    if kind not in _READERS:
        raise ConfigError(f"config.json: `model_type` is {kind!r}, expected one of {sorted(_READERS)}")
    fields = _READERS[kind](hf)
    hf.finish()
    return Config(**fields)


def _shared(hf: HFConfig, *, head_size: int | None = None) -> dict[str, Any]:
    activation = hf.one_of("hidden_act", ACTIVATIONS, "silu")
    fields = pre_norm.config_fields(hf, activation=activation, head_size=head_size)
    rotary = pre_norm.read_rope(hf, fields["head_size"])
    return fields | {
        "max_length": pre_norm.stretched_length(rotary),
        "pattern": (pre_norm.Kind(None, rotary),),
        "causal": hf.get("is_causal", True),
    }


def _biases(hf: HFConfig) -> dict[str, bool]:
    return dict.fromkeys(("attention_bias", "output_bias"), hf.get("attention_bias", False))


def _window(tokens: int, causal: bool) -> tuple[int, int] | None:
    # transformers counts the token itself under a causal mask, and does not in a bidirectional one.
    return pre_norm.causal_window(tokens) if causal else (tokens, tokens)


def _llama(hf: HFConfig) -> dict[str, Any]:
    return _shared(hf) | _biases(hf) | {"mlp_bias": hf.get("mlp_bias", False)}


def _mistral(hf: HFConfig) -> dict[str, Any]:
    fields = _shared(hf)
    (kind,) = fields["pattern"]
    tokens = hf.nullable("sliding_window", 4096)
    window = None if tokens is None else _window(tokens, fields["causal"])
    return fields | {"pattern": (kind._replace(window=window),)}


def _qwen(hf: HFConfig, **defaults: Any) -> dict[str, Any]:
    hf.only("use_mrope", False)
    fields = _shared(hf, **defaults)
    (full,) = fields["pattern"]
    kinds = {"full_attention": full}
    tokens, first = hf.nullable("sliding_window", 4096), hf.get("max_window_layers", 28)
    if hf.get("use_sliding_window", False) and tokens is not None:
        kinds["sliding_attention"] = full._replace(window=_window(tokens, fields["causal"]))
    beyond = "sliding_attention" if "sliding_attention" in kinds else "full_attention"
    layers = fields["num_layers"]
    types = hf.get("layer_types", ["full_attention" if i < first else beyond for i in range(layers)])
    return fields | {"pattern": pre_norm.read_pattern(types, layers, kinds)}


def _qwen2(hf: HFConfig) -> dict[str, Any]:
    return _qwen(hf) | {"attention_bias": True}


def _qwen3(hf: HFConfig) -> dict[str, Any]:
    return _qwen(hf, head_size=128) | _biases(hf) | {"qk_norm": True}


def _gemma(hf: HFConfig) -> dict[str, Any]:
    # transformers applies it to some batches and not to others: its masks know nothing of it.
    hf.only("use_bidirectional_attention", False)
    hf.only("hidden_activation", "gelu_pytorch_tanh")
    # "gelu" in the first configs meant its approximation, as transformers knows too.
    hf.only("hidden_act", "gelu_pytorch_tanh", "gelu")
    fields = _shared(hf, head_size=256) | _biases(hf)
    return fields | {
        "activation": "gelu_pytorch_tanh",
        "embedding_scale": fields["hidden_size"] ** 0.5,
        "norm_offset": 1.0,
    }


_READERS: Mapping[str, Callable[[HFConfig], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
}


def param_specs(config: Config) -> Tree:
    """The Flax param tree."""
    layer = {
        "attention": pre_norm.attention_specs(config),
        "mlp": pre_norm.mlp_specs(config, bias=config.mlp_bias),
    }
    return pre_norm.model_specs(config, layer)


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Hidden states [R, W, D] behind the last norm; captures "embeddings", and the streams "attention", "layer"."""

    def block(sight: pre_norm.Sight) -> Layer:
        def layer(x: Array, p: Tree, pick: Pick) -> tuple[Array, dict[str, Array]]:
            with jax.named_scope("attention"):
                attended = pre_norm.attend(p["attention"], x, sight, config, pick)
            with jax.named_scope("mlp"):
                x = pre_norm.gated_mlp(p["mlp"], attended, config)
            return x, keep(capture, attention=attended, layer=x)

        return layer

    return pre_norm.run(params, batch, config, block, capture)


FAMILY = Family(
    name="llama",
    architectures=(
        "LlamaModel",
        "LlamaForCausalLM",
        "MistralModel",
        "MistralForCausalLM",
        "Qwen2Model",
        "Qwen2ForCausalLM",
        "Qwen3Model",
        "Qwen3ForCausalLM",
        "GemmaModel",
        "GemmaForCausalLM",
    ),
    model_types=tuple(_READERS),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="lasttoken",
    captures=pre_norm.CAPTURES,
    picks=True,
    heads={
        **{
            f"{name}ForSequenceClassification": linear_classifier
            for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")
        },
        "Qwen2ForRewardModel": reward,
        "Qwen2ForProcessRewardModel": process_reward,
    },
)
