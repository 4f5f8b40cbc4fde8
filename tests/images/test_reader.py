"""Reading pictures and masks: what they mean, and that broken or hostile ones are one line; sizes for a model."""

from __future__ import annotations

import io
import pathlib
import re
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from kerasdiff import RequestError
from kerasdiff.images.reader import MAX_PIXELS, MAX_SIDE, fit_size, prepare, read, read_mask

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype="uint8")
TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}}


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def zeros(count):
    """A zlib stream of so many zeros, made without them: equal blocks, and Adler-32 by its formula."""
    size = 2**20
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(size)) + deflate.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    last = rest.compress(bytes(count % size)) + rest.flush()
    return b"\x78\xda" + block * (count // size) + last + struct.pack(">HH", count % 65521, 1)


def black_png(height, width):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zeros(height * (1 + 3 * width))) + chunk(b"IEND", b"")


def read_bytes(folder, data, how=read):
    path = folder / "picture.png"
    path.write_bytes(data)
    return how(path)


def outcome(call, *arguments):
    """What a call gives back, or the line that it refuses with."""
    try:
        return call(*arguments)
    except RequestError as error:
        return str(error)


def refusal(call, *arguments):
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= 300
    return message


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (5000, 3), (3, 5000)])
def test_every_source_gives_the_same_pixels(tmp_path, shape):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype="uint8")
    for kind, options in LOSSLESS.items():
        path = tmp_path / f"a.{kind}"
        path.write_bytes(encoded(pixels, kind, **options))
        assert np.array_equal(read(path), pixels)
        assert np.array_equal(read(str(path)), pixels)
    for source in (pixels, Image.fromarray(pixels), pixels / 255, (pixels / 255).astype("float16")):
        assert np.array_equal(read(source), pixels)
    assert read(pixels).dtype == np.uint8


def test_what_is_read_is_a_copy():
    source = PICTURE.copy()
    read(source)[:] = 0
    assert np.array_equal(source, PICTURE)


def test_a_jpeg_is_read_nearly_exactly(tmp_path):
    smooth = np.repeat(np.linspace(0, 255, 64).astype("uint8")[None, :, None], 48, 0).repeat(3, 2)
    assert np.abs(read_bytes(tmp_path, encoded(smooth, "JPEG", quality=95)).astype(int) - smooth).max() <= 4


