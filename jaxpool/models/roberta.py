"""RoBERTa (Liu et al. 2019, arXiv:1907.11692), XLM-RoBERTa (Conneau et al. 2019, arXiv:1911.02116) and CamemBERT
(Martin et al. 2019, arXiv:1911.03894) as in transformers' `modeling_roberta.py`: what they compute.

BERT with other positions: they start behind the padding id and count only tokens that are not it.
Where the weights come from: `converters/roberta.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.attention import AttentionMask
from jaxpool.batch import Batch, positions_after_padding_id, token_types
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
    """The sizes of a RoBERTa."""

    position_rows: int
    padding_id: int
    token_types: int

    @property
    def max_length(self) -> int:
        """Positions start behind the padding id."""
        return self.position_rows - self.padding_id - 1


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `RobertaConfig`, `XLMRobertaConfig` and `CamembertConfig`)."""
    hf = HFConfig(values)
    hf.only("position_embedding_type", "absolute")
    config = Config(
        **post_norm.config_fields(hf),
        position_rows=hf.get("max_position_embeddings", 512),
        padding_id=hf.get("pad_token_id", 1),
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
            "position": embedding(config.position_rows, width),
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
        positions = positions_after_padding_id(batch, config.padding_id)
        types = jnp.minimum(token_types(batch), config.token_types - 1)  # most have one type only
        x = e["word"]["embedding"][batch.ids].astype(jnp.float32)
        x = x + e["position"]["embedding"][positions] + e["token_type"]["embedding"][types]
        x = layer_norm(e["norm"], x, config.epsilon, dtype=dtype)
    captured = keep(capture, embeddings=x)
    mask = AttentionMask.of(batch)
    x, by_layer = post_norm.blocks(params["layers"], x, mask, config, capture=capture, pick=batch.pick)
    if "pooler" in capture:
        captured["pooler"] = jnp.tanh(dense(params["pooler"], x))
    return Output(x, captured | by_layer)


FAMILY = Family(
    name="roberta",
    architectures=(
        "RobertaModel",
        "RobertaForMaskedLM",
        "XLMRobertaModel",
        "XLMRobertaForMaskedLM",
        "CamembertModel",
        "CamembertForMaskedLM",
    ),
    model_types=("roberta", "xlm-roberta", "camembert"),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="cls",
    captures=("embeddings", *post_norm.CAPTURES, "pooler"),
    picks=True,
    heads={
        f"{name}For{kind}Classification": head
        for name in ("Roberta", "XLMRoberta", "Camembert")
        for kind, head in (("Sequence", tanh_classifier), ("Token", token_classifier))
    },
    extras=post_norm.pooler_specs,
)
