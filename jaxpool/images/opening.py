"""Whatever a user gives as a picture -> an image of PIL's in mode RGB.

Nothing is decoded before its header has been checked: a file of a few bytes may ask for gigabytes. Formats that PIL
hands to other programs (EPS) are not read at all.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Raster formats that PIL decodes itself. Files of several photographs (MPO) are opened as JPEG.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# PIL opens these files' 16-bit grey as "I" (PNG: its older versions). From elsewhere the range of "I" is not known.
_SIXTEEN_BITS_IN_I = ("PNG", "PPM")


@dataclass(frozen=True)
class Limits:
    """Limits of one picture.

    Attributes:
        pixels: width times height. PIL has a limit of its own, twice this default, that a higher one does not lift.
        bytes: of a file, as it lies there.
    """

    pixels: int = 89_478_485
    bytes: int = 32 * 2**20

    def check_pixels(self, width: int, height: int) -> None:
        """Raises _PictureError for a picture that is empty or too large."""
        if width < 1 or height < 1:
            raise _PictureError(f"is {width}×{height} pixels, expected at least 1×1")
        if width * height > self.pixels:
            raise _PictureError(f"is {width}×{height} pixels, at most {self.pixels} pixels are allowed")


class _PictureError(Exception):
    """What is wrong with a picture; `open_image` puts its name in front."""


def open_image(given: Any, name: str, limits: Limits = Limits()) -> Image:
    """A picture in mode RGB, upright (EXIF's rotation is applied); never the object that was given.

    Transparency is dropped, as transformers drops it: the colours below it show. Grey of 16 bits is scaled to 8. Of
    an animation or of several pages the first is taken.

    Args:
        given: an image of PIL's (its current frame), a numpy array ([H, W] or [H, W, 1 | 3 | 4] of uint8 or of floats
            in 0…1, or [H, W] of uint16), the bytes of a file, or a path of one.
        name: how errors call it, for instance "prompts[3]['multi_modal_data']['image']".
        limits: on what is opened.

    Raises:
        ImportError: pillow is not there.
        ValueError: it is no picture, broken, too large, or of a kind that has no meaning in RGB.
    """
    try:
        from PIL.Image import Image as PILImage
    except ImportError as error:
        raise ImportError(f"pictures need pillow ({error}): pip install 'jaxpool[images]'") from error
    try:
        if isinstance(given, PILImage):
            return _rgb(given, limits)
        if isinstance(given, np.ndarray):
            return _from_array(given, limits)
        if isinstance(given, bytes):
            return _from_bytes(given, limits)
        if isinstance(given, str | os.PathLike):
            return _from_bytes(_read(Path(os.fsdecode(given)), limits), limits)
    except _PictureError as error:
        # PIL's own errors say nothing to a user, and name addresses and files of the host.
        raise ValueError(f"{name}: {error}") from None
    raise ValueError(f"{name}: expected an image of PIL's, a numpy array, bytes or a path, got {type(given).__name__}")


def _read(path: Path, limits: Limits) -> bytes:
    shown = repr(str(path)[:200])
    try:
        # A pipe or a device would be waited for.
        if not path.is_file():
            raise _PictureError(f"there is no file {shown}")
        with path.open("rb") as file:
            return file.read(limits.bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no valid path"
        raise _PictureError(f"the file {shown} cannot be read: {reason}") from None


def _from_bytes(content: bytes, limits: Limits) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise _PictureError("is empty")
    if len(content) > limits.bytes:
        raise _PictureError(f"has more than the {limits.bytes} bytes that are allowed")
    try:
        image = Image.open(io.BytesIO(content), formats=_formats())
    except UnidentifiedImageError:
        kinds = ", ".join(_formats())
        raise _PictureError(f"is no picture in a format that is read ({kinds}), or its header is broken") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _PictureError("has more pixels than PIL opens") from None
    except Exception:  # of a broken header nearly anything comes: OSError, KeyError, OverflowError, zlib.error, …
        raise _PictureError("is a picture with a broken header") from None
    with image:
        return _rgb(image, limits)


@cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    # PIL may be built without some of them, and fails over a name that it does not know.
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _rgb(image: Image, limits: Limits) -> Image:
    from PIL import Image, ImageOps

    kind = image.format or "image"
    limits.check_pixels(*image.size)
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS_IN_I)
    if not wide and image.mode in ("I", "F"):
        raise _PictureError(f"is of mode {image.mode!r}, whose range is not known; expected 8 or 16 bits")
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        # It is dropped in any case, and of a palette's PIL would warn.
        upright.info.pop("transparency", None)
        # PIL itself would cut 16 bits off at 255.
        return (Image.fromarray(_eight_bits(np.asarray(upright))) if wide else upright).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _PictureError("has more pixels than PIL opens") from None
    except Exception:  # as above
        raise _PictureError(f"the {kind} is broken, cut off, or cannot be shown in RGB") from None


def _from_array(array: np.ndarray, limits: Limits) -> Image:
    from PIL import Image

    shape, dtype = array.shape, array.dtype
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise _PictureError(f"expected an array [H, W] or [H, W, 1 | 3 | 4], got the shape {list(shape)}")
    limits.check_pixels(shape[1], shape[0])
    if np.issubdtype(dtype, np.floating):
        # NaN is neither.
        if not (array.min() >= 0 and array.max() <= 1):
            raise _PictureError("expected floats in 0…1, got others")
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    elif dtype.kind == "u" and dtype.itemsize == 2 and array.ndim == 2:
        array = _eight_bits(array)
    elif dtype != np.uint8:
        raise _PictureError(
            f"expected an array of uint8, of floats in 0…1, or [H, W] of uint16, got {dtype} {list(shape)}"
        )
    if array.ndim == 3:
        array = array[..., 0] if shape[2] == 1 else array[..., :3]
    return Image.fromarray(array).convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    # The nearest to value / 257, which takes 65535 to 255.
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
