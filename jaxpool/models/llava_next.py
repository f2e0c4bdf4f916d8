"""LLaVA-NeXT (Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next) as in transformers.

A picture is seen as a whole and in tiles, each by CLIP's tower; two products bring a patch to a token's width. A token
of its own ends every line of patches, and the tower's rows have it where the class token stood. Texts are Llama's.
Where the weights come from: `converters/llava_next.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.batch import FEATURES, PIXELS, Arrays, ArraySpec, Batch
from jaxpool.images.format import PictureFormat
from jaxpool.layers import ACTIVATIONS, dense
from jaxpool.models import clip, llama, pre_norm, vit
from jaxpool.models.family import Family, Output, Patches, Tower
from jaxpool.models.hf_config import OBJECT, ConfigError, HFConfig
from jaxpool.params import ParamSpec, Tree, linear

Pinpoints = tuple[tuple[int, int], ...]

# transformers' own, where neither config.json nor the processor's file says one: (height, width) in pixels.
PINPOINTS: Pinpoints = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# What transformers leaves out of `text_config`, by its `model_type`: these are the defaults of Llama and Mistral.
_SHARED = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32_000}
_TEXT_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "llama": _SHARED | {"intermediate_size": 11_008, "max_position_embeddings": 2048},
    "mistral": _SHARED | {"intermediate_size": 14_336, "max_position_embeddings": 131_072, "num_key_value_heads": 8},
}


@dataclass(frozen=True, kw_only=True)
class Config(llama.Config):
    """The sizes of a LLaVA-NeXT: its text model's, and what it sees with.

    Attributes:
        vision: of the tower.
        seen_layers: the tower's hidden states that a patch's row is made of, 0 for those in front of the first layer.
        projector_activation: between the two products.
        projector_bias: whether these have biases.
        pinpoints: (height, width) in pixels that pictures are brought to before they are cut into tiles.
    """

    vision: clip.Vision
    seen_layers: tuple[int, ...]
    projector_activation: str
    projector_bias: bool
    pinpoints: Pinpoints

    @property
    def activation_bytes_per_token(self) -> int:
        """The text model's, or the tower's."""
        return max(super().activation_bytes_per_token, self.vision.activation_bytes_per_token)


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `LlavaNextConfig`)."""
    # What a loss passes over; how long transformers thinks a picture is; and the text model's, once more.
    hf = HFConfig(values, ignore=("ignore_index", "image_seq_length", "vocab_size"))
    text, vision = read_text(_part(hf, "text_config")), read_vision(_part(hf, "vision_config"))
    # In front of a text there would be a class token a tile, which no grid of lines has a place for.
    hf.only("vision_feature_select_strategy", "default")
    hf.only("use_image_newline_parameter", True)
    config = Config(
        **vars(text)
        | {
            "image_token": _image_token(hf),
            "vision": vision,
            "seen_layers": _seen_layers(hf.get("vision_feature_layer", -2), vision.num_layers),
            "projector_activation": hf.one_of("projector_hidden_act", ACTIVATIONS, "gelu"),
            "projector_bias": hf.get("multimodal_projector_bias", True),
            "pinpoints": read_pinpoints(hf.get("image_grid_pinpoints", PINPOINTS), "config.json", vision.image_size),
        }
    )
    hf.finish()
    return config


def _part(hf: HFConfig, name: str) -> Mapping[str, Any]:
    values = hf.need(name)
    OBJECT.check(values, "config.json", name)
    return values


def read_text(values: Mapping[str, Any]) -> llama.Config:
    """config.json's `text_config`."""
    kind = values.get("model_type", "llama")
    if kind not in _TEXT_DEFAULTS:
        known = sorted(_TEXT_DEFAULTS)
        raise ConfigError(f"config.json: `text_config` has the `model_type` {kind!r}, expected one of {known}")
    return llama.config_from_hf({"model_type": kind, **_TEXT_DEFAULTS[kind], **values})


def read_vision(values: Mapping[str, Any]) -> clip.Vision:
    """config.json's `vision_config`."""
    # Of the texts that the tower was trained with.
    hf = HFConfig(values, ignore=("projection_dim", "vocab_size"))
    hf.only("model_type", "clip_vision_model")
    return clip.read_vision(hf)


