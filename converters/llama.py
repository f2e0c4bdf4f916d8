"""Where Llama's weights come from: transformers' `LlamaModel` keys. What they compute: `jaxpool/models/llama.py`."""

from jaxpool.converters.rules import Rule, Table, linear, skip

_LAYER = "layers.{layer}"
_ATTENTION = f"{_LAYER}.self_attn"

# What `gemma.py` has too: all but the norms of a layer.
SHARED = (
    Rule("embed_tokens.weight", "embeddings/word/embedding"),
    *linear(f"{_ATTENTION}.q_proj", "layers/attention/query", "(n h) d -> d n h", "(n h) -> n h"),
    *linear(f"{_ATTENTION}.k_proj", "layers/attention/key", "(k h) d -> d k h", "(k h) -> k h"),
    *linear(f"{_ATTENTION}.v_proj", "layers/attention/value", "(k h) d -> d k h", "(k h) -> k h"),
    *linear(f"{_ATTENTION}.o_proj", "layers/attention/output", "d (n h) -> n h d"),
    Rule(f"{_ATTENTION}.q_norm.weight", "layers/attention/query_norm/scale"),
    Rule(f"{_ATTENTION}.k_norm.weight", "layers/attention/key_norm/scale"),
    *linear(f"{_LAYER}.mlp.gate_proj", "layers/mlp/gate"),
    *linear(f"{_LAYER}.mlp.up_proj", "layers/mlp/up"),
    *linear(f"{_LAYER}.mlp.down_proj", "layers/mlp/down"),
    Rule("norm.weight", "norm/scale"),
    skip("lm_head.weight"),
    skip("*rotary_emb.inv_freq"),  # of the first checkpoints; worked out anew
)

HEADS: dict[str, tuple[Rule, ...]] = {
    "classification": tuple(linear("score", "0/linear")),
    "reward": (*linear("score.0", "0/linear"), *linear("score.2", "1/linear")),
}
LOGITS = ("lm_head.weight", "embed_tokens.weight")  # the head of LlamaForCausalLM, of its own or tied

TABLE = Table(
    rules=(
        *SHARED,
        Rule(f"{_LAYER}.input_layernorm.weight", "layers/attention/norm/scale"),
        Rule(f"{_LAYER}.post_attention_layernorm.weight", "layers/mlp/norm/scale"),
    ),
    prefixes=("model.",),
    heads=HEADS,
    logits=LOGITS,
)
