"""Where the weights of jina-embeddings-v3 come from: the keys of jinaai/xlm-roberta-flash-implementation.

An adapted matrix is spelt as torch's parametrizations are: `original`, `0.lora_A` and `0.lora_B`, the adapters stacked;
one without adapters is a plain `weight`. What they compute: `jaxpool/models/jina.py`.
"""

from jaxpool.converters.rules import Rule, Table, layer_norm, skip
from jaxpool.converters.transforms import Transform


def _linear(source: str, target: str, out: str = "f", into: str = "d", *, optional: bool = False) -> tuple[Rule, ...]:
    """A Linear's weight [out, in] and bias [out], LoRA's A [a, k, in] and B [a, out, k] (a: adapters, k: rank).

    `out` and `into` name the axes, in brackets where the leaf has several for the tensor's one.
    """
    outs, ins = out.strip("()"), into.strip("()")
    kernel, weight = Transform(f"{out} {into} -> {ins} {outs}"), f"{source}.parametrizations.weight"
    return (
        Rule(f"{source}.weight", f"{target}/kernel", kernel, optional),
        Rule(f"{weight}.original", f"{target}/adapted/kernel", kernel, optional),
        Rule(f"{weight}.0.lora_A", f"{target}/adapted/down", Transform(f"a k {into} -> {ins} a k"), optional),
        Rule(f"{weight}.0.lora_B", f"{target}/adapted/up", Transform(f"a {out} k -> a k {outs}"), optional),
        Rule(f"{source}.bias", f"{target}/bias", Transform(f"{out} -> {outs}"), optional),
    )


def _embedding(source: str, target: str) -> tuple[Rule, ...]:
    """A table [rows, width], LoRA's A [a, rows, k] and B [a, k, width]: the other way round than a Linear's."""
    weight = f"{source}.parametrizations.weight"
    return (
        Rule(f"{source}.weight", f"{target}/embedding"),
        Rule(f"{weight}.original", f"{target}/adapted/embedding"),
        Rule(f"{weight}.0.lora_A", f"{target}/adapted/down", Transform("a v k -> v a k")),
        Rule(f"{weight}.0.lora_B", f"{target}/adapted/up"),
    )


_LAYER = "encoder.layers.{layer}"

TABLE = Table(
    rules=(
        *_embedding("embeddings.word_embeddings", "embeddings/word"),
        *_embedding("embeddings.token_type_embeddings", "embeddings/token_type"),
        *layer_norm("emb_ln", "embeddings/norm"),
        *_linear(f"{_LAYER}.mixer.Wqkv", "layers/attention/qkv", out="(c n h)"),
        *_linear(f"{_LAYER}.mixer.out_proj", "layers/attention/output", into="(n h)", out="d"),
        *layer_norm(f"{_LAYER}.norm1", "layers/attention/norm"),
        *_linear(f"{_LAYER}.mlp.fc1", "layers/mlp/up"),
        *_linear(f"{_LAYER}.mlp.fc2", "layers/mlp/down"),
        *layer_norm(f"{_LAYER}.norm2", "layers/mlp/norm"),
        *_linear("pooler.dense", "pooler", optional=True),
        skip("lm_head.*"),  # of XLMRobertaForMaskedLM
    ),
    prefixes=("roberta.",),
)