def test_a_jpeg_for_printing_is_converted(tmp_path):
    inks = Image.new("CMYK", (16, 8), (0, 255, 255, 0))
    colour = read_bytes(tmp_path, encoded(inks, "JPEG", quality=95))
    assert colour.shape == (8, 16, 3)
    assert np.abs(colour.astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = TURNS[orientation](PICTURE)
    data = encoded(PICTURE, kind, exif=exif, **LOSSLESS[kind])
    assert np.array_equal(read_bytes(tmp_path, data), expected)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(read(opened), expected)
    bright = np.where(expected[:, :, :1] >= 128, np.uint8(255), np.uint8(0))
    source = np.where(PICTURE[:, :, :1] >= 128, np.uint8(255), np.uint8(0)).repeat(3, 2)
    mask = read_bytes(tmp_path, encoded(source, kind, exif=exif, **LOSSLESS[kind]), read_mask)
    assert np.array_equal(mask, bright[:, :, 0] / 255)


def test_greyscale_has_three_equal_channels():
    grey = PICTURE[:, :, 0]
    for source in (grey, grey[:, :, None], Image.fromarray(grey), grey / 255):
        assert np.array_equal(read(source), np.repeat(grey[:, :, None], 3, 2))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
def test_a_mask_of_zeros_and_ones_is_read_as_such(tmp_path, dtype):
    ones, sources = np.array([[0, 1, 1, 0], [0, 0, 1, 0]], dtype), []
    for array in (ones, ones[:, :, None].repeat(3, 2)):
        assert np.array_equal(read_mask(array), ones)
        assert np.array_equal(read_mask(array, invert=True), 1 - ones)
    if dtype in ("uint8", "uint16"):
        Image.fromarray(ones).save(tmp_path / "ones.png")
        sources = [Image.fromarray(ones), tmp_path / "ones.png"]
    for source in sources:
        with pytest.warns(UserWarning, match="mask has no values but 0 and 1, of 255; 1 is read as white"):
            assert np.array_equal(read_mask(source), ones)
        with pytest.warns(UserWarning, match="no values but 0 and 1"):
            assert np.array_equal(read_mask(source, invert=True), 1 - ones)
    assert not read_mask(0 * ones).any()
    if dtype.startswith("int"):
        assert f"dtype {dtype}" in refusal(read_mask, 255 * ones)


HOLE = np.array([[0, 0, 255, 255, 0], [0, 255, 255, 0, 0]], "uint8")
COLOURS = PICTURE[:2, :5]


def layer(colour, alpha=HOLE):
    return np.dstack([np.broadcast_to(np.uint8(colour), (2, 5, 3)), alpha])


def test_white_strokes_on_transparency_are_a_mask():
    assert np.array_equal(read_mask(layer(255)), HOLE / 255)
    assert np.array_equal(read_mask(layer(255), invert=True), 1 - HOLE / 255)


def test_black_strokes_on_transparency_cover_nothing_unless_the_mask_is_inverted():
    assert not read_mask(layer(0)).any()
    with pytest.warns(UserWarning, match="what is black and opaque is repainted, 40% of it: save it as white on black"):
        assert np.array_equal(read_mask(layer(0), invert=True), HOLE / 255)
    assert read_mask(layer(0, np.zeros_like(HOLE)), invert=True).all()  # there are no strokes


def test_colours_and_transparency_that_disagree_are_told_how_they_are_read():
    """As in a copy of the picture in which something was erased."""
    erased, bright = layer(COLOURS, 255 - HOLE), read_mask(COLOURS) * (HOLE == 0)
    assert 0 < bright.sum() < (HOLE == 0).sum()
    with pytest.warns(UserWarning, match="say different things; what is white and opaque is repainted"):
        assert np.array_equal(read_mask(erased), bright)
    with pytest.warns(UserWarning, match="what is black or transparent is repainted"):
        assert np.array_equal(read_mask(erased, invert=True), 1 - bright)
    assert np.array_equal(read_mask(layer(COLOURS, np.full_like(HOLE, 255))), read_mask(COLOURS))


def test_a_mask_in_any_mode_is_inverted(tmp_path):
    grey = Image.fromarray(HOLE)
    palette = grey.convert("P")
    for image in (grey, palette, grey.convert("1"), grey.convert("RGB"), Image.fromarray(HOLE.astype("uint16") * 257)):
        image.save(tmp_path / "mask.png")
        for source in (image, tmp_path / "mask.png"):
            assert np.array_equal(read_mask(source), HOLE / 255)
            assert np.array_equal(read_mask(source, invert=True), 1 - HOLE / 255)


def test_16_bits_are_scaled(tmp_path):
    deep = np.array([[0, 128, 129, 257, 32767], [32768, 65278, 65406, 65407, 65535]], "uint16")
    expected = np.array([[0, 0, 1, 1, 127], [128, 254, 254, 255, 255]], "uint8")
    wide = Image.fromarray(deep.astype("int32"))
    assert wide.mode == "I"
    assert Image.fromarray(deep).mode == "I;16"
    path = tmp_path / "deep.png"
    Image.fromarray(deep).save(path)
    for source in (deep, deep.astype(">u2"), np.stack([deep] * 3, 2), Image.fromarray(deep), wide, path):
        assert np.array_equal(read(source), np.repeat(expected[:, :, None], 3, 2))
        assert np.array_equal(read_mask(source), expected >= 128)
    assert "from -1 to 3" in refusal(read, Image.fromarray(np.array([[-1, 3]], "int32")))


def test_transparency_is_white_in_pictures_and_black_in_masks(tmp_path):
    clear = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [250, 250, 250, 0], [0, 0, 0, 51]]], "uint8")
    for source in (clear, Image.fromarray(clear), Image.fromarray(clear).convert("RGBa")):
        assert read(source)[0].tolist() == [[10, 20, 30], [255] * 3, [255] * 3, [204] * 3]
    path = tmp_path / "clear.webp"
    Image.fromarray(clear).save(path, lossless=True, exact=True)
    assert read(path)[0].tolist() == [[10, 20, 30], [255] * 3, [255] * 3, [204] * 3]
    covers = np.array([[[255, 255, 255, 255], [255, 255, 255, 0], [255, 255, 255, 128], [255, 255, 255, 127]]], "uint8")
    assert read_mask(covers).tolist() == [[1, 0, 1, 0]]
    two = Image.fromarray(covers).convert("LA")
    assert read_mask(two).tolist() == [[1, 0, 1, 0]]
    assert read(two)[0, 1].tolist() == [255] * 3


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
def test_a_palette_may_be_transparent(tmp_path, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    pixels = read_bytes(tmp_path, encoded(image, "PNG", transparency=transparency))
    assert pixels[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_an_animation_is_its_first_frame_and_that_is_said(tmp_path, kind, options):
    frames = [Image.fromarray(np.roll(PICTURE, shift, 1)) for shift in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match="has more than one frame or page; the first one is read"):
        found = read_bytes(tmp_path, data)
    assert np.abs(found.astype(int) - PICTURE).max() <= (8 if kind == "AVIF" else 0)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_scans_are_read(tmp_path, options):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(read_bytes(tmp_path, encoded(PICTURE, "TIFF", **options)), PICTURE)
    assert np.array_equal(read_bytes(tmp_path, encoded(PICTURE, "TIFF", exif=exif, **options)), TURNS[6](PICTURE))
    deep = np.array([[0, 257, 32768, 65535]], "uint16")
    for values in (deep, deep.astype(">u2")):
        data = encoded(Image.fromarray(values), "TIFF")
        assert read_bytes(tmp_path, data)[0, :, 0].tolist() == [0, 1, 128, 255]
    inks = read_bytes(tmp_path, encoded(Image.fromarray(PICTURE).convert("CMYK"), "TIFF", **options))
    assert np.array_equal(inks, PICTURE)


def test_bitmaps_gifs_and_avif_are_read(tmp_path):
    assert np.array_equal(read_bytes(tmp_path, encoded(PICTURE, "BMP")), PICTURE)
    assert np.array_equal(read_bytes(tmp_path, encoded(PICTURE[:, :, 0], "GIF"))[:, :, 1], PICTURE[:, :, 0])
    smooth = np.repeat(np.linspace(0, 255, 64).astype("uint8")[None, :, None], 48, 0).repeat(3, 2)
    exif = Image.Exif()
    exif[0x0112] = 8
    found = read_bytes(tmp_path, encoded(smooth, "AVIF", quality=95, exif=exif))
    assert np.abs(found.astype(int) - TURNS[8](smooth)).max() <= 6


def with_chunks(*chunks, last=()):
    """A PNG of `PICTURE`, lying on its side, with chunks before and behind its pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PICTURE, "PNG", exif=exif)
    place = data.index(b"IDAT") - 4
    end = data.index(b"IEND") - 4
    return data[:place] + b"".join(chunks) + data[place:end] + b"".join(last) + data[end:]


LONG = b'"n": 1, ' * 400_000
BROKEN = {
    "a long workflow": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG)),
    "a long workflow in UTF-8": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LONG)),
    "a damaged text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG)[:100]),
    "an unknown compression": chunk(b"zTXt", b"workflow\0\7abc"),
    "a damaged profile": chunk(b"iCCP", b"sRGB\0\7" + zlib.compress(bytes(99))),
    "a profile that swells": chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(bytes(2**22))),
    "a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "a short resolution": chunk(b"pHYs", b"\0"),
    "a short gamma": chunk(b"gAMA", b"\0"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_beside_the_pixels_may_be_large_or_damaged(tmp_path, broken):
    for data in (with_chunks(BROKEN[broken]), with_chunks(last=[BROKEN[broken]])):
        assert np.array_equal(read_bytes(tmp_path, data), TURNS[6](PICTURE))


def test_a_whole_library_of_texts_is_no_bomb(tmp_path):
    texts = [chunk(b"zTXt", b"k%d\0\0" % number + zlib.compress(bytes(2**20 - 9))) for number in range(70)]
    assert np.array_equal(read_bytes(tmp_path, with_chunks(*texts)), TURNS[6](PICTURE))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_says_nothing(tmp_path, kind):
    smooth = np.full((16, 24, 3), 90, "uint8")
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        found = read_bytes(tmp_path, encoded(smooth, kind, exif=exif))
        assert found.shape == (16, 24, 3)
        assert np.abs(found.astype(int) - 90).max() <= 2


def test_transparency_of_a_png_is_kept_where_its_texts_are_broken(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    info = PngInfo()
    info.add_text("workflow", LONG.decode(), zip=True)
    pixels = read_bytes(tmp_path, encoded(image, "PNG", transparency=1, pnginfo=info))
    assert pixels[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_masks_are_cut_at_one_half():
    levels = np.array([[0, 127, 128, 255]], "uint8")
    assert read_mask(levels).tolist() == [[0, 0, 1, 1]]
    assert read_mask(levels).dtype == np.float32
    assert read_mask(np.array([[0, 0.4999, 0.5, 1]])).tolist() == [[0, 0, 1, 1]]
    flags = np.array([[True, False], [False, True]])
    assert read_mask(flags).tolist() == flags.tolist() == read_mask(flags[:, :, None]).tolist()
    assert read_mask(Image.fromarray(flags)).tolist() == flags.tolist()
    green, blue = np.zeros((2, 1, 1, 3), "uint8")
    green[..., 1] = blue[..., 2] = 255
    assert (read_mask(green).item(), read_mask(blue).item()) == (1, 0)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (PICTURE.astype("float32"), r"from \d+ to \d+; .*divide it by 255"),
        (np.full((2, 2), -0.5), "from -0.5 to -0.5; floats must lie within 0 to 1$"),
        (np.array([[0.5, np.nan]]), "not finite"),
        (np.array([[0.5, np.inf]]), "not finite"),
        (PICTURE.astype("int64"), "dtype int64; it must be uint8"),
        (np.zeros((2, 2), bool), "dtype bool"),
        (np.zeros((2, 2), object), "dtype object"),
        (PICTURE.transpose(2, 0, 1), r"shape \(3, 5, 7\)"),
        (PICTURE[None], r"shape \(1, 5, 7, 3\)"),
        (np.zeros(3, "uint8"), r"shape \(3,\)"),
        (np.zeros((0, 4, 3), "uint8"), "0 pixels high and 4 wide; it must have at least one pixel"),
        (np.zeros((4, 4, 0), "uint8"), r"shape \(4, 4, 0\)"),
        (Image.new("RGB", (0, 3)), "3 pixels high and 0 wide"),
        (np.zeros((2, 2, 3), [(f"a long name {place}", "u1") for place in range(30)]), "dtype .*; it must be uint8"),
        (np.zeros((1,) * 64, "uint8"), r"shape \(1, 1, 1, 1, 1, 1, \.\.\.\)"),
        (None, "must be a path, a PIL image or a NumPy array, not None"),
        ([PICTURE], "not list"),
        ("https://example.com/a.png", "is a link; download the image"),
        (pathlib.Path("HTTP://example.com/a.png"), "is a link; download the image"),
        ("nowhere.png", "No such file or directory; check the path"),
        ("a\nb", "No such file"),
        ("a\0b", "zero character"),
        ("a" * 5000, "File name too long"),
        ("\ud800", "cannot be read: .* surrogates not allowed"),
        (".", "is a folder or a device"),
        ("/dev/null", "is a folder or a device"),
    ],
)
def test_what_is_no_picture_is_refused(source, words):
    message = refusal(read, source, "start")
    assert message.startswith("start")
    assert re.search(words, message)


class Broken:
    """A path that cannot say what it is."""

    def __fspath__(self):
        raise OSError("lost\nconnection")


def test_a_path_that_raises_is_refused():
    assert refusal(read, Broken()) == "image cannot be read: lost connection"


def test_subclasses_of_arrays_are_arrays():
    class Own(np.ndarray):
        def min(self, *_, **__):
            raise ValueError("not here")

    assert np.array_equal(read((PICTURE / 255).view(Own)), PICTURE)
    assert np.array_equal(read(np.ma.masked_array(PICTURE / 255, True)), PICTURE)


def test_a_closed_or_broken_pil_image_is_refused():
    closed = Image.new("RGB", (2, 2))
    closed.close()
    assert "this PIL image cannot be read" in refusal(read, closed)
    with Image.open(io.BytesIO(encoded(np.zeros((90, 90), "uint8"), "PNG")[:60])) as broken:
        assert "this PIL image cannot be read" in refusal(read, broken)


OTHERS = {
    b"<svg xmlns='http://www.w3.org/2000/svg'/>": "an SVG drawing, which is not read; export it as PNG",
    b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg/>": "an SVG drawing",
    b"\n<!doctype html><html>": "a web page, which is not read; download the image itself",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "a HEIC photo, which is not read; save it as JPEG or PNG",
    b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic": "a HEIC photo",
    b"\0\0\0\x18ftypcrx \0\0\0\1crx isom": "a camera's raw file, which is not read; develop it",
    b"II*\0\x10\0\0\0CR\x02\0": "a camera's raw file",
    b"FUJIFILMCCD-RAW 0201": "a camera's raw file",
    b"%PDF-1.7": "a PDF document, which is not read; export its page as PNG",
    b"\0\0\0\x20ftypisom": "a video, which is not read; save one of its frames as PNG",
    b"\0\0\0\x14ftypqt  ": "a video",
    b"\x1aE\xdf\xa3\x9fB\x86": "a video",
    b"RIFF\1\1\1\1AVI LIST": "a video",
    b"8BPS\0\1": "an image editor's document",
    b"PK\x03\x04mimetypeapplication/x-krita": "an image editor's document",
    b"\xff\x0a\xfa": "a JPEG XL image, which is not read; convert it to PNG",
    b"\0\0\0\x0cjP  \r\n": "a JPEG 2000 image",
    b"\0\0\1\0\1\0": "an icon",
    b"v/1\x01": "an image of floats",
    b"\x93NUMPY\1\0": "a NumPy file",
    b"version https://git-lfs.github.com/spec/v1": "a pointer of Git LFS, which is not read; run git lfs pull",
}


@pytest.mark.parametrize("begin", OTHERS, ids=lambda begin: repr(begin)[:20])
def test_other_files_are_refused_by_their_content(tmp_path, begin):
    assert f"is {OTHERS[begin]}" in refusal(read_bytes, tmp_path, begin + bytes(40))


def test_what_is_no_image_at_all_is_refused(tmp_path):
    known = "is not a PNG, JPEG, WebP, GIF, AVIF, TIFF or BMP file, whatever its name; convert it to one of these"
    assert known in refusal(read_bytes, tmp_path, b"hello")


def test_a_raw_file_is_not_read_as_its_preview(tmp_path):
    tags = ImageFileDirectory_v2()
    tags[254] = 1
    digital = ImageFileDirectory_v2()
    digital[50706] = b"\1\4\0\0"
    for name, info in {"a.NEF": {}, "a.tif": tags, "b.tif": digital}.items():
        Image.fromarray(PICTURE).save(tmp_path / name, "TIFF", tiffinfo=info)
        assert "is a camera's raw file, which is not read" in refusal(read, tmp_path / name)


def test_empty_and_endless_files_are_refused(tmp_path):
    assert "is an empty file" in refusal(read_bytes, tmp_path, b"")
    endless = tmp_path / "endless.webp"
    with endless.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBP")
        file.truncate(2**31)
    assert "2147483648 bytes" in refusal(read, endless)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_cut_short_is_refused_or_complete(tmp_path, kind):
    pixels = np.random.default_rng(2).integers(0, 256, (24, 32, 3), dtype="uint8")
    data = encoded(pixels, kind)
    whole = read_bytes(tmp_path, data)
    for length in [*range(1, len(data) - 40, 29), *range(len(data) - 40, len(data))]:
        found = outcome(read_bytes, tmp_path, data[:length])
        if isinstance(found, str):
            assert re.search("corrupt or incomplete|is not a PNG", found)
        else:
            assert np.array_equal(found, whole)
            assert length > 0.97 * len(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_changed_bytes_give_a_picture_or_one_line(tmp_path, kind):
    rng = np.random.default_rng(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    told = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}
    data = np.frombuffer(encoded(PICTURE.repeat(4, 0), kind, **told), "uint8")
    refused = 0
    for _ in range(300 if told else 150):
        changed = data.copy()
        places = rng.integers(0, len(data), rng.integers(1, 6))
        changed[places] = rng.integers(0, 256, len(places))
        cut = np.delete(changed, rng.integers(0, len(data), rng.integers(0, 3)))
        with warnings.catch_warnings(action="ignore"):
            found = outcome(read_bytes, tmp_path, cut.tobytes())
        if isinstance(found, str):
            refused += 1
            assert "\n" not in found
        else:
            assert found.dtype == np.uint8
            assert found.ndim == 3
    assert refused > (50 if told else 2)


def test_a_bomb_is_refused_from_its_header(tmp_path):
    """In a process of its own, whose peak of memory a decoded picture would raise twentyfold."""
    assert np.array_equal(read_bytes(tmp_path, black_png(70, 5000)), np.zeros((70, 5000, 3)))
    path = tmp_path / "bomb.png"
    path.write_bytes(black_png(20_000, 20_000))
    script = """
import resource, sys
from kerasdiff import RequestError
from kerasdiff.images import reader
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    reader.read(sys.argv[1])
except RequestError as error:
    print(error)
assert peak() < 2 * before, (before, peak())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "is 20000 pixels high and 20000 wide; it may have at most 67108864 pixels" in done.stdout
    assert done.stderr == ""


def test_other_large_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    with PngImageFile(io.BytesIO(black_png(20_000, 20_000))) as lazy:
        monkeypatch.setattr(lazy, "load", None)
        assert "20000 wide; it may have at most" in refusal(read, lazy)
    side = int(MAX_PIXELS**0.5)
    assert "it may have at most" in refusal(read, np.broadcast_to(np.uint8(0), (side, side + 1, 3)))
    assert "it may have at most" in refusal(read_mask, np.broadcast_to(np.uint8(0), (1, MAX_SIDE + 1)))
    assert "it may have at most" in refusal(read, np.broadcast_to(np.float64(0), (10**7, 10**7)))
    assert "it may have at most" in refusal(read_mask, np.broadcast_to(np.False_, (10**7, 10**7)))
    assert "the resized image is 10 pixels high" in refusal(prepare, PICTURE, 10, 10**9, "stretch", 1, "image")
    frames = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])]
    webp = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    place = webp.index(b"VP8X") + 12
    webp[place : place + 6] = (16382).to_bytes(3, "little") * 2
    assert re.search("is 16383 pixels high and 16383 wide|has too many pixels", refusal(read_bytes, tmp_path, webp))
    webp[place : place + 6] = (9999).to_bytes(3, "little") * 2
    assert "is 10000 pixels high and 10000 wide" in refusal(read_bytes, tmp_path, webp)


