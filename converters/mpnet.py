"""Where MPNet's weights come from: transformers' `MPNetModel` keys. What they compute: `jaxpool/models/mpnet.py`."""

from jaxpool.converters.rules import Rule, Table, layer_norm, linear, skip

_LAYER = "encoder.layer.{layer}"

TABLE = Table(
    rules=(
        Rule("embeddings.word_embeddings.weight", "embeddings/word/embedding"),
        Rule("embeddings.position_embeddings.weight", "embeddings/position/embedding"),
        *layer_norm("embeddings.LayerNorm", "embeddings/norm"),
        Rule("encoder.relative_attention_bias.weight", "relative/embedding"),
        *linear(f"{_LAYER}.attention.attn.q", "layers/attention/query", "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{_LAYER}.attention.attn.k", "layers/attention/key", "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{_LAYER}.attention.attn.v", "layers/attention/value", "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{_LAYER}.attention.attn.o", "layers/attention/output", "d (n h) -> n h d"),
        *layer_norm(f"{_LAYER}.attention.LayerNorm", "layers/attention/norm"),
        *linear(f"{_LAYER}.intermediate.dense", "layers/mlp/up"),
        *linear(f"{_LAYER}.output.dense", "layers/mlp/down"),
        *layer_norm(f"{_LAYER}.output.LayerNorm", "layers/mlp/norm"),
        *linear("pooler.dense", "pooler", optional=True),
        skip("embeddings.position_ids"),
        skip("lm_head.*"),  # the head of MPNetForMaskedLM
    ),
    prefixes=("mpnet.",),
    heads={
        "classification": (*linear("classifier.dense", "0/linear"), *linear("classifier.out_proj", "1/linear")),
        "token_classification": tuple(linear("classifier", "0/linear")),
    },
)
