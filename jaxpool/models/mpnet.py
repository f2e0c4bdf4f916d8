"""MPNet (Song et al. 2020, arXiv:2004.09297) as in transformers' `modeling_mpnet.py`: what it computes.

BERT's block with two differences: learned positions are offset and counted as RoBERTa's, and one table of
relative position biases, shared by all layers, is added to the attention scores.
Where its weights come from: `converters/mpnet.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.attention import AttentionMask
from jaxpool.batch import Batch, positions_after_padding_id
from jaxpool.layers import dense, keep
from jaxpool.models import post_norm
from jaxpool.models.classification import tanh_classifier, token_classifier
from jaxpool.models.family import Family, Output
from jaxpool.models.hf_config import ConfigError, HFConfig
from jaxpool.norms import layer_norm
from jaxpool.params import ParamSpec, Tree, embedding
from jaxpool.params import layer_norm as layer_norm_specs

PADDING_ID = 1  # fixed in the original's embeddings, whatever config.json's pad_token_id says
MAX_DISTANCE = 128
BUCKETS = (
    32  # fixed as well: config.json's relative_attention_num_buckets sizes the table, of which the first 32 are read
)


@dataclass(frozen=True, kw_only=True)
class Config(post_norm.Config):
    """The sizes of an MPNet."""

    position_rows: int
    bucket_rows: int

    @property
    def biased_scores(self) -> bool:
        """No attention kernel takes a bias: the scores are written out (`jaxpool/memory.py`)."""
        return True

    @property
    def max_length(self) -> int:
        """Positions start behind the padding id."""
        return self.position_rows - PADDING_ID - 1


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `MPNetConfig`)."""
    hf = HFConfig(values)
    config = Config(
        **post_norm.config_fields(hf),
        position_rows=hf.get("max_position_embeddings", 512),
        bucket_rows=hf.get("relative_attention_num_buckets", BUCKETS),
    )
    hf.finish()
    if config.bucket_rows < BUCKETS:
        raise ConfigError(
            f"config.json: `relative_attention_num_buckets` is {config.bucket_rows}, and MPNet reads {BUCKETS} buckets"
        )
    return config


def param_specs(config: Config) -> Tree:
    """The Flax param tree."""
    width = config.hidden_size
    return {
        "embeddings": {
            "word": embedding(config.vocab_size, width, "vocab"),
            "position": embedding(config.position_rows, width),
            "norm": layer_norm_specs(width),
        },
        "relative": {"embedding": ParamSpec((config.bucket_rows, config.num_heads), (None, "heads"))},
        "layers": post_norm.block_specs(config),
    }


def relative_buckets(length: int) -> np.ndarray:
    """T5's bidirectional buckets, int32 [length, length] for (query, key): exact near by, logarithmic further off.

    Computed in float32, as the original does: the edges between buckets depend on it.
    """
    index = np.arange(length)
    behind = index[:, None] - index[None, :]
    half = BUCKETS // 2
    exact = half // 2
    distance = np.abs(behind)
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(math.log(MAX_DISTANCE / exact)) * np.float32(half - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return (bucket + np.where(behind < 0, half, 0)).astype(np.int32)


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Hidden states [R, W, D]; captures "embeddings", "bias", "attention", "layer" and, if loaded, "pooler"."""
    e = params["embeddings"]
    dtype = e["word"]["embedding"].dtype
    with jax.named_scope("embeddings"):
        positions = positions_after_padding_id(batch, PADDING_ID)
        x = e["word"]["embedding"][batch.ids].astype(jnp.float32) + e["position"]["embedding"][positions]
        x = layer_norm(e["norm"], x, config.epsilon, dtype=dtype)
    # Distances inside a segment are distances in the row, so one [N, T, S] bias serves every packed row.
    buckets = relative_buckets(batch.ids.shape[1])
    bias = jnp.moveaxis(params["relative"]["embedding"][buckets], -1, 0)[None]
    captured = keep(capture, embeddings=x, bias=bias)
    mask = AttentionMask.of(batch)
    x, by_layer = post_norm.blocks(params["layers"], x, mask, config, bias=bias, capture=capture, pick=batch.pick)
    if "pooler" in capture:
        captured["pooler"] = jnp.tanh(dense(params["pooler"], x))
    return Output(x, captured | by_layer)


FAMILY = Family(
    name="mpnet",
    architectures=("MPNetModel", "MPNetForMaskedLM"),
    model_types=("mpnet",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="cls",
    captures=("embeddings", "bias", *post_norm.CAPTURES, "pooler"),
    picks=True,
    heads={"MPNetForSequenceClassification": tanh_classifier, "MPNetForTokenClassification": token_classifier},
    extras=post_norm.pooler_specs,
)
