"""Where Phi-3-vision's weights come from. What they compute: `jaxpool/models/phi3_v.py`."""

from jaxpool.converters import clip
from jaxpool.converters.rules import Rule, Table, linear, skip
from jaxpool.converters.transforms import Transform

_LAYER = "layers.{layer}"
_SEEN = "vision_embed_tokens"

TABLE = Table(
    rules=(
        Rule("embed_tokens.weight", "embeddings/word/embedding"),
        Rule(f"{_LAYER}.input_layernorm.weight", "layers/attention/norm/scale"),
        # First all queries, then all keys, then all values.
        Rule(f"{_LAYER}.self_attn.qkv_proj.weight", "layers/attention/qkv/kernel", Transform("(c n h) d -> d n c h")),
        Rule(f"{_LAYER}.self_attn.o_proj.weight", "layers/attention/output/kernel", Transform("d (n h) -> n h d")),
        Rule(f"{_LAYER}.post_attention_layernorm.weight", "layers/mlp/norm/scale"),
        Rule(f"{_LAYER}.mlp.gate_up_proj.weight", "layers/mlp/gate_up/kernel", Transform("(p f) d -> d p f")),
        Rule(f"{_LAYER}.mlp.down_proj.weight", "layers/mlp/down/kernel", Transform("d f -> f d")),
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
