"""Which image files are read, by their first bytes; what others are, and the parts of a PNG that make its pixels."""

import re
import struct
import zlib
from collections.abc import Collection
from typing import IO

from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from kerasdiff.errors import RequestError

_Plugin = type[ImageFile.ImageFile]
# Their first bytes -> Pillow's class. Not Image.open: its own limit of pixels is a setting of the whole process.
_READ: dict[str, tuple[bytes, _Plugin]] = {
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "JPEG": (rb"\xff\xd8\xff", JpegImageFile),
    "WebP": (rb"RIFF.{4}WEBP", WebPImageFile),
    "GIF": (rb"GIF8[79]a", GifImageFile),
    "AVIF": (rb".{4}ftyp(avi[fs]|(mif1|msf1|miaf).{4}(.{4}){0,8}?avi[fs])", AvifImageFile),
    "TIFF": (rb"(II[*+]\0|MM\0[*+])(?!.{4}CR\x02)", TiffImageFile),
    "BMP": (rb"BM", BmpImageFile),
}
_NAMES = [*_READ]
_KNOWN = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
_HEAD = 64
_RAW = "a camera's raw file", "develop it and save it as JPEG or PNG"
# What people have besides -> first bytes, in this order.
_NOT_READ: dict[tuple[str, str], bytes] = {
    ("a HEIC photo", "save it as JPEG or PNG; phones can do so when they share it"): rb".{4}ftyp(hei|hev|mif1|msf1)",
    _RAW: rb".{4}ftypcrx |FUJIFILMCCD-RAW|II[*]\0.{4}CR\x02|IIR[OS]\x08|MMOR|IIU\0|FOVb",
    (
        "a video",
        "save one of its frames as PNG",
    ): rb".{4}(ftyp|moov|mdat)|\x1aE\xdf\xa3|RIFF.{4}AVI |\0\0\x01\xba|FLV",
    ("an SVG drawing", "export it as PNG"): rb"(\xef\xbb\xbf)?\s*<(\?xml|svg|!DOCTYPE svg|!--)",
    ("a web page", "download the image itself"): rb"(?i:(\xef\xbb\xbf)?\s*<(!doctype html|html|head))",
    ("a PDF document", "export its page as PNG"): rb"%PDF",
    ("an image editor's document", "export it as PNG"): rb"8BPS|gimp xcf|PK\x03\x04",
    ("a JPEG XL image", "convert it to PNG"): rb"\xff\x0a|\0\0\0\x0cJXL ",
    ("a JPEG 2000 image", "convert it to PNG"): rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    ("an image of floats", "convert it to PNG"): rb"v/1\x01|#\?RADIANCE|#\?RGBE|P[Ff]\s",
    ("an icon", "convert it to PNG"): rb"\0\0[\x01\x02]\0",
    ("a NumPy file", "give the array that numpy.load reads from it"): rb"\x93NUMPY",
    ("a pointer of Git LFS", "run git lfs pull"): rb"version https://git-lfs",
}
# Tags of a TIFF: its first page is a preview, as in raw files; it is a DNG.
_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_RAW_NAMES = re.compile(r"(?i)\.(dng|nef|nrw|arw|sr2|srf|pef|srw|dcr|kdc|erf|3fr|mef|mos|iiq|rwl)$")
# Of a PNG, besides chunks that the format itself calls critical: transparency, and which side is up.
_FOR_PIXELS = (b"tRNS", b"eXIf")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def plugin_of(file: IO[bytes], shown: str) -> tuple[str, _Plugin]:
    """A file's kind and the class that reads it; a RequestError that begins with `shown` if there is none."""
    head = file.read(_HEAD)
    file.seek(0)
    for kind, (begin, plugin) in _READ.items():
        if re.match(begin, head, re.DOTALL):
            return kind, plugin
    for (what, advice), begin in _NOT_READ.items():
        if re.match(begin, head, re.DOTALL):
            raise RequestError(f"{shown} is {what}, which is not read; {advice}")
    raise RequestError(f"{shown} is not a {_KNOWN} file, whatever its name; convert it to one of these")


def check_not_raw(image: Image.Image, name: str, shown: str) -> None:
    """Refuses raw files in the layout of TIFF, whose first page is a small preview; `name` is the file's."""
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        if _DNG_VERSION in tags or tags.get(_SUBFILE_TYPE) == 1 or _RAW_NAMES.search(name):
            raise RequestError(f"{shown} is {_RAW[0]}, which is not read; {_RAW[1]}")


def without_side_chunks(png: bytes, texts: Collection[bytes] = ()) -> bytes:
    """A PNG's chunks that make its pixels, and those texts of it that are named.

    The other texts, profiles and the like may be damaged, or larger than Pillow reads.
    """
    kept, place = [png[:8]], 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4])
        name, end = png[place + 4 : place + 8], place + 12 + length
        chunk = png[place:end]
        wanted = name in _FOR_PIXELS or (name in _TEXTS and chunk[8:].partition(b"\0")[0] in texts)
        if name[:1].isupper() or (wanted and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))):
            kept.append(chunk)
        place = end
    return b"".join(kept)
