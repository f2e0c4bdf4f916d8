"""A folder of pictures, and a CLIP small enough to be trained on them in a minute, for where no hub is in reach.

    python examples/tiny_clip.py pictures model     # draws 48 pictures, trains, writes the model as transformers would

It knows eight colours and six shapes. `jaxpool.models.clip` computes it, optax trains it, and what is written is an
ordinary checkpoint: config.json, model.safetensors, tokenizer.json, preprocessor_config.json.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxpool.batch import PIXELS, Inputs, unfold
from jaxpool.converters.clip import TABLE
from jaxpool.converters.export import write_safetensors
from jaxpool.converters.rules import to_checkpoint
from jaxpool.images.format import PictureFormat
from jaxpool.images.processors import cut
from jaxpool.models.clip import FAMILY, config_from_hf, embed_pictures
from jaxpool.params import flatten, random_params

COLOURS = {
    "red": (214, 45, 45), "green": (46, 160, 67), "blue": (47, 93, 203), "yellow": (240, 200, 40),
    "purple": (134, 62, 180), "orange": (240, 130, 30), "black": (25, 25, 25), "white": (245, 245, 245),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
SIZE, PATCH, LENGTH = 32, 8, 8
STEPS, VARIANTS, RATE, SHARPNESS = 900, 24, 1.5e-3, 25
CONFIG = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 32,
    "text_config": {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": LENGTH,
    },
    "vision_config": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "image_size": SIZE, "patch_size": PATCH,
    },
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIZE},
    "crop_size": {"height": SIZE, "width": SIZE},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def draw(colour: str, shape: str, rng: np.random.Generator, size: int = 96) -> Image.Image:
    """One coloured shape somewhere on a grey ground."""
    ground = tuple(int(x) for x in rng.integers(110, 190) + rng.integers(-12, 13, 3))
    image = Image.new("RGB", (size, size), ground)
    pen, colour_of = ImageDraw.Draw(image), COLOURS[colour]
    r = size * rng.uniform(0.24, 0.36)
    x, y = rng.uniform(r, size - r, 2)
    box = (x - r, y - r, x + r, y + r)
    turn = rng.uniform(-0.3, 0.3)

    def corners(count: int, inner: float = 1.0) -> list[tuple[float, float]]:
        angles = turn - np.pi / 2 + 2 * np.pi * np.arange(count) / count
        reach = np.where(np.arange(count) % 2, inner, 1.0) * r
        return [(float(x + a * np.cos(t)), float(y + a * np.sin(t))) for a, t in zip(reach, angles, strict=True)]

    if shape == "circle":
        pen.ellipse(box, fill=colour_of)
    elif shape == "ring":
        pen.ellipse(box, outline=colour_of, width=max(2, int(0.35 * r)))
    elif shape == "square":
        pen.polygon(corners(4), fill=colour_of)
    elif shape == "triangle":
        pen.polygon(corners(3), fill=colour_of)
    elif shape == "star":
        pen.polygon(corners(10, 0.4), fill=colour_of)
    else:
        pen.line((x - r, y, x + r, y), fill=colour_of, width=int(0.5 * r))
        pen.line((x, y - r, x, y + r), fill=colour_of, width=int(0.5 * r))
    return image


def write_pictures(folder: Path, seed: int = 0) -> list[Path]:
    """One picture of every colour and shape, as PNG files whose names say nothing."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = list(product(COLOURS, SHAPES))
    files = []
    for number, at in enumerate(rng.permutation(len(kinds))):
        files.append(folder / f"{number:02d}.png")
        draw(*kinds[at], rng).save(files[-1])
    return files


def make_tokenizer() -> Tokenizer:
    """A word a token: "<start> a red circle <end>"."""
    words = ["<start>", "<end>", "<unk>", "a", "an", "the", "of", "picture", *COLOURS, *SHAPES]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return tokenizer


def _patches(image: Image.Image) -> np.ndarray:
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    return cut(small, PATCH).reshape(-1, 3 * PATCH**2)


def train(directory: Path, seed: int = 0, steps: int = STEPS) -> float:
    """Trains with CLIP's own loss and writes the checkpoint; returns the last loss."""
    rng, tokenizer = np.random.default_rng(seed), make_tokenizer()
    hf = CONFIG | {"text_config": CONFIG["text_config"] | {"vocab_size": tokenizer.get_vocab_size()}}
    config, pictures = config_from_hf(hf), PictureFormat(mean=(0.5,) * 3, std=(0.5,) * 3)
    kinds = list(product(COLOURS, SHAPES))

    def texts(chosen: list[tuple[str, str]]) -> Inputs:
        inputs = Inputs.of_shape(len(chosen), LENGTH, 1, partial(np.zeros, dtype=np.int32))
        for row, kind in enumerate(chosen):
            words = {0: "a {} {}", 1: "the {} {}", 2: "picture of a {} {}"}[int(rng.integers(3))].format(*kind)
            ids = tokenizer.encode(words).ids
            inputs.ids[row, : len(ids)], inputs.lengths[row] = ids, len(ids)
        return inputs

    # Drawn once: a few of each kind, of which every step takes one.
    drawn = {kind: [_patches(draw(*kind, rng)) for _ in range(VARIANTS)] for kind in kinds}

    def seen(chosen: list[tuple[str, str]]) -> Inputs:
        arrays = FAMILY.tower.patches(config, pictures).arrays
        inputs = Inputs.of_shape(len(chosen), config.vision.positions, 1, partial(np.zeros, dtype=np.int32), arrays)
        inputs.ids[:], inputs.lengths[:] = np.arange(config.vision.positions), config.vision.positions
        for row, kind in enumerate(chosen):
            inputs.arrays[PIXELS][row, 1:] = drawn[kind][rng.integers(VARIANTS)]
        return inputs

    def loss(params, read, looked):
        read, looked = unfold(read), unfold(looked)
        looked.arrays[PIXELS] = pictures.normalise(looked.arrays[PIXELS])
        hidden = FAMILY.forward(params, read, config).hidden
        a = jnp.take_along_axis(hidden, (read.lengths - 1)[..., None], axis=1)[:, 0]
        b = embed_pictures(params, looked, config).hidden[:, 0]
        a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        logits, target = SHARPNESS * a @ b.T, jnp.arange(len(a))
        each = optax.softmax_cross_entropy_with_integer_labels
        return (each(logits, target) + each(logits.T, target)).mean() / 2

    optimiser = optax.adamw(optax.warmup_cosine_decay_schedule(0, RATE, steps // 10, steps))
    params = jax.tree.map(jnp.asarray, random_params(FAMILY.param_specs(config), seed=seed, scale=0.05))
    state = optimiser.init(params)

    @jax.jit
    def step(params, state, read, looked):
        value, gradient = jax.value_and_grad(loss)(params, read, looked)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(steps):
        params, state, value = step(params, state, texts(kinds), seen(kinds))
    write_safetensors(directory, "model", to_checkpoint(flatten(jax.tree.map(np.asarray, params)), TABLE))
    (directory / "config.json").write_text(json.dumps(hf, indent=1))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<start>", "eos_token": "<end>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": LENGTH}, indent=1))
    tokenizer.save(str(directory / "tokenizer.json"))
    return float(value)


if __name__ == "__main__":
    folder, directory = map(Path, sys.argv[1:])
    write_pictures(folder)
    print(f"loss: {train(directory):.4f}")
