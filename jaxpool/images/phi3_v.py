"""Phi-3-vision's pictures: the whole in one tile, and as many tiles as the picture's shape asks for.

The whole is interpolated from the normalised picture, and so overshoots what bytes hold: pixels are float32 here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from jaxpool.batch import PIXELS
from jaxpool.images.format import PictureFormat
from jaxpool.images.picture import Picture, spread
from jaxpool.images.processors import cut
from jaxpool.models.phi3_v import BLANKS, SIDE, Config
from jaxpool.tokens import Tokenizer

_NAMED = re.compile(r"<\|image_(\d+)\|>")
_PROCESSOR = "Phi3VImageProcessor"
# Of preprocessor_config.json, beside what `images.format` reads: what else is there has no say.
MOST_TILES = 64
_HARMLESS = ("auto_map", "do_convert_rgb", "num_img_tokens", "processor_class")
_WHITE = (255, 255, 255)
# Keys' cubic convolution with torch's parameter.
_SHARPNESS = -0.75


class HighDefinition:
    """Reads pictures that stand in a text.

    Args:
        config: the model's.
        pictures: what the checkpoint says about pictures.
        first: the token in front of every text, spelt.
        placeholder: the token that stands for a picture, spelt.

    Raises:
        ValueError: a processor that is not understood.
    """

    def __init__(self, config: Config, pictures: PictureFormat, first: str, placeholder: str) -> None:
        if pictures.processor != _PROCESSOR:
            raise ValueError(f"image processor {pictures.processor!r} is not understood, expected {_PROCESSOR!r}")
        settings = dict(pictures.settings)
        self._most = _tiles(settings.pop("num_crops", None) or 1, "preprocessor_config.json")
        if unknown := sorted(set(settings) - set(_HARMLESS)):
            raise ValueError(f"preprocessor_config.json: {unknown} are not known to {_PROCESSOR}")
        self._config, self._first, self._placeholder = config, first, placeholder
        self._mean, self._std = (np.array(v, np.float32)[:, None, None] for v in (pictures.mean, pictures.std))

    def read(self, image: Any, options: Mapping[str, Any]) -> Picture:
        """Cuts up a picture. Errors as `picture.Reader.read`."""
        if unknown := sorted(set(options) - {"num_crops"}):
            raise ValueError(f"mm_processor_kwargs: {unknown} are not known to {_PROCESSOR}")
        most = _tiles(options.get("num_crops", self._most), "mm_processor_kwargs")
        side = self._config.vision.image_size
        fitted = np.asarray(fit(image, most, side), np.float32).transpose(2, 0, 1)
        pixels = (fitted / np.float32(255) - self._mean) / self._std
        lines, columns = pixels.shape[1] // side, pixels.shape[2] // side
        tiles = pixels.reshape(3, lines, side, columns, side).transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        whole = interpolate(pixels, side)
        return Picture(tuple(map(self._tile, (whole, *tiles))), self._rows(lines, columns))

    def write(self, text: str, count: int) -> str:
        """Each named picture as its token, and what follows as a text of its own. Errors as `picture.Reader.write`."""
        named = [int(number) for number in _NAMED.findall(text)]
        if named != list(range(1, count + 1)):
            raise ValueError(f"the prompt names pictures {named}, expected <|image_1|> … <|image_{count}|> in order")
        return _NAMED.sub(lambda match: self._placeholder + self._first, text)

    def place(self, ids: np.ndarray, pictures: Sequence[Picture]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As `picture.Reader.place`."""
        assert self._config.image_token is not None
        return spread(ids, self._config.image_token, pictures), {}

    def _tile(self, pixels: np.ndarray) -> Mapping[str, np.ndarray]:
        """Patches square by square, the class token's place, and blank ones."""
        patch = self._config.vision.patch_size
        patches, behind = cut(pixels, patch), 1 + BLANKS
        grid = patches.shape[0] // SIDE
        numbers = 1 + np.arange(patches.shape[0] ** 2, dtype=np.int32).reshape(grid, SIDE, grid, SIDE)
        order = numbers.transpose(0, 2, 1, 3).ravel()
        ids = np.concatenate([order, np.zeros(1, np.int32), np.full(BLANKS, -1, np.int32)])
        flat = patches.reshape(-1, patches.shape[-1])[order - 1]
        return {PIXELS: np.pad(flat, ((0, behind), (0, 0))), "ids": ids}

    def _rows(self, lines: int, columns: int) -> np.ndarray:
        """The grid's rows line by line, what stands behind them, then the whole picture's."""
        each = self._config.rows
        side, apart, end = math.isqrt(each), each, each + 1
        numbers = np.arange((1 + lines * columns) * (each + 2), dtype=np.int32).reshape(-1, each + 2)[:, :each]
        grid = numbers[1:].reshape(lines, columns, side, side).transpose(0, 2, 1, 3)
        tiles, whole = grid.reshape(lines * side, columns * side), numbers[0].reshape(side, side)
        ended = [np.pad(rows, ((0, 0), (0, 1)), constant_values=end).ravel() for rows in (tiles, whole)]
        return np.concatenate([ended[0], np.array([apart], np.int32), ended[1]])


