"""What comes of whatever is given as a picture: RGB, upright, or an error that says what is wrong."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest

from jaxpool.images.opening import Limits, open_image

Image = pytest.importorskip("PIL.Image")

NAME = "prompts[3]['multi_modal_data']['image']"
USUAL = Limits()
GREY = np.array([[0, 128, 129], [257, 40_000, 65_535]], np.uint16)
GREY_IN_8_BITS = [[0, 0, 1], [1, 156, 255]]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def written(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width, height):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def pixels(given, **options):
    image = open_image(given, NAME, **options)
    assert image.mode == "RGB"
    assert image.format is None or isinstance(given, bytes)
    return np.asarray(image)


def refused(given, match, limits=USUAL):
    with pytest.raises(ValueError, match=match) as caught:
        open_image(given, NAME, limits)
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith(f"{NAME}: ")
    assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_files_without_loss(kind, tmp_path):
    colours = noise(5, 7, 3)
    content = written(Image.fromarray(colours), kind, **({"lossless": True} if kind == "WEBP" else {}))
    (tmp_path / "picture").write_bytes(content)
    for given in (content, tmp_path / "picture", str(tmp_path / "picture")):
        np.testing.assert_array_equal(pixels(given), colours)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "MPO", "AVIF"])
def test_files_with_loss(kind):
    image = Image.new("RGB", (8, 6), (200, 100, 50))
    try:
        content = written(image, kind)
    except (KeyError, OSError):
        pytest.skip(f"this pillow writes no {kind}")
    np.testing.assert_allclose(pixels(content), np.broadcast_to([200, 100, 50], (6, 8, 3)), atol=8)


def test_one_pixel():
    assert pixels(written(Image.new("1", (1, 1), 1), "PNG")).tolist() == [[[255] * 3]]
    assert pixels(np.zeros((1, 1), np.uint8)).tolist() == [[[0] * 3]]


def test_the_image_itself_is_left_alone():
    given = Image.fromarray(noise(4, 4, 3))
    opened = open_image(given, NAME)
    assert opened is not given
    opened.putpixel((0, 0), (1, 2, 3))
    assert given.getpixel((0, 0)) == tuple(noise(4, 4, 3)[0, 0])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_as_pil_converts_them(mode):
    image = Image.fromarray(noise(6, 5, 4), "RGBA" if mode in ("RGBA", "LA") else None).convert("RGBA")
    image = (image if mode in ("RGBA", "LA") else image.convert("RGB")).convert(mode)
    np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))


@pytest.mark.filterwarnings("error")
def test_transparency_is_dropped():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert pixels(written(image, "PNG")).tolist() == [[[10, 20, 30]] * 2] * 2
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(written(palette, "PNG", transparency=b"\x00\x80")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(written(palette, "GIF", transparency=0)).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_cmyk_jpeg():
    content = written(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(pixels(content), np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_rather_than_cut(kind):
    opened = pixels(written(Image.fromarray(GREY), kind))
    assert opened[..., 0].tolist() == GREY_IN_8_BITS
    np.testing.assert_array_equal(opened, np.repeat(opened[..., :1], 3, 2))


def test_sixteen_bits_of_a_tiff_from_the_other_end():
    image = Image.frombytes("I;16B", (3, 2), GREY.astype(">u2").tobytes())
    assert pixels(image)[..., 0].tolist() == GREY_IN_8_BITS
    assert pixels(written(image, "TIFF"))[..., 0].tolist() == GREY_IN_8_BITS


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range(mode):
    refused(Image.new(mode, (2, 2)), f"mode '{mode}'")
    refused(written(Image.new(mode, (2, 2)), "TIFF"), f"mode '{mode}'")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("grey", [False, True])
def test_exif_orientation(kind, grey):
    if grey and kind in ("JPEG", "WEBP"):
        pytest.skip("no 16 bits there")
    exif = Image.Exif()
    exif[0x0112] = 6
    colours = np.zeros((16, 32, 3), np.uint8)
    colours[:, :16] = 255
    image = Image.fromarray(colours[..., 0].astype(np.uint16) * 257 if grey else colours)
    opened = pixels(written(image, kind, exif=exif))
    # The left half comes to lie on top.
    assert opened.shape == (32, 16, 3)
    assert opened[2:14].min() > 240
    assert opened[18:30].max() < 15


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame(kind):
    first, *others = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    content = written(
        first, kind, save_all=True, append_images=others, **({"lossless": True} if kind == "WEBP" else {})
    )
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert pixels(content).tolist() == [[[255, 0, 0]] * 4] * 4


def test_bombs_are_not_decoded(monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    refused(png_header(60_000, 60_000), "more pixels than PIL opens")
    refused(png_header(2**31 - 1, 2**31 - 1), "more pixels than PIL opens")
    with pytest.warns(Image.DecompressionBombWarning):
        refused(png_header(10_000, 10_000), "10000×10000 pixels, at most 89478485")
    refused(png_header(11, 10), "11×10 pixels, at most 100", Limits(pixels=100))
    refused(Image.new("L", (11, 10)), "at most 100", Limits(pixels=100))
    refused(np.zeros((11, 10), np.uint8), "10×11 pixels, at most 100", Limits(pixels=100))


@pytest.mark.filterwarnings("error")
def test_warnings_as_errors():
    refused(png_header(10_000, 10_000), "more pixels than PIL opens")


def test_bytes_are_limited(tmp_path):
    content = written(Image.new("L", (2, 2)), "PNG")
    (tmp_path / "picture.png").write_bytes(content)
    for given in (content, tmp_path / "picture.png"):
        open_image(given, NAME, Limits(bytes=len(content)))
        refused(given, "more than the 10 bytes", Limits(bytes=10))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_cut_off_at_every_place(kind):
    content = written(Image.fromarray(noise(24, 24, 3)), kind)
    for size in range(1, len(content), max(1, len(content) // 60)):
        try:
            open_image(content[:size], NAME)
        except ValueError as error:
            assert str(error).startswith(f"{NAME}: ")  # noqa: PT017 - some ends can be spared
    refused(content[: len(content) // 2], "broken|no picture")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_bits_that_fell_over(kind):
    content = bytearray(written(Image.fromarray(noise(12, 12, 3)), kind))
    random = np.random.default_rng(1)
    for _ in range(150):
        broken = content.copy()
        for place in random.integers(0, min(len(content), 200), 3):
            broken[place] = random.integers(0, 256)
        try:
            assert open_image(bytes(broken), NAME, Limits(pixels=10_000)).mode == "RGB"
        except ValueError as error:
            assert str(error).startswith(f"{NAME}: ")  # noqa: PT017


@pytest.mark.parametrize(
    "content",
    [
        b"just a text\n" * 20,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"\x00" * 100,
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_no_picture(content, tmp_path):
    refused(content, "no picture in a format that is read|broken")
    (tmp_path / "picture.eps").write_bytes(content)
    refused(tmp_path / "picture.eps", "no picture in a format that is read|broken")


def test_ghostscript_is_never_asked(monkeypatch):
    file = written(Image.new("RGB", (4, 4)), "EPS")
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("a program was run"))
    refused(file, "no picture in a format that is read")


def test_zero_sizes():
    refused(b"", "is empty")
    refused(Image.new("RGB", (0, 4)), "0×4 pixels")
    refused(np.zeros((0, 4), np.uint8), "4×0 pixels")
    refused(np.zeros((4, 0, 3), np.float32), "0×4 pixels")
    refused(png_header(0, 4), "0×4 pixels|broken|no picture")


@pytest.mark.parametrize("path", ["nowhere.png", "", "\0", "a" * 5000, "https://example.com/a.png", "/dev/null", "/"])
def test_paths_that_are_no_files(path):
    refused(path, "no file|cannot be read")


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"x")

    def denied(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)
    refused(tmp_path / "a.png", "a.png' cannot be read: Permission denied")


def test_arrays():
    colours = noise(4, 5, 4)
    np.testing.assert_array_equal(pixels(colours), colours[..., :3])
    np.testing.assert_array_equal(pixels(colours[::-1, ::2, :3]), colours[::-1, ::2, :3])
    np.testing.assert_array_equal(pixels(colours[..., 0]), np.repeat(colours[..., :1], 3, 2))
    np.testing.assert_array_equal(pixels(colours[..., :1]), np.repeat(colours[..., :1], 3, 2))
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(pixels((colours / 255).astype(dtype)), colours[..., :3])
    for dtype in ("<u2", ">u2"):
        assert pixels(GREY.astype(dtype))[..., 0].tolist() == GREY_IN_8_BITS


@pytest.mark.parametrize("shape", [(), (4,), (3, 4, 5), (2, 4, 4, 3), (4, 4, 2), (4, 4, 0)])
def test_wrong_shapes(shape):
    refused(np.zeros(shape, np.uint8), r"expected an array \[H, W\]")


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint32, bool, complex, object, "U3"])
def test_wrong_dtypes(dtype):
    refused(np.zeros((4, 4), dtype), "expected an array of uint8")


def test_sixteen_bits_in_colour():
    refused(np.zeros((4, 4, 3), np.uint16), r"uint16, got uint16 \[4, 4, 3\]")


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, np.nan, np.inf])
def test_floats_out_of_range(value):
    array = np.zeros((4, 4), np.float32)
    array[2, 2] = value
    refused(array, "floats in 0…1")


@pytest.mark.parametrize("given", [None, 3, [[0, 1]], {"image": b""}, io.BytesIO(b""), object()])
def test_wrong_types(given):
    refused(given, f"got {type(given).__name__}")


def test_pils_globals_stay():
    from PIL import ImageFile

    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    open_image(written(Image.new("L", (2, 2)), "PNG"), NAME, Limits(pixels=10**12))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxpool\[images\]'"):
        open_image(b"", NAME)
