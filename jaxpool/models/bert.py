"""BERT (Devlin et al. 2018, arXiv:1810.04805) as in transformers' `modeling_bert.py`: what it computes.

Where its weights come from: `converters/bert.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.attention import AttentionMask
from jaxpool.batch import Batch, token_types
from jaxpool.layers import dense, keep
from jaxpool.models import post_norm
from jaxpool.models.classification import tanh_classifier, token_classifier
from jaxpool.models.family import Family, Output
from jaxpool.models.hf_config import HFConfig
from jaxpool.norms import layer_norm
from jaxpool.params import Tree, embedding
from jaxpool.params import layer_norm as layer_norm_specs


@dataclass(frozen=True, kw_only=True)
class Config(post_norm.Config):
    """The sizes of a BERT."""

    max_length: int
    token_types: int


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `BertConfig`)."""
    hf = HFConfig(
        values,
        # Of the Chinese BERTs' first release: sizes of heads that no pooling model reads.
        ignore="""
            directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
            pooler_type
        """.split(),
    )
    hf.only("position_embedding_type", "absolute")
    config = Config(
        **post_norm.config_fields(hf),
        max_length=hf.get("max_position_embeddings", 512),
        token_types=hf.get("type_vocab_size", 2),
    )
    hf.finish()
    return config


def param_specs(config: Config) -> Tree:
    """The Flax param tree."""
    width = config.hidden_size
    return {
        "embeddings": {
            "word": embedding(config.vocab_size, width, "vocab"),
            "position": embedding(config.max_length, width),
            "token_type": embedding(config.token_types, width),
            "norm": layer_norm_specs(width),
        },
        "layers": post_norm.block_specs(config),
    }


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Hidden states [R, W, D]; captures "embeddings", "attention", "layer" and, if loaded, "pooler"."""
    e = params["embeddings"]
    dtype = e["word"]["embedding"].dtype
    with jax.named_scope("embeddings"):
        x = e["word"]["embedding"][batch.ids].astype(jnp.float32)
        x = x + e["position"]["embedding"][batch.positions] + e["token_type"]["embedding"][token_types(batch)]
        x = layer_norm(e["norm"], x, config.epsilon, dtype=dtype)
    captured = keep(capture, embeddings=x)
    mask = AttentionMask.of(batch)
    x, by_layer = post_norm.blocks(params["layers"], x, mask, config, capture=capture, pick=batch.pick)
    if "pooler" in capture:
        captured["pooler"] = jnp.tanh(dense(params["pooler"], x))
    return Output(x, captured | by_layer)


FAMILY = Family(
    name="bert",
    architectures=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    model_types=("bert",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="cls",
    captures=("embeddings", *post_norm.CAPTURES, "pooler"),
    picks=True,
    heads={"BertForSequenceClassification": tanh_classifier, "BertForTokenClassification": token_classifier},
    extras=post_norm.pooler_specs,
)
