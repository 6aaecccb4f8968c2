import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from udmlss.data import ImageFiles

GRAY = np.array([[0, 1], [128, 255]], np.uint8)
COLORS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def read(path, **options):
    image = ImageFiles([path], [-1], [], **options)[0][0]
    assert image.mode == "RGB"
    return np.asarray(image)


def read_gray(path, **options):
    red, green, blue = np.moveaxis(read(path, **options), 2, 0)
    assert (red == green).all()
    assert (green == blue).all()
    return red


def write_png(path, pixels, depth, color_type, *chunks):
    """Write rows of packed bytes as a PNG file of any bit depth and color type."""
    n_channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    rows = [bytes(row) for row in pixels]
    header = struct.pack(">IIBBBBB", len(rows[0]) * 8 // depth // n_channels, len(rows), depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
            for name, content in ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b""))
        )
    )
    return path


def write_tiff(path, pixels, *, bits=None, photometric=1, width=None):
    """Write an array (h, w) as a TIFF file; `bits` below 8 * itemsize needs packed bytes."""
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    bits = bits or 8 * pixels.itemsize
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    height, width = len(pixels), width or pixels.shape[1]
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)
    return path


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_applies_the_orientation_once(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLORS).save(tmp_path / name, exif=exif, lossless=True)
    image = ImageFiles([tmp_path / name], [-1], [])[0][0]
    np.testing.assert_array_equal(np.asarray(image), UPRIGHT[orientation](COLORS))
    np.testing.assert_array_equal(ImageOps.exif_transpose(image), image)  # as some transforms do


def test_applies_the_orientation_of_jpeg_and_of_16_bit_files(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLORS).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.jpg").shape == (3, 2, 3)
    np.testing.assert_array_equal(read_gray(tmp_path / "a.png"), np.rot90(GRAY, -1))


