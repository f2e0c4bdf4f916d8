"""LLaVA-NeXT's pictures: one tile of the whole, then the tiles of a grid, whose patches are read line by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpool.batch import PIXELS
from jaxpool.images.format import PictureFormat
from jaxpool.images.picture import Picture, spread
from jaxpool.images.processors import cut, load_processor
from jaxpool.models.llava_next import PINPOINTS, Config, Pinpoints, read_pinpoints
from jaxpool.tokens import Tokenizer

_OPTION = "image_grid_pinpoints"


class Tiled:
    """Reads pictures that stand in a text.

    Args:
        config: the model's.
        pictures: what the checkpoint says about pictures.
        placeholder: the token that stands for a picture in a prompt.

    Raises:
        ValueError: model and processor are told different grids.
    """

    def __init__(self, config: Config, pictures: PictureFormat, placeholder: str) -> None:
        self._vision, self._pinpoints = config.vision, config.pinpoints
        self._placeholder, self._token = placeholder, config.image_token
        given = read_pinpoints(pictures.settings.get(_OPTION) or PINPOINTS, "preprocessor_config.json", self._side)
        if given != self._pinpoints:
            raise ValueError(
                f"config.json: `{_OPTION}` is {self._pinpoints}, and in preprocessor_config.json it is {given}"
            )
        self._process = load_processor(pictures, ("LlavaNextImageProcessor",))

    @property
    def _side(self) -> int:
        return self._vision.image_size

    def read(self, image: Any, options: Mapping[str, Any]) -> Picture:
        """Cuts up a picture. Errors as `picture.Reader.read`."""
        pinpoints = self._pinpoints
        if options.get(_OPTION) is not None:
            pinpoints = read_pinpoints(options[_OPTION], "mm_processor_kwargs", self._side)
        made = self._process(image, options)
        pixels = np.asarray(made["pixel_values"][0])
        height, width = map(int, made["image_sizes"][0])
        tall, wide = best_pinpoint(height, width, pinpoints)
        grid = tall // self._side, wide // self._side
        if pixels.shape != (1 + grid[0] * grid[1], 3, self._side, self._side):
            raise ValueError(
                f"the processor makes {len(pixels)} tiles of {pixels.shape[2:]} pixels, and the model takes "
                f"{1 + grid[0] * grid[1]} of {self._side}²"
            )
        tiles = tuple(self._tile(tile) for tile in pixels)
        return Picture(tiles, rows_of(height, width, grid, self._side // self._vision.patch_size))

    def write(self, text: str, count: int) -> str:
        """The prompt as it is: the placeholder is a token. Errors as `picture.Reader.write`."""
        if (found := text.count(self._placeholder)) != count:
            raise ValueError(
                f"the prompt has places for {found} pictures ({self._placeholder!r}), and {count} were given"
            )
        return text

    def place(self, ids: np.ndarray, pictures: Sequence[Picture]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As `picture.Reader.place`."""
        assert self._token is not None
        return spread(ids, self._token, pictures), {}

    def _tile(self, pixels: np.ndarray) -> Mapping[str, np.ndarray]:
        patch = self._vision.patch_size
        # In front stands the place of the class token, which is no part of the picture.
        patches = np.pad(cut(pixels, patch).reshape(-1, 3 * patch**2), ((1, 0), (0, 0)))
        return {PIXELS: patches, "ids": np.arange(len(patches), dtype=np.int32)}


def best_pinpoint(height: int, width: int, pinpoints: Pinpoints) -> tuple[int, int]:
    """Of the sizes that a picture may be brought to, the one that keeps most of it, and of these the smallest."""

    def merit(pinpoint: tuple[int, int]) -> tuple[int, int]:
        tall, wide = pinpoint
        scale = min(wide / width, tall / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - tall * wide

    return max(pinpoints, key=merit)


def rows_of(height: int, width: int, grid: tuple[int, int], side: int) -> np.ndarray:
    """Which rows of the tiles, one tile behind the other, stand in a text: int32 [n].

    First the whole picture's patches, then the grid's line by line, with a tile's first row, the end of a line, behind
    each. Lines or columns that show nothing but padding are left out.

    Args:
        height, width: of the picture, in pixels.
        grid: (lines, columns) of tiles.
        side: patches in a line of a tile.
    """
    lines, columns = grid
    numbers = np.arange((1 + lines * columns) * (1 + side**2), dtype=np.int32).reshape(-1, 1 + side**2)
    whole, tiles = numbers[0, 1:], numbers[1:, 1:].reshape(lines, columns, side, side)
    patches = tiles.transpose(0, 2, 1, 3).reshape(lines * side, columns * side)
    if width / height > columns / lines:
        above = _padding(lines * side, height * (columns * side / width))
        patches = patches[above : lines * side - above]
    else:
        before = _padding(columns * side, width * (lines * side / height))
        patches = patches[:, before : columns * side - before]
    ended = np.pad(patches, ((0, 0), (0, 1)), constant_values=numbers[0, 0])
    return np.concatenate([whole, ended.ravel()])


def _padding(room: int, filled: float) -> int:
    """Patches on either side of those that a picture fills; rounded first, as transformers does it."""
    return (room - int(round(filled, 7))) // 2


def make_reader(config: Config, pictures: PictureFormat, tokenizer: Tokenizer) -> Tiled:
    """What reads the pictures of a checkpoint.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    (placeholder,) = tokenizer.tokens([config.image_token or 0])
    if not placeholder:
        raise ValueError(f"config.json: `image_token_index` is {config.image_token}, which the tokenizer does not have")
    return Tiled(config, pictures, placeholder)
