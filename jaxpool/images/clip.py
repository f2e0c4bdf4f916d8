"""CLIP's pictures."""

from __future__ import annotations

from jaxpool.images.fixed import FixedSize
from jaxpool.images.format import PictureFormat
from jaxpool.models.clip import Config
from jaxpool.tokens import Tokenizer


def make_reader(config: Config, pictures: PictureFormat, tokenizer: Tokenizer) -> FixedSize:
    """What reads the pictures of a checkpoint."""
    vision = config.vision
    return FixedSize(vision.image_size, vision.patch_size, pictures, ("CLIPImageProcessor",), front=1)
