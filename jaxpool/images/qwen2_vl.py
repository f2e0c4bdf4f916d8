"""Qwen2-VL's pictures: they keep their shape, and how many patches they become goes by their size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from jaxpool.batch import PIXELS, PLACES
from jaxpool.images.format import PictureFormat
from jaxpool.images.picture import Picture, spread
from jaxpool.images.processors import cut
from jaxpool.models.qwen2_vl import LONGEST, MERGED, SIDE, Area, Config, patches, read_area
from jaxpool.tokens import Tokenizer

_PROCESSOR = "Qwen2VLImageProcessor"
_SIZES = ("size", "min_pixels", "max_pixels")
# Of preprocessor_config.json, beside what `images.format` reads: what transformers takes where it is not there …
_BICUBIC = 3
_DEFAULTS = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "do_resize": True, "resample": _BICUBIC}
# … and what has no say.
_HARMLESS = frozenset(
    """
    crop_size data_format default_to_square device disable_grouping do_center_crop do_convert_rgb do_pad
    image_seq_length input_data_format pad_size processor_class return_tensors
    """.split()
)


class OwnShape:
    """Reads pictures that stand in a text.

    Args:
        config: the model's.
        pictures: what the checkpoint says about pictures.
        placeholder: the token that stands for a picture in a prompt, spelt.

    Raises:
        ValueError: a processor that is not understood, or that cuts other patches than the model takes.
    """

    def __init__(self, config: Config, pictures: PictureFormat, placeholder: str) -> None:
        if pictures.processor != _PROCESSOR:
            raise ValueError(f"image processor {pictures.processor!r} is not understood, expected {_PROCESSOR!r}")
        settings = _DEFAULTS | {name: value for name, value in pictures.settings.items() if value is not None}
        vision = config.vision
        needed = {"patch_size": vision.patch_size, "merge_size": SIDE, "temporal_patch_size": vision.frames}
        for name, value in (needed | {"do_resize": True}).items():
            if settings[name] != value:
                raise ValueError(f"preprocessor_config.json: `{name}` is {settings[name]!r}, and the model has {value}")
        if unknown := sorted(set(settings) - set(_DEFAULTS) - set(_SIZES) - _HARMLESS):
            raise ValueError(f"preprocessor_config.json: {unknown} are not known to {_PROCESSOR}")
        self._config, self._placeholder, self._resample = config, placeholder, settings["resample"]
        self._area = read_area(settings, "preprocessor_config.json")
        self._most = patches(config, pictures).length

    def read(self, image: Any, options: Mapping[str, Any]) -> Picture:
        """One tile. Errors as `picture.Reader.read`."""
        if unknown := sorted(set(options) - set(_SIZES)):
            raise ValueError(f"mm_processor_kwargs: {unknown} are not known, expected of {list(_SIZES)}")
        vision, area = self._config.vision, read_area(options, "mm_processor_kwargs", self._area)
        height, width = fit(image.height, image.width, area, vision.side)
        lines, columns = height // vision.patch_size, width // vision.patch_size
        if lines * columns > self._most:
            raise ValueError(
                f"{width}×{height} pixels are {lines * columns} patches, and the model takes at most {self._most}: "
                "`max_pixels` makes pictures smaller"
            )
        pixels = np.asarray(image.resize((width, height), self._resample)).transpose(2, 0, 1)
        tile = {
            PIXELS: by_squares(cut(pixels, vision.patch_size)),
            PLACES: by_squares(np.moveaxis(np.indices((lines, columns), np.int32), 0, -1)),
        }
        return Picture((tile,), np.arange(lines * columns // MERGED, dtype=np.int32), (lines // SIDE, columns // SIDE))

    def write(self, text: str, count: int) -> str:
        """The prompt as it is: the placeholder is a token. Errors as `picture.Reader.write`."""
        if (found := text.count(self._placeholder)) != count:
            raise ValueError(
                f"the prompt has {self._placeholder!r} {found} times, and {count} pictures were given: "
                "expected one for each"
            )
        return text

    def place(self, ids: np.ndarray, pictures: Sequence[Picture]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As `picture.Reader.place`. A prompt with a video raises ValueError."""
        token = self._config.image_token
        assert token is not None
        if (ids == self._config.video_token).any():
            raise ValueError(f"the prompt has a place for a video (token {self._config.video_token}): not supported")
        return spread(ids, token, pictures), {PLACES: places(ids == token, [picture.grid for picture in pictures])}


def fit(height: int, width: int, area: Area, side: int) -> tuple[int, int]:
    """The height and width that a picture is brought to: multiples of `side`, of nearly the same shape.

    Raises:
        ValueError: a picture that is much longer than wide, or wider than long.
    """
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(f"is {width}×{height} pixels, and one side may be at most {LONGEST} times the other")
    lines, columns = round(height / side), round(width / side)
    if lines * columns * side**2 > area.most:
        shrink = math.sqrt(height * width / area.most)
        lines, columns = (max(1, math.floor(length / shrink / side)) for length in (height, width))
    elif lines * columns * side**2 < area.fewest:
        grow = math.sqrt(area.fewest / (height * width))
        lines, columns = (math.ceil(length * grow / side) for length in (height, width))
    return lines * side, columns * side


def by_squares(grid: np.ndarray) -> np.ndarray:
    """[lines, columns, …] -> [patches, …]: square by square, and line by line within each."""
    lines, columns, *rest = grid.shape
    squares = grid.reshape(lines // SIDE, SIDE, columns // SIDE, SIDE, *rest).swapaxes(1, 2)
    return np.ascontiguousarray(squares).reshape(lines * columns, *rest)


def places(stands_for_picture: np.ndarray, grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """Where the tokens are in time, line and column: int32 [T, 3].

    A text's tokens go on by one in all three. A picture takes no time, and what follows it goes on behind the longer
    of its sides.

    Args:
        stands_for_picture: bool, of each token of the prompt, in which one stands for a whole picture.
        grids: (lines, columns) of each picture's rows.
    """
    ends = np.flatnonzero(stands_for_picture)
    texts = np.diff(ends, prepend=-1, append=len(stands_for_picture)) - 1
    parts, start = [], 0
    for length, grid in zip_longest(texts, grids):
        parts.append(np.repeat(start + np.arange(length)[:, None], 3, axis=1))
        start += length
        if grid is not None:
            parts.append(start + np.stack([np.zeros(grid, np.int64), *np.indices(grid)], axis=-1).reshape(-1, 3))
            start += max(grid)
    return np.concatenate(parts).astype(np.int32)


def make_reader(config: Config, pictures: PictureFormat, tokenizer: Tokenizer) -> OwnShape:
    """What reads the pictures of a checkpoint.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    (placeholder,) = tokenizer.tokens([config.image_token or 0])
    if not placeholder:
        raise ValueError(f"config.json: `image_token_id` is {config.image_token}, which the tokenizer does not have")
    return OwnShape(config, pictures, placeholder)
