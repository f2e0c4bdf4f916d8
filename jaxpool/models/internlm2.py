"""InternLM2 (Cai et al. 2024, arXiv:2403.17297): Llama's block with one fused product for queries, keys and values.

What it computes is Llama's forward pass (`llama.py`); `qkv` is grouped by key/value head, its queries first.
Where the weights come from: `converters/internlm2.py`.
"""

from __future__ import annotations

from typing import Any

from jaxpool.models import llama, pre_norm
from jaxpool.models.classification import value_head
from jaxpool.models.family import Family
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.models.pre_norm import Config
from jaxpool.params import Tree, linear


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (the `InternLM2Config` that lies beside the checkpoints)."""
    # How many parts the products were cut into while training; which token the reward is read at (the head's concern).
    hf = HFConfig(values, ignore=("pretraining_tp", "reward_token_id"))
    fields = pre_norm.config_fields(hf, activation=hf.one_of("hidden_act", ("silu",), "silu"))
    rotary = pre_norm.read_rope(hf, fields["head_size"])
    if rotary.kind not in ("default", "linear", "dynamic"):
        raise ConfigError(f"config.json: `rope_scaling` of type {rotary.kind!r} is not known to InternLM2")
    bias = hf.get("bias", True)
    hf.finish()
    return Config(
        **fields,
        max_length=pre_norm.stretched_length(rotary),
        pattern=(pre_norm.Kind(None, rotary),),
        attention_bias=bias,
        output_bias=bias,
    )


def param_specs(config: Config) -> Tree:
    """The Flax param tree; `qkv` kernels are [D, K, N/K + 2, H]: a group's queries, its key and its value."""
    apart = pre_norm.attention_specs(config)
    group = {
        "kv_heads": config.kv_heads,
        "parts": config.num_heads // config.kv_heads + 2,
        "head_dim": config.head_size,
    }
    attention = {
        "norm": apart["norm"],
        "qkv": linear({"embed": config.hidden_size}, group, bias=config.attention_bias),
        "output": apart["output"],
    }
    return pre_norm.model_specs(config, {"attention": attention, "mlp": pre_norm.mlp_specs(config)})


FAMILY = Family(
    name="internlm2",
    architectures=("InternLM2Model", "InternLM2ForCausalLM"),
    model_types=("internlm2",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=llama.forward,
    pooling="lasttoken",
    captures=pre_norm.CAPTURES,
    picks=True,
    heads={"InternLM2ForRewardModel": value_head},
)
