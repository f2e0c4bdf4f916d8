"""Pictures of awkward sizes and modes, and what torch makes of them, for the families that see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxpool.batch import PIXELS, Inputs, unfold
from jaxpool.images.reading import Pictures
from jaxpool.models.family import Output
from jaxpool.recipe import Recipe

SIZES = ((64, 48), (31, 77), (200, 30), (7, 9), (1, 1), (30, 30))


def pictures(sizes: Sequence[tuple[int, int]] = SIZES, seed: int = 0) -> list[Image.Image]:
    """Smooth ones with some noise: resampling noise alone would hide a wrong filter in rounding."""
    rng = np.random.default_rng(seed)
    made = []
    for width, height in sizes:
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(0.2, 2.5, (3, 3))]
        values = 127 + 90 * np.stack(waves, -1) + rng.normal(0, 9, (height, width, 3))
        made.append(Image.fromarray(values.clip(0, 255).astype(np.uint8)))
    return made


def see(recipe: Recipe, params: Any, tiles: Sequence[Mapping[str, np.ndarray]], names: tuple[str, ...]) -> Output:
    """What jaxpool's tower makes of tiles, one a row, padded to the longest."""
    longest = max(len(tile[PIXELS]) for tile in tiles)
    tower = recipe.family.tower
    assert tower is not None
    arrays = tower.patches(recipe.config, recipe.pictures).arrays
    inputs = Inputs.of_shape(len(tiles), longest, 1, partial(np.zeros, dtype=np.int32), arrays)
    for row, tile in enumerate(tiles):
        count = len(tile[PIXELS])
        inputs.lengths[row] = count
        if "ids" in tile:
            inputs.ids[row, :count] = tile["ids"]
        for name in arrays:
            inputs.arrays[name][row, :count] = tile[name]

    def run(params: Any, inputs: Inputs) -> Output:
        batch = unfold(inputs)
        batch.arrays[PIXELS] = recipe.pictures.normalise(batch.arrays[PIXELS])
        return tower.forward(params, batch, recipe.config, capture=names)

    return jax.tree.map(np.asarray, jax.jit(run)(params, inputs))


def read(recipe: Recipe, images: Sequence[Image.Image], **options: Any) -> list[Any]:
    """The pictures as the engine takes them."""
    from jaxpool.tokens import load_tokenizer

    reader = Pictures(recipe, load_tokenizer(recipe.backbone_directory)).reader
    return [reader.read(image, options) for image in images]