def test_pillows_own_limit_has_no_say(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    assert np.array_equal(read_bytes(tmp_path, encoded(PICTURE, "PNG")), PICTURE)
    # Pillow 13 asks for it by itself in a WebP.
    found = outcome(read_bytes, tmp_path, encoded(PICTURE, "WEBP", lossless=True))
    assert np.array_equal(found, PICTURE) or "lower: make it smaller" in found


@pytest.mark.parametrize("size", [(512, 512), (512, 768), (512, 1024), (640, 4096), (65, 200)])
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_a_fitted_size_is_the_largest_and_nearest(size, multiple):
    box_height, box_width = size
    rng = np.random.default_rng(4)
    for height, width in [(1, 1), (5000, 3), (3, 5000), *rng.integers(1, 3000, (40, 2)).tolist()]:
        found = fit_size(height, width, box_height, box_width, multiple)
        most = box_height // multiple * multiple, box_width // multiple * multiple
        assert found[0] % multiple == found[1] % multiple == 0
        assert multiple <= found[0] <= box_height
        assert multiple <= found[1] <= box_width
        assert found[0] == most[0] or found[1] == most[1]
        error = abs(np.log(found[1] * height / (found[0] * width)))
        # No other size that touches the box in the same side is nearer in aspect ratio.
        if most[1] * height <= most[0] * width:
            others = [(side, most[1]) for side in range(multiple, most[0] + 1, multiple)]
        else:
            others = [(most[0], side) for side in range(multiple, most[1] + 1, multiple)]
        assert found in others
        assert error <= min(abs(np.log(w * height / (h * width))) for h, w in others) + 1e-9


def test_a_box_too_small_is_refused():
    assert "box_width=63 is out of range; it must be between 64 and 65500" in refusal(fit_size, 9, 9, 64, 63, 64)
    assert "height=0" in refusal(fit_size, 0, 9, 64, 64, 64)


def test_a_size_that_is_valid_is_taken_as_it_is():
    pixels = np.zeros((64, 128, 3), "uint8")
    for height, width in [(None, None), (64, None), (None, 128), (64, 128)]:
        assert prepare(pixels, height, width, None, 64, "image") is pixels


@pytest.mark.parametrize(
    ("shape", "height", "width", "nearest"),
    [
        ((100, 128), None, None, "128 and 128"),
        ((1, 1), None, None, "64 and 64"),
        ((64, 128), 128, None, "128 and 128"),
        ((64, 128), 512, 512, "512 and 512"),
    ],
)
def test_other_sizes_are_refused_with_a_way_out(shape, height, width, nearest):
    message = refusal(prepare, np.zeros((*shape, 3), "uint8"), height, width, None, 64, "image[1]")
    assert message.startswith(f"image[1] is {shape[0]} pixels high and {shape[1]} wide")
    assert f"the nearest valid size is {nearest}; " in message
    assert "resize='cover'" in message


def test_wrong_ways_to_resize_are_refused():
    assert "did you mean 'cover'" in refusal(prepare, PICTURE, 64, 64, "covers", 64, "image")
    assert "resize='fit' needs a height and a width" in refusal(prepare, PICTURE, 64, None, "fit", 64, "image")


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (37, 101), (5000, 3), (3, 5000)])
def test_resized_pictures_have_the_size_that_was_asked_for(shape):
    rng = np.random.default_rng(5)
    picture = rng.integers(0, 256, (*shape, 3), dtype="uint8")
    mask = rng.integers(0, 2, shape).astype("float32")
    fitted = fit_size(*shape, 64, 128, 8)
    for resize, expected in [("stretch", (64, 128)), ("cover", (64, 128)), ("fit", fitted)]:
        large = prepare(picture, 64, 128, resize, 8, "image")
        cover = prepare(mask, 64, 128, resize, 8, "mask")
        assert large.shape == (*expected, 3)
        assert large.dtype == np.uint8
        assert cover.shape == expected
        assert cover.dtype == np.float32
        assert set(np.unique(cover)) <= {0, 1}


