"""Where CLIP's weights come from: transformers' `CLIPModel` keys. What they compute: `jaxpool/models/clip.py`."""

from jaxpool.converters.rules import Rule, Table, layer_norm, linear, skip
from jaxpool.converters.transforms import Transform


def blocks(source: str, target: str) -> tuple[Rule, ...]:
    """A stack's, CLIP's and SigLIP's."""
    layer, attention = f"{source}.layers.{{layer}}", f"{source}.layers.{{layer}}.self_attn"
    return (
        *layer_norm(f"{layer}.layer_norm1", f"{target}/attention/norm"),
        *linear(f"{attention}.q_proj", f"{target}/attention/query", "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{attention}.k_proj", f"{target}/attention/key", "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{attention}.v_proj", f"{target}/attention/value", "(n h) d -> d n h", "(n h) -> n h"),
        *linear(f"{attention}.out_proj", f"{target}/attention/output", "d (n h) -> n h d"),
        *layer_norm(f"{layer}.layer_norm2", f"{target}/mlp/norm"),
        *linear(f"{layer}.mlp.fc1", f"{target}/mlp/up"),
        *linear(f"{layer}.mlp.fc2", f"{target}/mlp/down"),
    )


def patches(source: str, target: str) -> tuple[Rule, ...]:
    """The embedding of patches, stored as a convolution's kernel [D, 3, p, p]."""
    return (
        Rule(f"{source}.weight", f"{target}/kernel", Transform("d (c f) y x -> c f y x d")),
        Rule(f"{source}.bias", f"{target}/bias", optional=True),
    )


def tower(source: str, target: str) -> tuple[Rule, ...]:
    """A CLIP's tower, without what its user puts behind it."""
    return (
        Rule(f"{source}.embeddings.class_embedding", f"{target}/class/embedding"),
        *patches(f"{source}.embeddings.patch_embedding", f"{target}/patches"),
        Rule(f"{source}.embeddings.position_embedding.weight", f"{target}/position/embedding"),
        *layer_norm(f"{source}.pre_layrnorm", f"{target}/pre_norm"),
        *blocks(f"{source}.encoder", f"{target}/layers"),
        skip(f"{source}.embeddings.position_ids"),
    )


TABLE = Table(
    rules=(
        Rule("text_model.embeddings.token_embedding.weight", "embeddings/word/embedding"),
        Rule("text_model.embeddings.position_embedding.weight", "embeddings/position/embedding"),
        *blocks("text_model.encoder", "layers"),
        *layer_norm("text_model.final_layer_norm", "norm"),
        *linear("text_projection", "projection"),
        *tower("vision_model", "vision"),
        *layer_norm("vision_model.post_layernorm", "vision/post_norm"),
        *linear("visual_projection", "vision/projection"),
        skip("text_model.embeddings.position_ids"),
        skip("logit_scale"),
    ),
)
