"""Qwen2-VL (Wang et al. 2024, arXiv:2409.12191) as in transformers' `modeling_qwen2_vl.py`.

A picture keeps its shape: as many patches as it has room for go through the tower, which rotates them by line and
column, and the four of a square become one row of a text. Texts are Qwen2's, with places in three dimensions.
Where the weights come from: `converters/qwen2_vl.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.attention import AttentionMask
from jaxpool.batch import FEATURES, PIXELS, PLACES, Arrays, ArraySpec, Batch
from jaxpool.images.format import PictureFormat
from jaxpool.layers import ACTIVATIONS, dense, keep
from jaxpool.models import llama, pre_norm, vit
from jaxpool.models.family import Family, Output, Patches, Tower
from jaxpool.models.hf_config import OBJECT, SIZE, ConfigError, HFConfig
from jaxpool.norms import layer_norm
from jaxpool.params import Tree, linear
from jaxpool.params import layer_norm as layer_norm_specs
from jaxpool.rotary import Rotary

# Of a square of patches, which become one row: on each side, and in all.
SIDE, MERGED = 2, 4
# A picture may be so many times as long as it is wide, and the other way round.
LONGEST = 200
# Of time, line and column, where config.json does not say it.
_SECTIONS = (16, 24, 24)
# What transformers leaves out of the text model's part: the defaults of its `Qwen2VLTextConfig`.
_TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 8192,
    "intermediate_size": 29_568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "max_window_layers": 80,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
}
# Attributes that are not the text model's, wherever they stand.
_OUTER = ("vision_config", "text_config", "image_token_id", "video_token_id",
          "vision_start_token_id", "vision_end_token_id", "vision_token_id")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Vision(vit.Config):
    """The sizes of a tower.

    Attributes:
        patch_size: of a patch, in pixels.
        frames: of a video that a patch is made of; a picture is repeated as often.
        theta: base of the wavelengths of its rotary positions.
    """

    patch_size: int
    frames: int
    theta: float

    @property
    def side(self) -> int:
        """Of a square of patches, in pixels: pictures have sides of so many times this."""
        return SIDE * self.patch_size


@dataclass(frozen=True, kw_only=True)
class Config(llama.Config):
    """The sizes of a Qwen2-VL: its text model's, and what it sees with.

    Attributes:
        vision: of the tower.
        video_token: the token in whose places a video's rows would stand.
    """

    vision: Vision
    video_token: int

    @property
    def activation_bytes_per_token(self) -> int:
        """The text model's, or the tower's."""
        return max(super().activation_bytes_per_token, self.vision.activation_bytes_per_token)


@dataclass(frozen=True)
class Area:
    """How many pixels a picture is brought to: at least and at most."""

    fewest: int = 56 * 56
    most: int = 1280 * 28 * 28

    def squares(self, side: int) -> int:
        """The most squares of `side` pixels that a picture may get.

        Long ones may get more than `most` has: their shorter side is one square however little room there is, and
        both sides of small ones are rounded up.
        """
        least, most = self.fewest / side**2, self.most / side**2
        grown = least + math.sqrt(LONGEST * least) + math.sqrt(least / LONGEST) + 1
        return math.floor(max(most, math.sqrt(LONGEST * most), grown))


# The names of `Area`'s fields, by themselves and within `size`.
_SPELT = {"fewest": ("min_pixels", "shortest_edge"), "most": ("max_pixels", "longest_edge")}


def read_area(settings: Mapping[str, Any], file: str, default: Area = Area()) -> Area:
    """What a processor's settings, or a prompt's `mm_processor_kwargs`, say of a picture's size.

    Args:
        settings: `min_pixels` and `max_pixels`, or `size` with these or with `shortest_edge` and `longest_edge`.
        file: that says so, for errors.
        default: of what is not said.

    Raises:
        ConfigError: something else than numbers of pixels.
    """
    size = settings.get("size") or {}
    if not isinstance(size, Mapping) or set(size) - {name for names in _SPELT.values() for name in names}:
        raise ConfigError(f"{file}: `size` is {size!r}, expected `shortest_edge` and `longest_edge`, in pixels")
    found: dict[str, int] = {}
    for field, (alone, within) in _SPELT.items():
        said = {alone: settings.get(alone), f"size.{within}": size.get(within), f"size.{alone}": size.get(alone)}
        for name, value in said.items():
            SIZE.check(value, file, name)
            if value is not None:
                found.setdefault(field, value)
    return replace(default, **found)


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `Qwen2VLConfig`; up to 4.51 the text model's part is not one of its own)."""
    text, twice = _text_part(values)
    # What marks a picture's place, which prompts write.
    hf = HFConfig(
        values, ignore=("vision_start_token_id", "vision_end_token_id", "vision_token_id", "text_config", *twice)
    )
    image_token, video_token = hf.get("image_token_id", 151_655), hf.get("video_token_id", 151_656)
    given = hf.get("vision_config", {})
    OBJECT.check(given, "config.json", "vision_config")
    hf.finish()
    config = read_text(text)
    return Config(
        **vars(config) | {"image_token": image_token},
        vision=read_vision(given, config.hidden_size),
        video_token=video_token,
    )


