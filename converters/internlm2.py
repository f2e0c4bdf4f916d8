"""Where InternLM2's weights come from. What they compute: `jaxpool/models/internlm2.py`."""

from jaxpool.converters.rules import Rule, Table, linear, skip

_LAYER = "layers.{layer}"

TABLE = Table(
    rules=(
        Rule("tok_embeddings.weight", "embeddings/word/embedding"),
        Rule(f"{_LAYER}.attention_norm.weight", "layers/attention/norm/scale"),
        # Grouped by key/value head k: its queries, its key, its value.
        *linear(f"{_LAYER}.attention.wqkv", "layers/attention/qkv", "(k g h) d -> d k g h", "(k g h) -> k g h"),
        *linear(f"{_LAYER}.attention.wo", "layers/attention/output", "d (n h) -> n h d"),
        Rule(f"{_LAYER}.ffn_norm.weight", "layers/mlp/norm/scale"),
        *linear(f"{_LAYER}.feed_forward.w1", "layers/mlp/gate"),
        *linear(f"{_LAYER}.feed_forward.w3", "layers/mlp/up"),
        *linear(f"{_LAYER}.feed_forward.w2", "layers/mlp/down"),
        Rule("norm.weight", "norm/scale"),
        skip("output.weight"),
        skip("*rotary_emb.inv_freq"),  # worked out anew
    ),
    prefixes=("model.",),
    heads={"reward": tuple(linear("v_head", "0/linear"))},
    logits=("output.weight", "tok_embeddings.weight"),
)