def _image_token(hf: HFConfig) -> int:
    new, old = hf.get("image_token_id", None), hf.get("image_token_index", None)
    if None not in (new, old) and new != old:
        raise ConfigError(f"config.json: `image_token_id` is {new}, and `image_token_index` {old}")
    given = 32_000 if new is old is None else old if new is None else new
    if not isinstance(given, int) or given < 0:
        raise ConfigError(f"config.json: `image_token_index` is {given!r}, expected a token's id")
    return given


def _seen_layers(given: Any, layers: int) -> tuple[int, ...]:
    """`vision_feature_layer`, which may count from the end, as numbers of hidden states."""
    numbers = given if isinstance(given, list) else [given]
    if not numbers or not all(isinstance(n, int) and -layers - 1 <= n <= layers for n in numbers):
        raise ConfigError(f"config.json: `vision_feature_layer` is {given!r}, and the tower has {layers} layers")
    counted = tuple(n % (layers + 1) for n in numbers)
    if not any(counted):
        raise ConfigError(f"config.json: `vision_feature_layer` is {given!r}, and no layer of the tower would run")
    return counted


def read_pinpoints(given: Any, file: str, side: int) -> Pinpoints:
    """`image_grid_pinpoints` as (height, width).

    Args:
        given: a list of pairs.
        file: that says so, for errors.
        side: of a tile, in pixels.

    Raises:
        ConfigError: no such list, or a size that tiles do not fill.
    """
    pairs = given if isinstance(given, list | tuple) else []
    if not pairs or not all(_fills(pair, side) for pair in pairs):
        raise ConfigError(
            f"{file}: `image_grid_pinpoints` is {given!r}, expected [height, width] pairs of multiples of {side}"
        )
    return tuple((height, width) for height, width in pairs)


def _fills(pair: Any, side: int) -> bool:
    sizes = pair if isinstance(pair, list | tuple) else ()
    return len(sizes) == 2 and all(isinstance(size, int) and size > 0 and size % side == 0 for size in sizes)


def param_specs(config: Config) -> Tree:
    """The Flax param tree; the tower's is whole, and the layers behind the last one that is looked at do not run."""
    seen, width, bias = len(config.seen_layers) * config.vision.hidden_size, config.hidden_size, config.projector_bias
    return llama.param_specs(config) | {
        "vision": clip.vision_specs(config.vision),
        "projector": {
            "up": linear({"embed": seen}, {"mlp": width}, bias=bias),
            "down": linear({"mlp": width}, {"embed": width}, bias=bias),
        },
        "newline": {"embedding": ParamSpec((width,), ("embed",))},
    }


def embed_tiles(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """A text's rows [R, P, D]: the end of a line, then the patches'; captures as `clip.see`."""
    tower = params["vision"] | {"layers": vit.first_layers(params["vision"]["layers"], max(config.seen_layers))}
    several = () if len(config.seen_layers) == 1 else ("embeddings", "layer")
    seen = clip.see(tower, batch, config.vision, capture=tuple({*capture, *several}))
    x = seen.hidden
    if several:
        states = (seen.captured["embeddings"], *seen.captured["layer"])
        x = jnp.concatenate([states[number] for number in config.seen_layers], axis=-1)
    with jax.named_scope("projector"):
        inner = dense(params["projector"]["up"], x, activation=config.projector_activation, dtype=x.dtype)
        rows = dense(params["projector"]["down"], inner)
        rows = jnp.where((batch.ids == 0)[..., None], params["newline"]["embedding"].astype(jnp.float32), rows)
    return Output(rows.astype(x.dtype), {name: seen.captured[name] for name in capture})


def patches(config: Config, pictures: PictureFormat) -> Patches:
    """Of every tile the same number."""
    return Patches(config.vision.positions, True, {PIXELS: vit.pixels(config.vision.patch_size)})


def text_arrays(config: Config, dtype: Any) -> Arrays:
    """A picture's rows."""
    return {FEATURES: ArraySpec((config.hidden_size,), dtype)}


FAMILY = Family(
    name="llava_next",
    architectures=("LlavaNextForConditionalGeneration", "LlavaNextModel"),
    model_types=("llava_next",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=llama.forward,
    pooling="lasttoken",
    captures=pre_norm.CAPTURES,
    picks=True,
    tower=Tower(patches=patches, forward=embed_tiles, captures=vit.CAPTURES, text=text_arrays),
)
