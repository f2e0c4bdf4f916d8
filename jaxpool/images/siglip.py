"""SigLIP's pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpool.images.fixed import FixedSize
from jaxpool.images.format import PictureFormat
from jaxpool.images.processors import Processor
from jaxpool.models.siglip import Config
from jaxpool.tokens import Tokenizer


class WholePatches(FixedSize):
    """Reads pictures whose sides may be no multiple of a patch's (384 and 14): what is left over is not looked at.

    Args:
        image_size, patch_size: the tower's, in pixels.
        pictures: what the checkpoint says about pictures.
    """

    def __init__(self, image_size: int, patch_size: int, pictures: PictureFormat) -> None:
        whole = image_size // patch_size * patch_size
        super().__init__(whole, patch_size, pictures, ("SiglipImageProcessor",), front=0)
        self._process = _cropped(self._process, image_size, whole)


def make_reader(config: Config, pictures: PictureFormat, tokenizer: Tokenizer) -> FixedSize:
    """What reads the pictures of a checkpoint."""
    return WholePatches(config.vision.image_size, config.vision.patch_size, pictures)


def _cropped(process: Processor, size: int, whole: int) -> Processor:
    def cropped(image: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
        pixels = np.asarray(process(image, options)["pixel_values"][0])
        # Of another size than the tower's they stay, for `FixedSize` to refuse.
        return {"pixel_values": [pixels[:, :whole, :whole] if pixels.shape == (3, size, size) else pixels]}

    return cropped
