"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108) as in transformers' `modeling_distilbert.py`: what it computes.

BERT without token types and without a pooler.
Where its weights come from: `converters/distilbert.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.attention import AttentionMask
from jaxpool.batch import Batch
from jaxpool.layers import ACTIVATIONS, keep
from jaxpool.models import post_norm
from jaxpool.models.classification import relu_classifier, token_classifier
from jaxpool.models.family import Family, Output
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.norms import layer_norm
from jaxpool.params import Tree, embedding
from jaxpool.params import layer_norm as layer_norm_specs

EPSILON = 1e-12  # fixed in the original


@dataclass(frozen=True, kw_only=True)
class Config(post_norm.Config):
    """The sizes of a DistilBERT."""

    max_length: int


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `DistilBertConfig`, which has names of its own)."""
    hf = HFConfig(
        values,
        # The sinusoidal table is stored as any other, so the flag only chose how training began.
        ignore="dropout qa_dropout seq_classif_dropout sinusoidal_pos_embds tie_weights_".split(),
    )
    config = Config(
        vocab_size=hf.need("vocab_size"),
        hidden_size=hf.need("dim"),
        num_layers=hf.need("n_layers"),
        num_heads=hf.need("n_heads"),
        mlp_size=hf.need("hidden_dim"),
        activation=hf.one_of("activation", ACTIVATIONS, "gelu"),
        epsilon=EPSILON,
        max_length=hf.get("max_position_embeddings", 512),
    )
    hf.finish()
    if config.hidden_size % config.num_heads:
        raise ConfigError(f"config.json: `dim` {config.hidden_size} is no multiple of `n_heads` {config.num_heads}")
    return config


def param_specs(config: Config) -> Tree:
    """The Flax param tree."""
    width = config.hidden_size
    return {
        "embeddings": {
            "word": embedding(config.vocab_size, width, "vocab"),
            "position": embedding(config.max_length, width),
            "norm": layer_norm_specs(width),
        },
        "layers": post_norm.block_specs(config),
    }


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Hidden states [R, W, D]; captures "embeddings", "attention" and "layer"."""
    e = params["embeddings"]
    dtype = e["word"]["embedding"].dtype
    with jax.named_scope("embeddings"):
        x = e["word"]["embedding"][batch.ids].astype(jnp.float32) + e["position"]["embedding"][batch.positions]
        x = layer_norm(e["norm"], x, config.epsilon, dtype=dtype)
    captured = keep(capture, embeddings=x)
    mask = AttentionMask.of(batch)
    x, by_layer = post_norm.blocks(params["layers"], x, mask, config, capture=capture, pick=batch.pick)
    return Output(x, captured | by_layer)


FAMILY = Family(
    name="distilbert",
    architectures=("DistilBertModel", "DistilBertForMaskedLM"),
    model_types=("distilbert",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="cls",
    captures=("embeddings", *post_norm.CAPTURES),
    picks=True,
    heads={
        "DistilBertForSequenceClassification": relu_classifier,
        "DistilBertForTokenClassification": token_classifier,
    },
)
