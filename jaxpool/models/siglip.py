"""SigLIP (Zhai et al. 2023, arXiv:2303.15343) and SigLIP 2 of fixed sizes, as in transformers' `modeling_siglip.py`.

A text is padded to all the positions there are, its padding is read like other tokens, and the last place answers for
it: hidden states are projected there already. A picture is what a learnt query finds among its patches.
Where the weights come from: `converters/siglip.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.attention import AttentionMask, Options, plain
from jaxpool.batch import PIXELS, Batch
from jaxpool.images.format import PictureFormat
from jaxpool.layers import dense, keep
from jaxpool.models import vit
from jaxpool.models.family import Family, Output, Patches, Tower
from jaxpool.models.hf_config import OBJECT, SIZE, ConfigError, HFConfig
from jaxpool.norms import layer_norm
from jaxpool.params import QKV, ParamSpec, Tree, embedding, linear
from jaxpool.params import layer_norm as layer_norm_specs

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Vision(vit.Config):
    """The sizes of a tower.

    Attributes:
        image_size: of the square that a picture is resized to, in pixels.
        patch_size: of a patch, in pixels.
    """

    image_size: int
    patch_size: int

    @property
    def positions(self) -> int:
        """The whole patches of a picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes of a SigLIP.

    Attributes:
        text, vision: of its two stacks.
        max_length: tokens of every text, padding included.
    """

    text: vit.Config
    vision: Vision
    vocab_size: int
    max_length: int

    @property
    def hidden_size(self) -> int:
        """Width of the space that both end in."""
        return self.vision.hidden_size

    @property
    def num_heads(self) -> int:
        """Of the wider stack."""
        return max(self.text.num_heads, self.vision.num_heads)

    @property
    def activation_bytes_per_token(self) -> int:
        """The wider stack's."""
        return max(self.text.activation_bytes_per_token, self.vision.activation_bytes_per_token)


def config_from_hf(values: dict[str, Any]) -> Config:
    """Reads config.json (transformers' `SiglipConfig`)."""
    hf = HFConfig(values)
    text, vision = (_part(hf, name) for name in ("text_config", "vision_config"))
    hf.finish()
    seen = read_vision(vision)
    read = vit.Config(**_sizes(text))
    projection = text.get("projection_size", read.hidden_size)
    if projection != seen.hidden_size:
        raise ConfigError(
            f"config.json: texts end in {projection} values (text_config's `projection_size`), pictures in "
            f"{seen.hidden_size} (vision_config's `hidden_size`)"
        )
    config = Config(
        text=read,
        vision=seen,
        vocab_size=text.get("vocab_size", 32_000),
        max_length=text.get("max_position_embeddings", 64),
    )
    text.finish()
    return config


def read_vision(hf: HFConfig) -> Vision:
    """A tower's part of config.json (transformers' `SiglipVisionConfig`)."""
    sides = {name: hf.get(name, default) for name, default in (("image_size", 224), ("patch_size", 16))}
    for name, side in sides.items():
        SIZE.check(side, "config.json", name)
    vision = Vision(**_sizes(hf), **sides)
    hf.only("num_channels", vit.COLOURS)
    hf.only("vision_use_head", True)
    hf.finish()
    return vision


def _part(hf: HFConfig, name: str) -> HFConfig:
    part = hf.get(name, {})
    OBJECT.check(part, "config.json", name)
    return HFConfig(part)


def _sizes(hf: HFConfig) -> dict[str, Any]:
    fields = vit.config_fields(hf, width=768, layers=12, heads=12, mlp=3072, activation="gelu_pytorch_tanh")
    return fields | {"epsilon": hf.get("layer_norm_eps", 1e-6)}


def vision_specs(config: Vision) -> Tree:
    """A tower's parameters, without the query at its end."""
    width = config.hidden_size
    return {
        "patches": vit.patch_specs(config.patch_size, width, bias=True),
        "position": embedding(config.positions, width),
        "layers": vit.block_specs(config),
        "post_norm": layer_norm_specs(width),
    }


