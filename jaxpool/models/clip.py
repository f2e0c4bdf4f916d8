"""CLIP (Radford et al. 2021, arXiv:2103.00020) as in transformers' `modeling_clip.py`: texts and pictures in one space.

Hidden states of a text are in that space already: a projection of every token is one of the last token too.
Where the weights come from: `converters/clip.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.attention import AttentionMask
from jaxpool.batch import PIXELS, Batch
from jaxpool.images.format import PictureFormat
from jaxpool.layers import dense, keep
from jaxpool.models import vit
from jaxpool.models.family import Family, Output, Patches, Tower
from jaxpool.models.hf_config import HFConfig
from jaxpool.norms import layer_norm
from jaxpool.params import ParamSpec, Tree, embedding, linear
from jaxpool.params import layer_norm as layer_norm_specs
from jaxpool.poolers import pool, wanting

_FIRST_END = 2


@dataclass(frozen=True, kw_only=True)
class Vision(vit.Config):
    """The sizes of a tower.

    Attributes:
        image_size: of the square that a picture is cut to, in pixels.
        patch_size: of a patch, in pixels.
    """

    image_size: int
    patch_size: int

    @property
    def positions(self) -> int:
        """The class token and the patches behind it."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes of a CLIP.

    Attributes:
        text, vision: of its two stacks.
        hidden_size: of the space that both end in.
        end_token: behind a text; what comes after the first one is not read.
    """

    text: vit.Config
    vision: Vision
    hidden_size: int
    vocab_size: int
    max_length: int
    end_token: int

    @property
    def num_heads(self) -> int:
        """Of the wider stack."""
        return max(self.text.num_heads, self.vision.num_heads)

    @property
    def activation_bytes_per_token(self) -> int:
        """The wider stack's."""
        return max(self.text.activation_bytes_per_token, self.vision.activation_bytes_per_token)


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `CLIPConfig`)."""
    hf = HFConfig(values, ignore=("logit_scale_init_value",))
    text, vision = (read_part(hf, name) for name in ("text_config", "vision_config"))
    # Each part has it once more, for models of one tower alone.
    projection = hf.get("projection_dim", 512)
    hf.finish()
    end, vocab_size = text.get("eos_token_id", 49_407), text.get("vocab_size", 49_408)
    sizes = vit.config_fields(text, width=512, layers=12, heads=8, mlp=2048, activation="quick_gelu")
    config = Config(
        text=vit.Config(**sizes, epsilon=text.get("layer_norm_eps", 1e-5)),
        vision=read_vision(vision),
        hidden_size=projection,
        vocab_size=vocab_size,
        max_length=text.get("max_position_embeddings", 77),
        # The first configs name a wrong one; transformers takes the highest then, which is the right one.
        end_token=vocab_size - 1 if end == _FIRST_END else end,
    )
    text.finish()
    return config


def read_part(hf: HFConfig, name: str) -> HFConfig:
    """A model within the model. What the first CLIPs wrote as `name`_dict stands instead, as in transformers."""
    own, first = hf.get(name, {}), hf.get(f"{name}_dict", None)
    values: Mapping[str, Any] = own if first is None else first
    return HFConfig(values, ignore=("projection_dim",))


def read_vision(hf: HFConfig) -> Vision:
    """A tower's part of config.json (transformers' `CLIPVisionConfig`)."""
    sizes = vit.config_fields(hf, width=768, layers=12, heads=12, mlp=3072, activation="quick_gelu")
    hf.only("num_channels", vit.COLOURS)
    vision = Vision(
        **sizes,
        epsilon=hf.get("layer_norm_eps", 1e-5),
        image_size=hf.get("image_size", 224),
        patch_size=hf.get("patch_size", 32),
    )
    hf.finish()
    return vision


def vision_specs(config: Vision) -> Tree:
    """A tower's parameters, without what its user puts behind it."""
    width = config.hidden_size
    return {
        "class": {"embedding": ParamSpec((width,), ("embed",))},
        "patches": vit.patch_specs(config.patch_size, width, bias=False),
        "position": embedding(config.positions, width),
        "pre_norm": layer_norm_specs(width),
        "layers": vit.block_specs(config),
    }


