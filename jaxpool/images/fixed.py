"""Pictures for towers of one size: CLIP's and SigLIP's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpool.batch import PIXELS
from jaxpool.images.format import PictureFormat
from jaxpool.images.picture import Picture
from jaxpool.images.processors import cut, load_processor

NOTHING = np.zeros(0, np.int32)


class FixedSize:
    """Reads pictures that are answered by themselves.

    Args:
        image_size, patch_size: the tower's, in pixels.
        pictures: what the checkpoint says about pictures.
        known: the processors that are understood.
        front: places in front of the patches that are no part of the picture (a class token).
    """

    def __init__(
        self, image_size: int, patch_size: int, pictures: PictureFormat, known: tuple[str, ...], front: int
    ) -> None:
        self._image_size, self._patch_size, self._front = image_size, patch_size, front
        self._process = load_processor(pictures, known)

    def read(self, image: Any, options: Mapping[str, Any]) -> Picture:
        """One tile. Errors as `picture.Reader.read`."""
        pixels = np.asarray(self._process(image, options)["pixel_values"][0])
        if pixels.shape != (3, self._image_size, self._image_size):
            raise ValueError(f"the processor makes {pixels.shape[1:]} pixels, and the model takes {self._image_size}²")
        patches = cut(pixels, self._patch_size).reshape(-1, 3 * self._patch_size**2)
        patches = np.pad(patches, ((self._front, 0), (0, 0)))
        return Picture(({PIXELS: patches, "ids": np.arange(len(patches), dtype=np.int32)},), NOTHING)

    def write(self, text: str, count: int) -> str:
        """Never asked: these models take a text or a picture."""
        raise ValueError("pictures do not stand in texts here")

    def place(self, ids: np.ndarray, pictures: Sequence[Picture]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Never asked."""
        raise ValueError("pictures do not stand in texts here")