def smooth(height, width):
    """Return the pixels of a picture without sharp edges, which looks the same at every resolution."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([rows, columns, (rows + columns) / 2], 2) * 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    ("min_size", "expected"), [(None, (240, 400)), (121, (240, 400)), (120, (120, 200)), (31, (60, 100)), (1, (30, 50))]
)
def test_a_jpeg_is_decoded_at_the_lowest_resolution_that_min_size_permits(tmp_path, mode, min_size, expected):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth(400, 240)).convert(mode).save(tmp_path / "a.jpg", exif=exif, quality=95)
    found, full = read(tmp_path / "a.jpg", min_size=min_size), Image.fromarray(read(tmp_path / "a.jpg"))
    assert found.shape == (*expected, 3)
    np.testing.assert_allclose(found.astype(int), full.resize(expected[::-1], Image.Resampling.BOX), atol=6)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_min_size_does_not_change_other_formats(tmp_path, name):
    Image.fromarray(COLORS).resize((90, 80)).save(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name, min_size=1), read(tmp_path / name))


def test_a_truncated_jpeg_is_an_error_at_every_resolution(tmp_path):
    Image.effect_noise((200, 200), 50).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-60])
    for min_size in (None, 1):
        with pytest.raises(OSError, match=r"a\.jpg must be a complete image file, got .*truncated"):
            read(tmp_path / "a.jpg", min_size=min_size)


def test_an_image_can_be_sent_to_another_process(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        Image.fromarray(COLORS).save(tmp_path / name)
        image = ImageFiles([tmp_path / name])[0][0]
        assert pickle.loads(pickle.dumps(image)) == image  # noqa: S301 (pickled here)


@pytest.mark.parametrize("damage", [(b"\x06", b"\x63"), (b"MM\0*", b"MX\0*"), (b"\x01\x12\0\x03", b"\x01\x12\0\x0c")])
def test_ignores_a_damaged_orientation(tmp_path, damage):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    Image.fromarray(COLORS).save(tmp_path / "a.webp", exif=exif.tobytes().replace(*damage), lossless=True)
    np.testing.assert_array_equal(read(tmp_path / "a.webp"), COLORS)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_scales_16_bits(tmp_path, name):
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / name)
    np.testing.assert_array_equal(read_gray(tmp_path / name), GRAY)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.float32, [0, 0.25, 0.5, 1], [0, 64, 128, 255]),
        (np.float32, [0.5, 0.5, 0.5, 0.5], [128] * 4),
        (np.float32, [-1, 0, 2, 3], [0, 64, 191, 255]),
        (np.float32, [-1e38, 0, 0, 3e38], [0, 64, 64, 255]),
        (np.float32, [np.nan, -np.inf, 1, np.inf], [0, 0, 255, 255]),
        (np.float32, [np.nan, 10, 20, np.inf], [0, 0, 255, 255]),
        (np.float32, [np.nan] * 4, [0] * 4),
        (np.float32, [7] * 4, [0] * 4),
        (np.int32, [0, 1, 100, 255], [0, 1, 100, 255]),
        (np.int32, [0, 1000, 65_535, 100_000], [0, 3, 167, 255]),
        (np.int32, [-(2**31), 0, 0, 2**31 - 1], [0, 128, 128, 255]),
        (np.int16, [-1000, 0, 500, 3000], [0, 64, 96, 255]),
        (np.uint32, [0, 2**30, 2**31, 2**32 - 1], [0, 64, 128, 255]),
    ],
)
def test_scales_floating_point_and_32_bit_integers(tmp_path, dtype, values, expected):
    path = write_tiff(tmp_path / "a.tif", np.array(values, dtype).reshape(2, 2))
    assert read_gray(path).ravel().tolist() == expected


def test_scales_12_bits(tmp_path):
    packed = np.array([[0x00, 0x0F, 0xFF], [0x80, 0x00, 0x10]], np.uint8)  # 0, 4095 and 2048, 16
    path = write_tiff(tmp_path / "a.tif", packed, bits=12, width=2)
    assert read_gray(path).tolist() == [[0, 255], [128, 1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_inverts_tiff_files_in_which_white_is_zero(tmp_path, dtype):
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    path = write_tiff(tmp_path / "a.tif", (GRAY.astype(dtype) * dtype(scale)), photometric=0)
    np.testing.assert_array_equal(read_gray(path), 255 - GRAY)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_value_range_replaces_the_usual_range_and_clips(tmp_path, dtype):
    path = write_tiff(tmp_path / "a.tif", np.array([[0, 1000], [2000, 4095]], dtype))
    assert read_gray(path, value_range=(1000, 3000)).tolist() == [[0, 0], [128, 255]]
    Image.fromarray(GRAY).save(tmp_path / "8.png")
    np.testing.assert_array_equal(read_gray(tmp_path / "8.png", value_range=(1000, 3000)), GRAY)


@pytest.mark.parametrize(
    ("value_range", "error"),
    [
        ((1, 1), r"`value_range` must be ascending, got \(1, 1\)\. Pass the values of black and of white\."),
        ((0, np.nan), r"`value_range\[1\]` must be finite, got nan"),
    ],
)
def test_rejects_another_value_range(value_range, error):
    with pytest.raises(ValueError, match=error):
        ImageFiles(["a.png"], [-1], [], value_range=value_range)


@pytest.mark.parametrize(("color_type", "opacity"), [(0, []), (2, []), (4, [255, 255]), (6, [255, 255])])
def test_reads_16_bits_in_every_kind_of_png(tmp_path, color_type, opacity):
    n_colors = 1 if color_type in {0, 4} else 3
    pixel = [*[200, 200] * n_colors, *opacity]
    path = write_png(tmp_path / "a.png", [pixel * 2], 16, color_type)
    assert (read(path) == 200).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
@pytest.mark.parametrize("background", [WHITE, "red", (1, 2, 3), [np.uint8(1), 2, 3]])
def test_composites_transparent_pixels_onto_the_background(tmp_path, mode, background):
    image = Image.new("RGB", (3, 1), (100, 100, 100)).convert(mode.removesuffix("A") or "RGB")
    image.putalpha(Image.fromarray(np.array([[0, 51, 255]], np.uint8)))
    name = "a.tif" if mode == "PA" else "a.png"
    assert image.mode == mode
    image.save(tmp_path / name)
    [transparent, translucent, opaque] = read(tmp_path / name, background=background)[0].astype(int)
    background = RED if isinstance(background, str) else background
    assert transparent.tolist() == list(background)
    np.testing.assert_allclose(translucent, 0.2 * 100 + 0.8 * np.array(background), atol=1)
    np.testing.assert_allclose(opaque, 100, atol=2)  # the palette has no exact gray


def save_indexed(path, **options):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([9, 99, 199, *BLUE])
    image.save(path, **options)
    return path


def test_composites_transparent_colors_of_a_palette(tmp_path):
    for path in (
        save_indexed(tmp_path / "one.png", transparency=0),
        save_indexed(tmp_path / "opacities.png", transparency=b"\0\xff"),
        save_indexed(tmp_path / "a.gif", transparency=0),
    ):
        assert read(path, background=RED).tolist() == [[list(RED), list(BLUE)]], path
        assert read(path).tolist() == [[list(WHITE), list(BLUE)]], path


@pytest.mark.parametrize(
    ("depth", "row", "key"),
    [(1, [0b01000000], 1), (2, [0b01100000], 1), (4, [0x12], 1), (8, [1, 2], 1), (16, [1, 4, 1, 5], 260)],
)
def test_composites_a_transparent_gray_value_of_any_bit_depth(tmp_path, depth, row, key):
    path = write_png(tmp_path / "a.png", [row], depth, 0, (b"tRNS", struct.pack(">H", key)))
    columns = read(path, background=RED)[0, :2].tolist()
    assert (columns[0] == list(RED), columns[1] == list(RED)) == ((False, True) if depth == 1 else (True, False))


@pytest.mark.parametrize(("depth", "row"), [(8, [0, 0, 9, 9, 9, 9]), (16, [0, 0, 0, 0, 9, 1, 9, 9, 9, 9, 9, 9])])
def test_composites_a_transparent_color_of_any_bit_depth(tmp_path, depth, row):
    key = struct.pack(">3H", 0, 0, 9) if depth == 8 else bytes(row[:6])
    path = write_png(tmp_path / "a.png", [row], depth, 2, (b"tRNS", key))
    assert read(path, background=RED).tolist() == [[list(RED), [9, 9, 9]]]


def test_composites_premultiplied_alpha(tmp_path):
    Image.merge("RGBA", [Image.new("L", (2, 1), value) for value in (20, 0, 0, 51)]).save(tmp_path / "a.tif")
    path = tmp_path / "a.tif"
    extra_samples = struct.pack("<HHIH", 338, 3, 1, 2)
    assert extra_samples in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(extra_samples, struct.pack("<HHIH", 338, 3, 1, 1)))
    assert read(path, background=BLUE)[0, 0].tolist() == [20, 0, 204]


@pytest.mark.parametrize("background", ["no color", "#12345678", (0, 0), (0, 0, 256), (0, -1, 0), 3])
def test_rejects_another_background(monkeypatch, background):
    import jaxtyping  # noqa: PLC0415

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"`background` must be a color: .*, got .*\. Pass, for example, \(255, 255"):
        ImageFiles(["a.png"], [-1], [], background=background)


def test_reads_one_bit_and_ycbcr(tmp_path):
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "1.png")
    assert read(tmp_path / "1.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]
    Image.new("RGB", (2, 1), RED).convert("YCbCr").save(tmp_path / "y.tif")
    np.testing.assert_allclose(read(tmp_path / "y.tif")[0, 0], RED, atol=2)


def test_reads_lab(tmp_path):
    neutral = Image.new("LAB", (1, 1), (128, 128, 128))  # Pillow adds 128 to a and b in memory
    neutral.save(tmp_path / "a.tif")
    assert b"\x80\0\0" in (tmp_path / "a.tif").read_bytes()
    np.testing.assert_allclose(read(tmp_path / "a.tif"), 119, atol=1)  # the gray of sRGB with a lightness of 50
    Image.new("LAB", (1, 1), (128, 128, 68)).save(tmp_path / "b.tif")
    red, _, blue = read(tmp_path / "b.tif")[0, 0].astype(int)
    assert blue - red > 150


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_reads_cmyk(tmp_path, name):
    Image.new("CMYK", (8, 8), (0, 255, 255, 51)).save(tmp_path / name)
    np.testing.assert_allclose(read(tmp_path / name)[0, 0], (204, 0, 0), atol=2)


def test_reads_ycck(tmp_path):
    # The file stores 255 - CMYK, and YCC is that of CMY. Pillow subtracts from 255 when it writes.
    ycc = np.array(Image.new("RGB", (8, 8), (0, 255, 255)).convert("YCbCr"))
    stored = np.concatenate([ycc, np.full((8, 8, 1), 255 - 51, np.uint8)], 2)
    Image.fromarray(255 - stored, "CMYK").save(tmp_path / "a.jpg", quality=100)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    (tmp_path / "a.jpg").write_bytes(data)
    np.testing.assert_allclose(read(tmp_path / "a.jpg")[0, 0], (204, 0, 0), atol=3)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_reads_the_first_frame_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (2, 2), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 2
    assert (read(tmp_path / name) == RED).all()


def test_a_changed_byte_in_the_pixels_of_a_png_is_noticed(tmp_path):
    path = write_png(tmp_path / "a.png", [[1, 2, 3, 4]], 8, 0)
    assert read_gray(path).tolist() == [[1, 2, 3, 4]]
    path.write_bytes(path.read_bytes().replace(bytes([1, 2, 3, 4]), bytes([1, 2, 3, 5])))
    with pytest.raises(OSError, match=rf"{path} must be a complete image file, got .*\. Download or unpack it again"):
        read(path)


def test_an_image_above_the_limit_of_pillow_is_not_called_damaged(tmp_path, monkeypatch):
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(
        OSError, match=r"a\.png must not be larger than Pillow permits, got .*\. Raise PIL\.Image\.MAX_"
    ):
        read(tmp_path / "a.png")


def test_errors_of_every_type_contain_the_path(tmp_path, monkeypatch):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match=r"a\.png must be a complete image file, got ZeroDivisionError\."):
        read(tmp_path / "a.png")
