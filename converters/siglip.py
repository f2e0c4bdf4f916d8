"""Where SigLIP's weights come from: transformers' `SiglipModel` keys. What they compute: `jaxpool/models/siglip.py`."""

from jaxpool.converters.clip import blocks, patches
from jaxpool.converters.rules import Rule, Table, layer_norm, linear, parts, skip
from jaxpool.converters.transforms import Transform
from jaxpool.params import QKV


def tower(source: str, target: str) -> tuple[Rule, ...]:
    """A SigLIP's tower, without the query at its end."""
    return (
        *patches(f"{source}.embeddings.patch_embedding", f"{target}/patches"),
        Rule(f"{source}.embeddings.position_embedding.weight", f"{target}/position/embedding"),
        *blocks(f"{source}.encoder", f"{target}/layers"),
        *layer_norm(f"{source}.post_layernorm", f"{target}/post_norm"),
        skip(f"{source}.embeddings.position_ids"),
    )


QUERY = (
    Rule("vision_model.head.probe", "vision/query/probe"),
    *(
        Rule(f"vision_model.head.attention.in_proj_{leaf}", f"vision/query/{name}/{own}", Transform(pattern), part=part)
        for name, part in parts(QKV)
        for leaf, own, pattern in (("weight", "kernel", "(n h) d -> d n h"), ("bias", "bias", "(n h) -> n h"))
    ),
    *linear("vision_model.head.attention.out_proj", "vision/query/output", "d (n h) -> n h d"),
    *layer_norm("vision_model.head.layernorm", "vision/query/norm"),
    *linear("vision_model.head.mlp.fc1", "vision/query/up"),
    *linear("vision_model.head.mlp.fc2", "vision/query/down"),
)

TABLE = Table(
    rules=(
        Rule("text_model.embeddings.token_embedding.weight", "embeddings/word/embedding"),
        Rule("text_model.embeddings.position_embedding.weight", "embeddings/position/embedding"),
        *blocks("text_model.encoder", "layers"),
        *layer_norm("text_model.final_layer_norm", "norm"),
        *linear("text_model.head", "projection"),
        *tower("vision_model", "vision"),
        *QUERY,
        skip("text_model.embeddings.position_ids"),
        skip("logit_scale"),
        skip("logit_bias"),
    ),
)
