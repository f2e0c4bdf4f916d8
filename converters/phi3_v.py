"""Where Phi-3-vision's weights come from. What they compute: `jaxpool/models/phi3_v.py`."""

from jaxpool.converters import clip
from jaxpool.converters.rules import Rule, Table, fused, linear, skip
from jaxpool.params import QKV

_LAYER = "layers.{layer}"
_SEEN = "vision_embed_tokens"

TABLE = Table(
    rules=(
        Rule("embed_tokens.weight", "embeddings/word/embedding"),
        Rule(f"{_LAYER}.input_layernorm.weight", "layers/attention/norm/scale"),
        *fused(f"{_LAYER}.self_attn.qkv_proj", "layers/attention", QKV, "(n h) d -> d n h"),
        *linear(f"{_LAYER}.self_attn.o_proj", "layers/attention/output", "d (n h) -> n h d"),
        Rule(f"{_LAYER}.post_attention_layernorm.weight", "layers/mlp/norm/scale"),
        *fused(f"{_LAYER}.mlp.gate_up_proj", "layers/mlp", ("gate", "up")),
        *linear(f"{_LAYER}.mlp.down_proj", "layers/mlp/down"),
        Rule("norm.weight", "norm/scale"),
        *clip.tower(f"{_SEEN}.img_processor.vision_model", "vision"),
        *linear(f"{_SEEN}.img_projection.0", "projector/up"),
        *linear(f"{_SEEN}.img_projection.2", "projector/down"),
        Rule(f"{_SEEN}.glb_GN", "separators/whole"),
        Rule(f"{_SEEN}.sub_GN", "separators/line"),
        skip("lm_head.weight"),
        skip(f"{_SEEN}.wte.weight"),  # the table of tokens once more
        skip(f"{_SEEN}.img_processor.vision_model.post_layernorm.*"),  # of a class token that nobody looks at
        skip("*rotary_emb.inv_freq"),  # worked out anew
    ),
    prefixes=("model.",),
)
