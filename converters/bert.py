"""Where BERT's weights come from: transformers' `BertModel` keys. What they compute: `jaxpool/models/bert.py`."""

from jaxpool.converters.rules import Rule, Table, layer_norm, linear, skip

_LAYER = "encoder.layer.{layer}"

# RoBERTa's checkpoints have the same keys.
RULES = (
    Rule("embeddings.word_embeddings.weight", "embeddings/word/embedding"),
    Rule("embeddings.position_embeddings.weight", "embeddings/position/embedding"),
    Rule("embeddings.token_type_embeddings.weight", "embeddings/token_type/embedding"),
    *layer_norm("embeddings.LayerNorm", "embeddings/norm"),
    *linear(f"{_LAYER}.attention.self.query", "layers/attention/query", "(n h) d -> d n h", "(n h) -> n h"),
    *linear(f"{_LAYER}.attention.self.key", "layers/attention/key", "(n h) d -> d n h", "(n h) -> n h"),
    *linear(f"{_LAYER}.attention.self.value", "layers/attention/value", "(n h) d -> d n h", "(n h) -> n h"),
    *linear(f"{_LAYER}.attention.output.dense", "layers/attention/output", "d (n h) -> n h d"),
    *layer_norm(f"{_LAYER}.attention.output.LayerNorm", "layers/attention/norm"),
    *linear(f"{_LAYER}.intermediate.dense", "layers/mlp/up"),
    *linear(f"{_LAYER}.output.dense", "layers/mlp/down"),
    *layer_norm(f"{_LAYER}.output.LayerNorm", "layers/mlp/norm"),
    *linear("pooler.dense", "pooler", optional=True),
    skip("embeddings.position_ids"),
)

# Of every token's classes, in all encoders.
TOKEN_CLASSIFIER = linear("classifier", "0/linear")

TABLE = Table(
    rules=(*RULES, skip("cls.*")),  # the pre-training heads of BertForMaskedLM
    prefixes=("bert.",),
    renames=(
        (".gamma", ".weight"),
        (".beta", ".bias"),
    ),  # TensorFlow's names in the first PyTorch checkpoints
    heads={
        "classification": (*linear("pooler.dense", "0/linear"), *linear("classifier", "1/linear")),
        "token_classification": tuple(TOKEN_CLASSIFIER),
    },
)
