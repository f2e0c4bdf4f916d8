"""jina-embeddings-v3 (Sturua et al. 2024, arXiv:2409.10173): XLM-RoBERTa with rotary positions and task adapters.

Post-norm blocks as BERT's. Every matrix and every embedding table has a LoRA adapter a task, and each sequence names
its own (`batch.adapter`), or none: what the original computes where no task is given. A checkpoint whose adapters are
merged, or that never had any, declares none.
Where the weights come from: `converters/jina.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool import lora
from jaxpool.attention import AttentionMask, attention
from jaxpool.batch import Batch, Pick, token_types
from jaxpool.layers import Layer, apply_layers, keep
from jaxpool.models import post_norm
from jaxpool.models.family import Family, Output
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.norms import layer_norm
from jaxpool.params import Tree, stack
from jaxpool.params import layer_norm as layer_norm_specs
from jaxpool.rotary import Rotary, rotate

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Config(post_norm.Config):
    """The sizes of a jina-embeddings-v3.

    Attributes:
        adapters: the tasks' names; `batch.adapter` counts them from 1.
        adapter_rank, adapter_scale: LoRA's rank, and its α / rank.
    """

    max_length: int
    token_types: int
    rotary: Rotary
    adapters: tuple[str, ...]
    adapter_rank: int
    adapter_scale: float


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (`XLMRobertaFlashConfig` of jinaai/xlm-roberta-flash-implementation)."""
    hf = HFConfig(
        values,
        # Of training, of how attention is computed, of the original's own `encode`, and the tasks' prompts.
        ignore="""
            emb_pooler lora_dropout_p lora_main_params_trainable lora_prompts task_instructions use_flash_attn
            use_reentrant
        """.split(),
    )
    fields = post_norm.config_fields(hf) | {"epsilon": hf.get("layer_norm_eps", 1e-5)}
    hf.only("position_embedding_type", "rotary")
    hf.only("hidden_act", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # the others' MLP is gated
    hf.only("use_reg_tokens", False)
    hf.only("truncate_dim", fields["hidden_size"])
    max_length, head_size = hf.get("max_position_embeddings", 8194), fields["hidden_size"] // fields["num_heads"]
    if head_size % 2:
        raise ConfigError(
            f"config.json: `hidden_size` / `num_attention_heads` is {head_size}: rotary needs an even one"
        )
    # False says that adapters are yet to be trained: the checkpoint holds none.
    trained, names = hf.get("load_trained_adapters", True), tuple(hf.get("lora_adaptations", ()))
    rank = hf.get("lora_rank", 4)
    config = Config(
        **fields,
        max_length=max_length,  # positions start at 0, so the two that XLM-RoBERTa loses to its padding id are there
        token_types=hf.get("type_vocab_size", 1),
        rotary=Rotary(head_size, hf.get("rotary_emb_base", 10_000.0), max_positions=max_length),
        adapters=names if trained else (),
        adapter_rank=rank,
        adapter_scale=hf.get("lora_alpha", 1) / rank,
    )
    hf.finish()
    return config


def param_specs(config: Config) -> Tree:
    """The Flax param tree, adapted layers as in `lora`; the `qkv` kernel is [D, 3, N, H]."""
    adapters = (len(config.adapters), config.adapter_rank)
    width, mlp = {"embed": config.hidden_size}, {"mlp": config.mlp_size}
    heads = {"heads": config.num_heads, "head_dim": config.hidden_size // config.num_heads}
    norm = layer_norm_specs(config.hidden_size)
    layer = {
        "attention": {
            "qkv": lora.linear(width, {"parts": 3, **heads}, *adapters),
            "output": lora.linear(heads, width, *adapters),
            "norm": norm,
        },
        "mlp": {
            "up": lora.linear(width, mlp, *adapters),
            "down": lora.linear(mlp, width, *adapters),
            "norm": norm,
        },
    }
    return {
        "embeddings": {
            "word": lora.embedding(config.vocab_size, config.hidden_size, *adapters, axis="vocab"),
            "token_type": lora.embedding(config.token_types, config.hidden_size, *adapters),
            "norm": norm,
        },
        "layers": stack(layer, config.num_layers),
    }


def pooler_specs(config: Config) -> Tree:
    """The tanh layer over the first token, adapted too, which no embedding needs."""
    width = config.hidden_size
    return {"pooler": lora.linear({"embed": width}, {"pooled": width}, len(config.adapters), config.adapter_rank)}


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Hidden states [R, W, D]; captures "embeddings", "attention", "layer" and, if loaded, "pooler"."""
    e = params["embeddings"]
    dtype = e["norm"]["scale"].dtype
    chosen = lora.choose(batch, len(config.adapters), config.adapter_scale)
    with jax.named_scope("embeddings"):
        types = jnp.minimum(token_types(batch), config.token_types - 1)  # the published one has one type only
        x = lora.look_up(e["word"], batch.ids, chosen) + lora.look_up(e["token_type"], types, chosen)
        x = layer_norm(e["norm"], x, config.epsilon, dtype=dtype)
    captured = keep(capture, embeddings=x)
    x, by_layer = apply_layers((_block(batch, chosen, config, capture),), params["layers"], x, batch.pick)
    if "pooler" in capture:
        captured["pooler"] = jnp.tanh(lora.dense(params["pooler"], x, chosen))
    return Output(x, captured | by_layer)


def _block(batch: Batch, chosen: Array, config: Config, capture: tuple[str, ...]) -> Layer:
    angles, mask = config.rotary.angles(batch), AttentionMask.of(batch)

    def block(x: Array, p: Tree, pick: Pick) -> tuple[Array, dict[str, Array]]:
        a, m, dtype, own = p["attention"], p["mlp"], x.dtype, pick(chosen)
        with jax.named_scope("attention"):
            qkv = lora.dense(a["qkv"], x, chosen, "rtd,dcnh->rtcnh")
            q, k, v = (qkv[:, :, part] for part in range(3))
            q, k = rotate(q, angles), rotate(k, angles)
            mixed = attention(q.astype(dtype), k.astype(dtype), v.astype(dtype), mask, dtype=dtype)
            attended = lora.dense(a["output"], pick(mixed), own, "rtnh,nhd->rtd", add=pick(x))
            attended = layer_norm(a["norm"], attended, config.epsilon, dtype=dtype)
        with jax.named_scope("mlp"):
            inner = lora.dense(m["up"], attended, own, activation=config.activation, dtype=dtype)
            x = lora.dense(m["down"], inner, own, add=attended)
            x = layer_norm(m["norm"], x, config.epsilon, dtype=dtype)
        return x, keep(capture, attention=attended, layer=x)

    return block


def _is_rotary(values: Mapping[str, Any]) -> bool:
    return values.get("position_embedding_type") == "rotary"


FAMILY = Family(
    name="jina",
    architectures=("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    model_types=("xlm-roberta",),
    answers=_is_rotary,  # `models/roberta.py` for XLM-RoBERTa's learned positions
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="cls",
    captures=("embeddings", *post_norm.CAPTURES, "pooler"),
    picks=True,
    extras=pooler_specs,
    own_modules={"custom_st.Transformer": "Transformer"},  # which hands the task on, and nothing else
)
