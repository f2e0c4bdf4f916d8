"""What a checkpoint says of pictures: preprocessor_config.json, or a part of transformers 5's processor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.converters.checkpoint import read_json

FILES = ("preprocessor_config.json", "processor_config.json")
# transformers' names of one processor: of torchvision's, of pillow's, of the first versions'.
_ENDINGS = ("Fast", "Pil")
_WITHIN_1 = 1 / 255


@dataclass(frozen=True)
class PictureFormat:
    """How pictures become what a tower sees.

    Attributes:
        processor: transformers' name of the class that cuts and resizes them, without "Fast" or "Pil".
        mean, std: of each colour, of values in 0 … 1; the tower sees (value − mean) / std.
        settings: the processor's other settings.
        options: of them, those that the user of the instance set.
        room: most tokens of a text that pictures stand in; None: as many as the model takes.
    """

    processor: str = ""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    room: int | None = None

    def with_options(self, options: Mapping[str, Any]) -> PictureFormat:
        """The same with a user's own settings: vLLM's `mm_processor_kwargs` of an instance."""
        return replace(self, settings={**self.settings, **options}, options=dict(options))

    def normalise(self, pixels: jax.Array) -> jax.Array:
        """Bytes […, C], a colour behind the other, as float32 of mean 0 and deviation 1."""
        each = pixels.shape[-1] // len(self.mean)
        mean, std = (jnp.repeat(jnp.asarray(values, jnp.float32), each) for values in (self.mean, self.std))
        return (pixels.astype(jnp.float32) * _WITHIN_1 - mean) / std


def read_format(directory: Path) -> PictureFormat:
    """Reads a model directory.

    Raises:
        ValueError: no such file, or one that scales pictures in a way that is not understood; file and key are named.
    """
    file, values = _find(directory)
    settings = dict(values)
    named = settings.pop("image_processor_type", None) or settings.pop("feature_extractor_type", None)
    settings.pop("feature_extractor_type", None)
    if not isinstance(named, str):
        raise ValueError(f"{file}: `image_processor_type` is {named!r}, expected the name of a processor")
    processor = named.replace("FeatureExtractor", "ImageProcessor")
    for ending in _ENDINGS:
        processor = processor.removesuffix(ending)
    if settings.pop("do_rescale", True) is False:
        raise ValueError(f"{file}: `do_rescale` is false, and only bytes scaled to 0 … 1 are understood")
    factor = settings.pop("rescale_factor", None)
    if factor is not None and abs(factor - _WITHIN_1) > 1e-9:
        raise ValueError(f"{file}: `rescale_factor` is {factor}, expected {_WITHIN_1}")
    mean, std = (_colours(file, name, settings.pop(name, None)) for name in ("image_mean", "image_std"))
    if settings.pop("do_normalize", True) is False:
        mean, std = PictureFormat.mean, PictureFormat.std
    return PictureFormat(processor, mean, std, settings)


def _find(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    for name in FILES:
        file = directory / name
        values = read_json(file) if file.exists() else {}
        if isinstance(values, dict) and isinstance(values.get("image_processor"), dict):
            values = values["image_processor"]
        if isinstance(values, dict) and (values.keys() & {"image_processor_type", "feature_extractor_type"}):
            return file, values
    raise ValueError(f"{directory}: no {' or '.join(FILES)} that names an image processor; the model takes pictures")


def _colours(file: Path, name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise ValueError(f"{file}: `{name}` is {values!r}, expected three numbers")
    return tuple(map(float, values))
