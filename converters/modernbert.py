"""Where ModernBERT's weights come from: transformers' `ModernBertModel` keys.

What they compute: `jaxpool/models/modernbert.py`.
"""

from dataclasses import replace

from jaxpool.converters.rules import Rule, Table, fused, layer_norm, linear, skip
from jaxpool.params import QKV


def _layer(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *fused(f"{source}.attn.Wqkv", f"{target}/attention", QKV, "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{source}.attn.Wo", f"{target}/attention/output", "d (n h) -> n h d"),
        *layer_norm(f"{source}.mlp_norm", f"{target}/mlp/norm"),
        *fused(f"{source}.mlp.Wi", f"{target}/mlp", ("gate", "up")),
        *linear(f"{source}.mlp.Wo", f"{target}/mlp/down"),
    )


TABLE = Table(
    rules=(
        Rule("embeddings.tok_embeddings.weight", "embeddings/word/embedding"),
        *layer_norm("embeddings.norm", "embeddings/norm"),
        *_layer("layers.0", "first"),
        *(
            replace(rule, first=1)
            for rule in (
                *layer_norm("layers.{layer}.attn_norm", "layers/attention/norm"),
                *_layer("layers.{layer}", "layers"),
            )
        ),
        *layer_norm("final_norm", "norm"),
        skip("head.*"),  # the head of ModernBertForMaskedLM
        skip("decoder.*"),
    ),
    prefixes=("model.",),
    heads={
        "classification": (
            *linear("head.dense", "0/linear"),
            *layer_norm("head.norm", "1/norm"),
            *linear("classifier", "2/linear"),
        )
    },
)
