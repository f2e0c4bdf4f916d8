"""Where Gemma 2's and 3's weights come from: transformers' keys. What they compute: `jaxpool/models/gemma.py`."""

from jaxpool.converters.llama import HEADS, LOGITS, SHARED
from jaxpool.converters.rules import Rule, Table

_LAYER = "layers.{layer}"

TABLE = Table(
    rules=(
        *SHARED,
        Rule(f"{_LAYER}.input_layernorm.weight", "layers/attention/norm/scale"),
        Rule(f"{_LAYER}.post_attention_layernorm.weight", "layers/attention/post_norm/scale"),
        Rule(f"{_LAYER}.pre_feedforward_layernorm.weight", "layers/mlp/norm/scale"),
        Rule(f"{_LAYER}.post_feedforward_layernorm.weight", "layers/mlp/post_norm/scale"),
    ),
    prefixes=("model.",),
    heads=HEADS,
    logits=LOGITS,
)