@pytest.mark.parametrize("resize", ["stretch", "cover", "fit"])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (200, 300), (301, 173)])
def test_a_picture_and_its_mask_are_moved_alike(resize, shape):
    """The mask of a disc against the picture of it: they may differ only where the edge is, which Lanczos blurs."""
    rows, columns = np.indices(shape)
    disc = (rows - shape[0] * 0.4) ** 2 + (columns - shape[1] * 0.6) ** 2 < (0.3 * min(shape)) ** 2
    drawn = prepare(np.repeat(disc[:, :, None], 3, 2) * np.uint8(255), 64, 128, resize, 8, "image")[:, :, 0]
    mask = prepare(disc.astype("float32"), 64, 128, resize, 8, "mask")
    assert 0.02 < mask.mean() < 0.98
    assert np.abs((drawn >= 128) - mask).mean() < 0.01
    clear = np.abs(drawn.astype(int) - 128) > 110
    assert clear.mean() > 0.8
    assert np.array_equal(drawn[clear] >= 128, mask[clear] == 1)


def test_cover_crops_the_same_on_both_sides():
    stripes = np.zeros((10, 30, 3), "uint8")
    stripes[:, 10:20] = 255
    for picture, turn in [(stripes, (0, 1, 2)), (stripes.transpose(1, 0, 2), (1, 0, 2))]:
        covered = prepare(picture, 64, 64, "cover", 64, "image").transpose(turn).astype(int)
        assert np.abs(covered - covered[:, ::-1]).max() <= 1
        assert covered.mean() > 220
    even = prepare(np.repeat(np.repeat(PICTURE, 2, 0), 2, 1)[:, 2:12], 10, 6, "cover", 1, "image")
    assert np.array_equal(even, np.repeat(np.repeat(PICTURE, 2, 0), 2, 1)[:, 4:10])


def test_nothing_is_resampled_where_the_size_is_right():
    for resize in ("stretch", "cover", "fit"):
        assert np.array_equal(prepare(PICTURE, 5, 7, resize, 1, "image"), PICTURE)