def _query_specs(config: Vision) -> Tree:
    width, mlp = {"embed": config.hidden_size}, {"mlp": config.mlp_size}
    heads = {"heads": config.num_heads, "head_dim": config.hidden_size // config.num_heads}
    return {
        "probe": ParamSpec((1, 1, config.hidden_size), (None, None, "embed")),
        **{name: linear(width, heads) for name in QKV},
        "output": linear(heads, width),
        "norm": layer_norm_specs(config.hidden_size),
        "up": linear(width, mlp),
        "down": linear(mlp, width),
    }


def param_specs(config: Config) -> Tree:
    """The Flax param tree."""
    width = config.text.hidden_size
    return {
        "embeddings": {
            "word": embedding(config.vocab_size, width, "vocab"),
            "position": embedding(config.max_length, width),
        },
        "layers": vit.block_specs(config.text),
        "norm": layer_norm_specs(width),
        "projection": linear({"embed": width}, {"pooled": config.hidden_size}),
        "vision": vision_specs(config.vision) | {"query": _query_specs(config.vision)},
    }


def forward(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """A text's hidden states [R, W, D], projected; captures "embeddings", "attention", "layer" and "norm"."""
    e = params["embeddings"]
    dtype = e["word"]["embedding"].dtype
    with jax.named_scope("embeddings"):
        x = (e["word"]["embedding"][batch.ids] + e["position"]["embedding"][batch.positions]).astype(dtype)
    captured = keep(capture, embeddings=x)
    mask = AttentionMask.of(batch)
    x, by_layer = vit.blocks(params["layers"], x, mask, config.text, capture=capture, pick=batch.pick)
    x = layer_norm(params["norm"], x, config.text.epsilon, dtype=dtype)
    return Output(dense(params["projection"], x), captured | keep(capture, norm=x) | by_layer)


def see(params: Tree, batch: Batch, config: Vision, *, capture: tuple[str, ...] = ()) -> Output:
    """A tower's hidden states [R, P, D] behind its last norm.

    Args:
        params: as `vision_specs`.
        batch: `ids` number the patches; `arrays["pixels"]` are normalised.
        capture: of "embeddings", "attention", "layer", "norm".
    """
    dtype = params["position"]["embedding"].dtype
    with jax.named_scope("patches"):
        x = vit.embed_patches(params["patches"], batch.arrays[PIXELS], config.patch_size)
        x = (x + params["position"]["embedding"][batch.ids]).astype(dtype)
    captured = keep(capture, embeddings=x)
    x, by_layer = vit.blocks(params["layers"], x, AttentionMask.of(batch), config, capture=capture)
    x = layer_norm(params["post_norm"], x, config.epsilon, dtype=dtype)
    return Output(x, captured | keep(capture, norm=x) | by_layer)


def embed_pictures(params: Tree, batch: Batch, config: Config, *, capture: tuple[str, ...] = ()) -> Output:
    """Pictures' vectors [R, M, D]; captures as `see`, and "query": what the learnt one found, before its MLP."""
    tower = params["vision"]
    seen = see(tower, batch, config.vision, capture=capture)
    p, dtype = tower["query"], seen.hidden.dtype
    with jax.named_scope("query"):
        found = _ask(p, seen.hidden, batch).astype(dtype)
        normed = layer_norm(p["norm"], found, config.vision.epsilon, dtype=dtype)
        inner = dense(p["up"], normed, activation=config.vision.activation, dtype=dtype)
        pooled = dense(p["down"], inner, add=found)
    return Output(pooled, seen.captured | keep(capture, query=found))


def _ask(p: Tree, x: Array, batch: Batch) -> Array:
    """What one query finds in each picture: [R, P, D] -> float32 [R, M, D]."""
    dtype = x.dtype
    read = zip(QKV, (p["probe"], x, x), strict=True)
    projected = (dense(p[name], given, "rtd,dnh->rtnh", dtype=dtype) for name, given in read)
    query, keys, values = plain.heads_in_front(*projected)
    places = jnp.arange(1, batch.lengths.shape[1] + 1)[:, None]
    own = jnp.where(batch.segments[:, None] == places, 0.0, plain.MASKED)  # [R, M, P]
    options = Options(scale=query.shape[-1] ** -0.5, soft_cap=None)
    mixed = plain.softmax_product(query, keys, values, own[:, None, None], options)
    return dense(p["output"], plain.tokens_in_front(mixed).astype(dtype), "rmnh,nhd->rmd")


def patches(config: Config, pictures: PictureFormat) -> Patches:
    """Of every picture the same number."""
    return Patches(config.vision.positions, True, {PIXELS: vit.pixels(config.vision.patch_size)})


FAMILY = Family(
    name="siglip",
    architectures=("SiglipModel",),
    model_types=("siglip",),
    config_from_hf=config_from_hf,
    param_specs=param_specs,
    forward=forward,
    pooling="lasttoken",
    captures=(*vit.CAPTURES, "norm"),
    picks=True,
    tower=Tower(patches=patches, forward=embed_pictures, captures=(*vit.CAPTURES, "norm", "query")),
    padding=lambda config: config.max_length,
)
