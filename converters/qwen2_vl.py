"""Where Qwen2-VL's weights come from. What they compute: `jaxpool/models/qwen2_vl.py`.

The published checkpoints have "model.…" and "visual.…"; transformers has written "model.language_model.…" and
"model.visual.…" since 4.52, and without "model." where a model was saved without its head.
"""

from jaxpool.converters import llama
from jaxpool.converters.rules import Rule, Table, fused, inside, layer_norm, linear, skip
from jaxpool.converters.transforms import Transform
from jaxpool.params import QKV

_BLOCK = "blocks.{layer}"
_TOWER = (
    Rule("patch_embed.proj.weight", "vision/patches/kernel", Transform("d c f y x -> c f y x d")),
    *layer_norm(f"{_BLOCK}.norm1", "vision/layers/attention/norm"),
    *fused(f"{_BLOCK}.attn.qkv", "vision/layers/attention", QKV, "(n h) d -> d n h", "(n h) -> n h"),
    *linear(f"{_BLOCK}.attn.proj", "vision/layers/attention/output", "d (n h) -> n h d"),
    *layer_norm(f"{_BLOCK}.norm2", "vision/layers/mlp/norm"),
    *linear(f"{_BLOCK}.mlp.fc1", "vision/layers/mlp/up"),
    *linear(f"{_BLOCK}.mlp.fc2", "vision/layers/mlp/down"),
    *layer_norm("merger.ln_q", "merger/norm"),
    *linear("merger.mlp.0", "merger/up"),
    *linear("merger.mlp.2", "merger/down"),
    skip("rotary_pos_emb.inv_freq"),  # worked out anew
)


TABLE = Table(
    rules=(
        *inside("model", llama.TABLE.rules),
        *inside("model.language_model", llama.TABLE.rules),
        *inside("language_model", llama.TABLE.rules),
        *inside("visual", _TOWER),
        *inside("model.visual", _TOWER),
        skip("lm_head.weight"),
    ),
)
