"""Phi-3-vision (Abdin et al. 2024, arXiv:2404.14219), as in Microsoft's code beside the checkpoint.

Texts are Llama's. A picture is seen as a whole and in tiles, each by CLIP's tower; four patches of a square become one
row. Rows of their own end a line and stand between the tiles and the whole picture.
Where the weights come from: `converters/phi3_v.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.batch import FEATURES, PIXELS, Arrays, ArraySpec, Batch, Pick
from jaxpool.images.format import PictureFormat
from jaxpool.layers import ACTIVATIONS, Array, Layer, dense, keep
from jaxpool.models import clip, pre_norm, vit
from jaxpool.models.family import Family, Output, Patches, Tower
from jaxpool.models.hf_config import OBJECT, ConfigError, HFConfig
from jaxpool.params import ParamSpec, Tree, linear
from jaxpool.rotary import Rotary

# No config.json says it: the token in whose places a picture's rows stand.
IMAGE_TOKEN = 32_044
# Of a square of patches, which become one row: on each side, and in all.
SIDE, MERGED = 2, 4
# Rows behind those of a tile's patches: what stands between tiles and whole, and what ends a line.
SEPARATORS = 2
# Places behind a tile's patches and its class token, so that there are rows for the separators.
BLANKS = MERGED * SEPARATORS - 1
# The towers that `img_processor` may name.
TOWERS: Mapping[str, clip.Vision] = {
    "openai/clip-vit-large-patch14-336": clip.Vision(
        hidden_size=1024,
        num_layers=24,
        num_heads=16,
        mlp_size=4096,
        activation="quick_gelu",
        epsilon=1e-5,
        image_size=336,
        patch_size=14,
    )
}


@dataclass(frozen=True, kw_only=True)
class Config(pre_norm.Config):
    """The sizes of a Phi-3-vision: its text model's, and what it sees with.

    Attributes:
        vision: of the tower.
        seen_layer: which of the tower's hidden states a row is made of, 1 for the first layer's.
    """

    vision: clip.Vision
    seen_layer: int

    @property
    def rows(self) -> int:
        """Of a tile's patches."""
        return (self.vision.image_size // self.vision.patch_size // SIDE) ** 2

    @property
    def activation_bytes_per_token(self) -> int:
        """The text model's, or the tower's."""
        return max(super().activation_bytes_per_token, self.vision.activation_bytes_per_token)


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (the `Phi3VConfig` that lies beside the checkpoints)."""
    hf = HFConfig(values, ignore=("embd_pdrop", "resid_pdrop"))
    fields = pre_norm.config_fields(hf, activation=hf.one_of("hidden_act", ACTIVATIONS, "silu"))
    if fields["kv_heads"] != fields["num_heads"]:
        raise ConfigError(
            f"config.json: `num_key_value_heads` is {fields['kv_heads']}, expected one for each of the "
            f"{fields['num_heads']} heads: their products are fused"
        )
    hf.only("attention_bias", False)
    rotary = _read_rope(hf, fields["head_size"])
    window = pre_norm.causal_window(hf.get("sliding_window", None))
    vision, seen_layer = _read_vision(_part(hf, "img_processor"))
    _check_transform(_part(hf, "embd_layer"))
    hf.finish()
    return Config(
        **fields | {"epsilon": hf.get("rms_norm_eps", 1e-5)},
        max_length=rotary.max_positions,
        pattern=(pre_norm.Kind(window, rotary),),
        image_token=IMAGE_TOKEN,
        vision=vision,
        seen_layer=seen_layer,
    )


def _read_rope(hf: HFConfig, head_size: int) -> Rotary:
    """`pre_norm.read_rope`, where the length of the training stands beside what is made of it."""
    trained = hf.get("original_max_position_embeddings", 4096)
    given = hf.get("rope_scaling", None) or hf.get("rope_parameters", None) or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "longrope", "su"):
        raise ConfigError(f"config.json: `rope_scaling` of type {kind!r} is not known to Phi-3")
    own = {} if kind == "default" else {"original_max_position_embeddings": trained}
    theta = hf.get("rope_theta", 10_000.0)
    return pre_norm.make_rotary(own | given, head_size, hf.get("max_position_embeddings", 4096), theta)


def _part(hf: HFConfig, name: str) -> HFConfig:
    values = hf.need(name)
    OBJECT.check(values, "config.json", name)
    return HFConfig(values)


def _read_vision(hf: HFConfig) -> tuple[clip.Vision, int]:
    """`img_processor`: the tower, and which of its hidden states is looked at."""
    hf.only("name", "clip_vision_model")
    hf.only("type_feature", "patch")
    named = hf.one_of("model_name", TOWERS, next(iter(TOWERS)))
    hf.refuse()
    vision = TOWERS[named]
    layer = hf.get("layer_idx", -2)
    if not isinstance(layer, int) or not -vision.num_layers <= layer < 0:
        raise ConfigError(f"config.json: `layer_idx` is {layer!r}, expected -1 … -{vision.num_layers}")
    hf.only("image_dim_out", vision.hidden_size)
    hf.only("num_img_tokens", (vision.image_size // vision.patch_size // SIDE) ** 2)
    hf.finish()
    return vision, vision.num_layers + 1 + layer


def _check_transform(hf: HFConfig) -> None:
    """`embd_layer`: that tiles come first, then the whole picture, as all published models have it."""
    needed = {"embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp"}
    for name, value in (needed | {"use_hd_transform": True, "with_learnable_separator": True}).items():
        if hf.need(name) != value:
            raise ConfigError(f"config.json: `{name}` is {hf.need(name)!r}, and only {value!r} is understood")
    hf.finish()


def param_specs(config: Config) -> Tree:
    """The Flax param tree."""
    layer = {"attention": pre_norm.attention_specs(config), "mlp": pre_norm.mlp_specs(config)}
    seen = MERGED * config.vision.hidden_size
    return pre_norm.model_specs(config, layer) | {
        "vision": clip.vision_specs(config.vision),
        "projector": {
            "up": linear({"embed": seen}, {"mlp": config.hidden_size}),
            "down": linear({"mlp": config.hidden_size}, {"embed": config.hidden_size}),
        },
        "separators": {
            "whole": ParamSpec((1, 1, seen), (None, None, "embed")),
            "line": ParamSpec((1, 1, 1, seen), (None, None, None, "embed")),
        },
    }


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Hidden states [R, W, D] behind the last norm; captures "embeddings", and the streams "attention", "layer"."""

    def block(sight: pre_norm.Sight) -> Layer:
        def layer(x: Array, p: Tree, pick: Pick) -> tuple[Array, dict[str, Array]]:
            with jax.named_scope("attention"):
                attended = pre_norm.attend(p["attention"], x, sight, config, pick)
            with jax.named_scope("mlp"):
                x = pre_norm.gated_mlp(p["mlp"], attended, config)
            return x, keep(capture, attention=attended, layer=x)

        return layer

    return pre_norm.run(params, batch, config, block, capture)


def embed_tiles(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """A text's rows [R, P / 4, D]: of squares of patches, then the separators'; captures as `clip.see`.

    Args:
        batch: `ids` number the places: the patches, square by square; 0 for the class token behind them; -1 for places
            that fill up the rows and that nobody sees.
    """
    tower = params["vision"] | {"layers": vit.first_layers(params["vision"]["layers"], config.seen_layer)}
    # Blank places lie behind the others: a kernel may go by segments as well as by lengths.
    segments, lengths = jnp.where(batch.ids < 0, 0, batch.segments), jnp.maximum(batch.lengths - BLANKS, 0)
    seen = clip.see(tower, replace(batch, segments=segments, lengths=lengths), config.vision, capture=capture)
    x = seen.hidden
    with jax.named_scope("projector"):
        squares = x.reshape(x.shape[0], -1, MERGED * x.shape[-1])[:, : config.rows]
        own = (params["separators"][name].reshape(1, 1, -1).astype(x.dtype) for name in ("whole", "line"))
        ends = [jnp.broadcast_to(row, (x.shape[0], *row.shape[1:])) for row in own]
        rows = jnp.concatenate([squares, *ends], axis=1)
        inner = dense(params["projector"]["up"], rows, activation="gelu", dtype=x.dtype)
        return Output(dense(params["projector"]["down"], inner, dtype=x.dtype), seen.captured)


def patches(config: Config, pictures: PictureFormat) -> Patches:
    """Of every tile the same number; the pixels are normalised already (`images/phi3_v.py` says why)."""
    pixels = vit.pixels(config.vision.patch_size)._replace(dtype=np.float32)
    return Patches(MERGED * (config.rows + SEPARATORS), True, {PIXELS: pixels})


def text_arrays(config: Config, dtype: Any) -> Arrays:
    """A picture's rows."""
    return {FEATURES: ArraySpec((config.hidden_size,), dtype)}


FAMILY = Family(
    name="phi3_v",
    architectures=("Phi3VForCausalLM",),
    model_types=("phi3_v",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="lasttoken",
    captures=pre_norm.CAPTURES,
    picks=True,
    tower=Tower(patches=patches, forward=embed_tiles, captures=vit.CAPTURES, text=text_arrays),
)