def _tiles(given: Any, file: str) -> int:
    if not isinstance(given, int) or not 1 <= given <= MOST_TILES:  # they are in memory before they are counted
        raise ValueError(f"{file}: `num_crops` is {given!r}, expected 1 … {MOST_TILES}")
    return given


def fit(image: Any, most: int, side: int) -> Any:
    """The picture (pillow's) with sides that are multiples of `side`, in at most so many squares.

    Its longer side is as many squares as there is room for; beside the shorter one is white.

    Raises:
        ValueError: a picture so narrow that nothing would be left of it.
    """
    from PIL import Image, ImageOps

    standing = image.width < image.height
    if standing:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    ratio = image.width / image.height
    squares = max(n for n in range(1, most + 1) if n * math.ceil(n / ratio) <= most)
    width = squares * side
    height = int(width / ratio)
    if height == 0:
        raise ValueError(f"a picture of {image.width} by {image.height} pixels is too narrow")
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    missing = -height % side
    image = ImageOps.expand(image, (0, missing // 2, 0, missing - missing // 2), fill=_WHITE)
    return image.transpose(Image.Transpose.TRANSPOSE) if standing else image


def interpolate(pixels: np.ndarray, side: int) -> np.ndarray:
    """float32 [3, H, W] -> [3, side, side], as torch's bicubic interpolation, which takes 4 x 4 pixels for each."""
    for axis in (1, 2):
        at, weights = _taps(pixels.shape[axis], side)
        shape = [1, 1, 1]
        shape[axis] = side
        taken = (pixels.take(places, axis) * weight.reshape(shape) for places, weight in zip(at, weights, strict=True))
        pixels = reduce(np.add, taken)
    return pixels


def _taps(length: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `side` pixels the 4 that it is made of, and how much of each: [4, side]."""
    centres = (np.arange(side) + 0.5) * (length / side) - 0.5
    first = np.floor(centres)
    offsets = np.arange(-1, 3)[:, None]
    distance = np.abs(centres - first - offsets)
    a = _SHARPNESS
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.where(distance <= 1, near, far).astype(np.float32)
    return (first + offsets).clip(0, length - 1).astype(np.int64), weights


def make_reader(config: Config, pictures: PictureFormat, tokenizer: Tokenizer) -> HighDefinition:
    """What reads the pictures of a checkpoint.

    Raises:
        ValueError: the tokenizer lacks a token, or takes a text behind one for a part of the text before.
    """
    (placeholder,) = tokenizer.tokens([config.image_token or 0])
    if not placeholder:
        raise ValueError(f"the tokenizer does not have the token {config.image_token}, which stands for a picture")
    first = tokenizer.special_tokens.get("bos_token")
    if first is None:
        raise ValueError("tokenizer_config.json: `bos_token` is missing, which stands behind every picture")
    alone, behind = (encoded.ids.tolist() for encoded in tokenizer.encode(["a", f"{first}a"], 9, special_tokens=False))
    if behind != [tokenizer.token_id(first), *alone]:
        raise ValueError(f"tokenizer.json: a text behind {first!r} has other tokens than by itself")
    return HighDefinition(config, pictures, first, placeholder)
