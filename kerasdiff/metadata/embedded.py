"""Receipts in image files: text chunks of PNG, EXIF and XMP of JPEG and WebP."""

import contextlib
import io
import os
import pathlib
import struct
from typing import IO, Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import ExifTags, Image, TiffTags
from PIL.PngImagePlugin import PngInfo

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.images.file_types import plugin_of, without_side_chunks
from kerasdiff.metadata.a1111 import parameters_text
from kerasdiff.metadata.receipt import LARGEST, Receipt

KINDS = ("JPEG", "PNG", "WEBP")
# Bytes of EXIF, or of XMP after its heading, in a segment of a JPEG.
_SEGMENT = 65533 - 29
_LARGEST_FILE = 2**28
_USER_COMMENT = 0x9286
# EXIF 2.3, section 4.6.5: eight bytes name the encoding. Its byte order is that of the EXIF around it.
_UTF_16 = b"UNICODE\0"
_NAMESPACE = "kerasdiff:ns:receipt/"
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>{more}
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
_XMP_RECEIPT = """
<kerasdiff:receipt xmlns:kerasdiff="{namespace}">{text}</kerasdiff:receipt>"""


def save_arguments(receipt: Receipt, kind: str) -> dict[str, Any]:
    """Keyword arguments of `PIL.Image.Image.save` that embed a receipt.

    PNG has the chunks "parameters" (AUTOMATIC1111's text) and "kerasdiff" (JSON); JPEG and WebP have that text as
    EXIF's UserComment and the JSON in XMP. XMP says in all of them that the image was generated (IPTC's
    DigitalSourceType). Of a batch that is too large for the 64 KiB of a JPEG, every format has this image's values
    alone; a RequestError says that even so a prompt is too long.
    """
    validation.choice("kind", kind, KINDS)
    parameters, text = parameters_text(receipt), receipt.to_json()
    xmp = _xmp(receipt, text)
    if len(xmp) > _SEGMENT:
        text = receipt.alone().to_json()
        xmp = _xmp(receipt, text)
    if len(text) > LARGEST:
        raise RequestError("the prompt is too long for embedded metadata; save without it")
    if kind == "PNG":
        chunks = PngInfo()
        chunks.add_text("parameters", parameters)
        chunks.add_text("kerasdiff", text)
        chunks.add_itxt("XML:com.adobe.xmp", _xmp(receipt).decode())
        return {"pnginfo": chunks}
    exif = _exif(parameters)
    if kind == "JPEG" and max(len(exif), len(xmp)) > _SEGMENT:
        raise RequestError("the prompt is too long for the metadata of a JPEG, which has 64 KiB; save as .png or .webp")
    return {"exif": exif, "xmp": xmp}


def _exif(parameters: str) -> bytes:
    """EXIF with only a UserComment; Pillow would call its type BYTE, which not everybody reads."""
    comment = _UTF_16 + parameters.encode("utf-16-be")
    header = struct.pack(">2sHL", b"MM", 42, 8)
    main = struct.pack(">HHHLLL", 1, ExifTags.IFD.Exif, TiffTags.LONG, 1, 26, 0)
    inner = struct.pack(">HHHLLL", 1, _USER_COMMENT, TiffTags.UNDEFINED, len(comment), 44, 0)
    return b"Exif\0\0" + header + main + inner + comment


def _xmp(receipt: Receipt, text: str | None = None) -> bytes:
    source_type = "trainedAlgorithmicMedia" if receipt.pictures is None else "compositeWithTrainedAlgorithmicMedia"
    more = "" if text is None else _XMP_RECEIPT.format(namespace=_NAMESPACE, text=escape(text))
    return _XMP.format(source_type=f"{_SOURCE_TYPES}{source_type}", more=more).encode()


def read(path: str | os.PathLike[str]) -> Receipt:
    """The receipt in an image file, whose pixels are not read; a RequestError if there is none, or it is damaged."""
    if not isinstance(path, str | os.PathLike):
        raise RequestError(f"path must be the path of an image, not {validation.kind(path)}")
    path = pathlib.Path(validation.path("path", path))
    if not os.path.isfile(path):
        raise RequestError(f"there is no file {path}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    return _read(path, size, str(path))


def read_bytes(picture: bytes, name: str = "the image") -> Receipt:
    """The receipt in the bytes of an image file, which errors call `name`; raises as `read` does."""
    return _read(io.BytesIO(picture), len(picture), name)


def _read(file: pathlib.Path | io.BytesIO, size: int, name: str) -> Receipt:
    text, parameters = _texts(file, size, name)
    if text is None:
        if "Steps: " in parameters and "Version: kerasdiff " not in parameters:
            raise RequestError(f"{name} was made by another program, and only kerasdiff's metadata is read")
        raise RequestError(f"{name} has no embedded metadata: it was saved without, or another program removed it")
    try:
        return Receipt.from_json(text)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from None


def _texts(file: pathlib.Path | io.BytesIO, size: int, name: str) -> tuple[str | None, str]:
    """Our JSON, if any, and the parameters text of this or another program."""
    if size > _LARGEST_FILE:
        raise RequestError(f"{name} is larger than 256 MiB, which no image with kerasdiff's metadata is")
    try:
        # The size in pixels may be anything, as no pixel is read: Image.open would warn of it.
        with open(file, "rb") if isinstance(file, pathlib.Path) else file as opened:
            picture = _opened(opened, name)
            text = picture.info.get("kerasdiff")
            text = _in_xmp(picture.info.get("xmp")) if text is None else text
            return text, picture.info.get("parameters") or _user_comment(picture)
    except PermissionError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror}") from None
    except Exception:  # Pillow raises nearly anything for a damaged file
        raise RequestError(f"{name} is not a PNG, JPEG or WebP image, or is damaged") from None


def _opened(file: IO[bytes], name: str) -> Image.Image:
    """An image that is not decoded; texts of other programs in a PNG may be damaged, or larger than Pillow reads."""
    _, plugin = plugin_of(file, name)
    if plugin.format not in KINDS:
        raise ValueError
    try:
        return plugin(file)
    except Exception:
        if plugin.format != "PNG":
            raise
        file.seek(0)
        return plugin(io.BytesIO(without_side_chunks(file.read(), (b"parameters", b"kerasdiff"))))


def _in_xmp(xmp: Any) -> str | None:
    if not isinstance(xmp, bytes) or len(xmp) > 8 * LARGEST:
        return None
    try:
        # As text, so that it cannot state an encoding of its own. XMP has no entities, which could be bombs.
        document = xmp.decode().rstrip("\0")
        root = None if "<!" in document else ElementTree.fromstring(document)
    except (ValueError, ElementTree.ParseError):
        return None
    return None if root is None else root.findtext(f".//{{{_NAMESPACE}}}receipt")


def _user_comment(picture: Image.Image) -> str:
    """EXIF's UserComment of a JPEG or WebP, readable where it is ASCII, in whatever encoding."""
    with contextlib.suppress(Exception):  # damaged EXIF is as good as none
        comment = None if picture.format == "PNG" else picture.getexif().get_ifd(ExifTags.IFD.Exif)[_USER_COMMENT]
        if isinstance(comment, bytes):
            return comment.replace(b"\0", b"").decode("latin-1")
    return ""