def _text_part(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The text model's attributes, and the names of those that stand at the top."""
    inner = values.get("text_config")
    OBJECT.check(inner, "config.json", "text_config")
    part = {name: value for name, value in (inner or values).items() if name not in _OUTER}
    # Some versions of transformers wrote them in both places.
    return part, [name for name, value in part.items() if name in values and values[name] == value]


def read_text(values: Mapping[str, Any]) -> llama.Config:
    """The text model's part of config.json.

    Raises:
        ConfigError: sections that do not make up a head.
    """
    values = {**_TEXT_DEFAULTS, **values}
    rope = values.pop("rope_scaling", None) or values.pop("rope_parameters", None) or {}
    OBJECT.check(rope, "config.json", "rope_scaling")
    sections = rope.get("mrope_section") or _SECTIONS
    kind = rope.get("rope_type") or rope.get("type")
    rope = {name: value for name, value in rope.items() if name not in ("mrope_section", "type")}
    rope["rope_type"] = "default" if kind == "mrope" else kind
    config = llama.config_from_hf({**values, "model_type": "qwen2", "rope_parameters": rope})
    if config.num_heads * config.head_size != config.hidden_size:
        raise ConfigError(
            f"config.json: `head_dim` is {config.head_size}, expected `hidden_size` / `num_attention_heads`"
        )
    if len(sections) != 3 or not all(isinstance(n, int) for n in sections) or 2 * sum(sections) != config.head_size:
        raise ConfigError(
            f"config.json: `mrope_section` is {sections!r}, expected three numbers whose sum is {config.head_size // 2}"
        )
    pattern = (kind._replace(rotary=replace(kind.rotary, sections=tuple(sections))) for kind in config.pattern)
    return replace(config, pattern=tuple(pattern))


def read_vision(values: Mapping[str, Any], text_width: int) -> Vision:
    """config.json's `vision_config` (transformers' `Qwen2VLVisionConfig`).

    Raises:
        ConfigError: sizes that do not go together.
    """
    # What the published ones have beside `patch_size`, and nobody reads.
    hf = HFConfig(values, ignore=("spatial_patch_size",))
    width, heads = _size(hf, "embed_dim", 1280), _size(hf, "num_heads", 16)
    if width % (4 * heads):
        raise ConfigError(
            f"config.json: `embed_dim` {width} is no multiple of 4 · `num_heads` {heads}, and patches are rotated by "
            "line and column"
        )
    if (rows := hf.get("hidden_size", 3584)) != text_width:
        raise ConfigError(f"config.json: `vision_config` has `hidden_size` {rows}, and the text model {text_width}")
    for name in ("in_channels", "in_chans"):
        hf.only(name, vit.COLOURS)
    hf.only("spatial_merge_size", SIDE)
    rope = hf.get("rope_parameters", {})
    if set(rope) - {"rope_type", "rope_theta"} or rope.get("rope_type", "axial") != "axial":
        raise ConfigError(f"config.json: `vision_config` has `rope_parameters` {rope!r}, expected of type 'axial'")
    vision = Vision(
        hidden_size=width,
        num_layers=_size(hf, "depth", 32),
        num_heads=heads,
        mlp_size=width * _size(hf, "mlp_ratio", 4),
        activation=hf.one_of("hidden_act", ACTIVATIONS, "quick_gelu"),
        epsilon=1e-6,
        patch_size=_size(hf, "patch_size", 14),
        frames=_size(hf, "temporal_patch_size", 2),
        theta=float(rope.get("rope_theta", 10_000.0)),
    )
    hf.finish()
    return vision


def _size(hf: HFConfig, name: str, default: int) -> int:
    value = hf.get(name, default)
    SIZE.check(value, "config.json", name)
    return value


def param_specs(config: Config) -> Tree:
    """The Flax param tree."""
    vision = config.vision
    width, square = vision.hidden_size, MERGED * vision.hidden_size
    return llama.param_specs(config) | {
        "vision": {
            "patches": vit.patch_specs(vision.patch_size, width, bias=False, frames=vision.frames),
            "layers": vit.block_specs(vision),
        },
        "merger": {
            "norm": layer_norm_specs(width),
            "up": linear({"embed": square}, {"mlp": square}),
            "down": linear({"mlp": square}, {"embed": config.hidden_size}),
        },
    }


def embed_pictures(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """A text's rows [R, P / 4, D], one for the four patches of a square; captures as `vit.CAPTURES`.

    Args:
        batch: `arrays["pixels"]` are normalised, `arrays["places"]` int32 [R, P, 2] of line and column. Patches of a
            square stand one behind the other.
    """
    vision, dtype = config.vision, params["embeddings"]["word"]["embedding"].dtype
    with jax.named_scope("patches"):
        x = _repeat(batch.arrays[PIXELS], vision.frames)
        x = vit.embed_patches(params["vision"]["patches"], x, vision.patch_size, vision.frames).astype(dtype)
    captured = keep(capture, embeddings=x)
    angles, mask = _angles(batch, vision), AttentionMask.of(batch)
    x, by_layer = vit.blocks(params["vision"]["layers"], x, mask, vision, angles=angles, capture=capture)
    with jax.named_scope("merger"):
        p = params["merger"]
        x = layer_norm(p["norm"], x, vision.epsilon, dtype=dtype)
        squares = x.reshape(x.shape[0], -1, MERGED * x.shape[-1])
        inner = dense(p["up"], squares, activation="gelu", dtype=dtype)
        return Output(dense(p["down"], inner, dtype=dtype), captured | by_layer)


def _repeat(pixels: jax.Array, frames: int) -> jax.Array:
    """[R, P, 3 · p · p] -> [R, P, 3 · F · p · p]: what every frame shows."""
    once = pixels.reshape(*pixels.shape[:2], vit.COLOURS, 1, -1)
    return jnp.repeat(once, frames, axis=3).reshape(*pixels.shape[:2], -1)


def _angles(batch: Batch, vision: Vision) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [R, P, H / 2]: the first half by line, the second by column."""
    rotary, places = Rotary(vision.hidden_size // vision.num_heads // 2, vision.theta), batch.arrays[PLACES]
    by_line, by_column = (rotary.angles(replace(batch, positions=places[..., axis])) for axis in (0, 1))
    return jnp.concatenate([by_line[0], by_column[0]], -1), jnp.concatenate([by_line[1], by_column[1]], -1)


def patches(config: Config, pictures: PictureFormat) -> Patches:
    """As many as a picture's size asks for, but no more than a text has room for."""
    squares = read_area(pictures.settings, "preprocessor_config.json").squares(config.vision.side)
    places = ArraySpec((2,), np.int32)
    pixels = vit.pixels(config.vision.patch_size)
    return Patches(MERGED * min(squares, pictures.room or config.max_length), False, {PIXELS: pixels, PLACES: places})


def text_arrays(config: Config, dtype: Any) -> Arrays:
    """A picture's rows, and where every token is in time, line and column."""
    return {FEATURES: ArraySpec((config.hidden_size,), dtype), PLACES: ArraySpec((3,), np.int32)}


FAMILY = Family(
    name="qwen2_vl",
    architectures=("Qwen2VLForConditionalGeneration", "Qwen2VLModel"),
    model_types=("qwen2_vl",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=llama.forward,
    pooling="lasttoken",
    captures=pre_norm.CAPTURES,
    picks=True,
    tower=Tower(patches=patches, forward=embed_pictures, captures=vit.CAPTURES, text=text_arrays),
)
