"""transformers' image processors, which cut and resize with pillow alone; normalising is the program's work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from jaxpool.images.format import PictureFormat
from jaxpool.log import without_complaints

Processor = Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]

# Of vLLM's `mm_processor_kwargs`: what stays the program's.
_OURS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "return_tensors")
_importing = threading.Lock()


def load_processor(pictures: PictureFormat, known: Collection[str]) -> Processor:
    """The checkpoint's processor: (picture, options) -> what it makes of one picture, in bytes.

    Args:
        pictures: what the checkpoint says.
        known: names of the processors that the family understands.

    Raises:
        ValueError: another one.
        ImportError: pillow is not installed.
    """
    if pictures.processor not in known:
        raise ValueError(f"image processor {pictures.processor!r} is not understood, expected one of {sorted(known)}")
    with _importing, without_complaints():
        import transformers

        made = getattr(transformers, f"{pictures.processor}Pil")(
            **pictures.settings, do_rescale=False, do_normalize=False
        )

    def process(image: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
        if ours := sorted(set(options) & set(_OURS)):
            raise ValueError(f"mm_processor_kwargs: {ours} are the checkpoint's own affair")
        if unknown := sorted(set(options) - set(made.valid_kwargs.__annotations__) - set(made.to_dict())):
            raise ValueError(f"mm_processor_kwargs: {unknown} are not known to {pictures.processor}")
        resample = options.get("resample")
        if resample is not None and resample not in range(6):  # transformers would take bilinear
            raise ValueError(f"mm_processor_kwargs: `resample` is {resample!r}, expected one of pillow's numbers 0 … 5")
        try:
            made_of: Mapping[str, Any] = made.preprocess([image], **options)
        except (ImportError, MemoryError, OSError, ValueError):
            raise
        except Exception as error:  # it looks at its settings late, and at some not at all
            raise ValueError(
                f"mm_processor_kwargs, or the checkpoint's own: {type(error).__name__}: {error}"
            ) from error
        return made_of

    return process


def cut(image: np.ndarray, patch: int) -> np.ndarray:
    """Bytes [3, H, W] -> patches [H/p, W/p, 3·p·p], each a colour behind the other."""
    _, height, width = image.shape
    grid = image.reshape(3, height // patch, patch, width // patch, patch).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(grid).reshape(height // patch, width // patch, -1)