def param_specs(config: Config) -> Tree:
    """The Flax param tree."""
    text, vision = config.text.hidden_size, config.vision.hidden_size
    space = {"pooled": config.hidden_size}
    return {
        "embeddings": {
            "word": embedding(config.vocab_size, text, "vocab"),
            "position": embedding(config.max_length, text),
        },
        "layers": vit.block_specs(config.text),
        "norm": layer_norm_specs(text),
        "projection": linear({"embed": text}, space, bias=False),
        "vision": vision_specs(config.vision)
        | {
            "post_norm": layer_norm_specs(vision),
            "projection": linear({"embed": vision}, space, bias=False),
        },
    }


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """A text's hidden states [R, W, D], projected; captures "embeddings", "attention", "layer" and "norm"."""
    e = params["embeddings"]
    dtype = e["word"]["embedding"].dtype
    with jax.named_scope("embeddings"):
        x = (e["word"]["embedding"][batch.ids] + e["position"]["embedding"][batch.positions]).astype(dtype)
    captured = keep(capture, embeddings=x)
    mask = AttentionMask.of(batch, causal=True)
    x, by_layer = vit.blocks(params["layers"], x, mask, config.text, capture=capture, pick=batch.pick)
    x = layer_norm(params["norm"], x, config.text.epsilon, dtype=dtype)
    captured |= keep(capture, norm=x) | by_layer
    return Output(dense(params["projection"], x), captured)


def see(params: Tree, batch: Batch, config: Vision, *, capture: tuple[str, ...] = ()) -> Output:
    """A tower's hidden states [R, W, D]; nothing is normed behind the last layer.

    Args:
        params: as `vision_specs`.
        batch: `ids` number the places, 0 for the class token; `arrays["pixels"]` are normalised.
        capture: of "embeddings", "attention", "layer".
    """
    dtype = params["position"]["embedding"].dtype
    with jax.named_scope("patches"):
        x = vit.embed_patches(params["patches"], batch.arrays[PIXELS], config.patch_size)
        x = jnp.where((batch.ids == 0)[..., None], params["class"]["embedding"].astype(jnp.float32), x)
        x = (x + params["position"]["embedding"][batch.ids]).astype(dtype)
        x = layer_norm(params["pre_norm"], x, config.epsilon, dtype=dtype)
    captured = keep(capture, embeddings=x)
    x, by_layer = vit.blocks(params["layers"], x, AttentionMask.of(batch), config, capture=capture, pick=batch.pick)
    return Output(x, captured | by_layer)


def embed_pictures(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Pictures' vectors [R, M, D] in the common space; captures as `see`, and "pooled"."""
    tower = params["vision"]
    batch = batch if capture else wanting(batch, ("cls",))
    seen = see(tower, batch, config.vision, capture=capture)
    pooled = pool(seen.hidden, batch, ("cls",))
    pooled = layer_norm(tower["post_norm"], pooled, config.vision.epsilon).astype(seen.hidden.dtype)
    return Output(dense(tower["projection"], pooled), seen.captured | keep(capture, pooled=pooled))


def patches(config: Config, pictures: PictureFormat) -> Patches:
    """Of every picture the same number."""
    return Patches(config.vision.positions, True, {PIXELS: vit.pixels(config.vision.patch_size)})


FAMILY = Family(
    name="clip",
    architectures=("CLIPModel",),
    model_types=("clip",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="lasttoken",
    captures=(*vit.CAPTURES, "norm"),
    picks=True,
    end=lambda config: config.end_token,
    tower=Tower(patches=patches, forward=embed_pictures, captures=(*vit.CAPTURES, "pooled")),
)
