"""Where DistilBERT's weights come from: transformers' `DistilBertModel` keys.

What they compute: `jaxpool/models/distilbert.py`.
"""

from jaxpool.converters.rules import Rule, Table, layer_norm, linear, skip

_LAYER = "transformer.layer.{layer}"

TABLE = Table(
    rules=(
        Rule("embeddings.word_embeddings.weight", "embeddings/word/embedding"),
        Rule("embeddings.position_embeddings.weight", "embeddings/position/embedding"),
        *layer_norm("embeddings.LayerNorm", "embeddings/norm"),
        *linear(f"{_LAYER}.attention.q_lin", "layers/attention/query", "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{_LAYER}.attention.k_lin", "layers/attention/key", "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{_LAYER}.attention.v_lin", "layers/attention/value", "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{_LAYER}.attention.out_lin", "layers/attention/output", "d (n h) -> n h d"),
        *layer_norm(f"{_LAYER}.sa_layer_norm", "layers/attention/norm"),
        *linear(f"{_LAYER}.ffn.lin1", "layers/mlp/up"),
        *linear(f"{_LAYER}.ffn.lin2", "layers/mlp/down"),
        *layer_norm(f"{_LAYER}.output_layer_norm", "layers/mlp/norm"),
        skip("embeddings.position_ids"),
        skip("vocab_*"),  # the head of DistilBertForMaskedLM
    ),
    prefixes=("distilbert.",),
    heads={
        "classification": (*linear("pre_classifier", "0/linear"), *linear("classifier", "1/linear")),
        "token_classification": tuple(linear("classifier", "0/linear")),
    },
)
