"""Where LLaVA-NeXT's weights come from. What they compute: `jaxpool/models/llava_next.py`.

transformers wrote the text model whole up to 4.51 ("language_model.model.…"), and without its head since
("model.language_model.…"); and since 5 the tower without the "vision_model" that was round it.
"""

from jaxpool.converters import clip, llama
from jaxpool.converters.rules import Rule, Table, inside, linear, skip

TABLE = Table(
    rules=(
        *inside("language_model.model", llama.TABLE.rules),
        *inside("language_model", llama.TABLE.rules),
        *clip.tower("vision_tower.vision_model", "vision"),
        *clip.tower("vision_tower", "vision"),
        *linear("multi_modal_projector.linear_1", "projector/up"),
        *linear("multi_modal_projector.linear_2", "projector/down"),
        Rule("image_newline", "newline/embedding"),
        skip("lm_head.weight"),
        skip("vision_tower.*post_layernorm.*"),  # of a class token that nobody looks at
    ),
    prefixes=("model.",),
)
