"""Receipts in image files: text chunks of PNG, EXIF and XMP of JPEG and WebP."""

import contextlib
import dataclasses
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
from kerasdiff.adapter_files import UpscalerFile
from kerasdiff.errors import RequestError
from kerasdiff.images.file_types import plugin_of, without_side_chunks
from kerasdiff.metadata import a1111_text, comfyui, invokeai
from kerasdiff.metadata.a1111 import parameters_text, upscaler_settings
from kerasdiff.metadata.foreign import ForeignSettings, Reader
from kerasdiff.metadata.receipt import LARGEST, Receipt

KINDS = ("JPEG", "PNG", "WEBP")
# Texts of a file that are about its bytes or its size.
_NOT_KEPT = ("XML:com.adobe.xmp", "xmp", "exif", "Raw profile type exif", "icc_profile", "Comment")
# Of other programs' metadata; the first that knows a file's texts reads them.
_READERS: tuple[Reader, ...] = (a1111_text.read, invokeai.read, comfyui.read)
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
    if len(xmp) > _SEGMENT or (receipt.request.towards and receipt.request.exact):  # walks have hundreds of images
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


def upscaled_arguments(source: pathlib.Path | None, upscaler: UpscalerFile, kind: str) -> dict[str, Any]:
    """The same for a picture that was made larger: what its file says, and that an upscaler made it larger.

    One with a receipt is what a request with that upscaler gives. Of other programs' files the texts stay, and the
    upscaler is told as AUTOMATIC1111 tells it: in the chunk "postprocessing" of a PNG, else behind the settings.
    """
    validation.choice("kind", kind, KINDS)
    texts: dict[str, str] = {}
    with contextlib.suppress(OSError, RequestError):  # a picture of another kind, or without texts
        texts = {} if source is None else _texts(source, source.stat().st_size, str(source))
    with contextlib.suppress(RequestError):  # or damaged
        receipt = Receipt.from_json(texts.pop("kerasdiff", ""))
        if receipt.request.upscale is None:
            request = dataclasses.replace(receipt.request, upscale=upscaler)
            return save_arguments(dataclasses.replace(receipt, request=request), kind)
    note = ", ".join(f"{name}: {value}" for name, value in upscaler_settings(upscaler).items())
    if kind == "PNG":
        chunks = PngInfo()
        for name, text in {**texts, "postprocessing": note}.items():
            if name not in _NOT_KEPT:
                chunks.add_text(name, text)
        return {"pnginfo": chunks}
    parameters = texts.get("parameters", "")
    exif = _exif(f"{parameters}, {note}" if parameters else note)
    return {"exif": exif} if kind == "WEBP" or len(exif) <= _SEGMENT else {"exif": _exif(note)}


def _exif(parameters: str) -> bytes:
    """EXIF with only a UserComment; Pillow would call its type BYTE, which not everybody reads."""
    comment = _UTF_16 + parameters.encode("utf-16-be")
    header = struct.pack(">2sHL", b"MM", 42, 8)
    main = struct.pack(">HHHLLL", 1, ExifTags.IFD.Exif, TiffTags.LONG, 1, 26, 0)
    inner = struct.pack(">HHHLLL", 1, _USER_COMMENT, TiffTags.UNDEFINED, len(comment), 44, 0)
    return b"Exif\0\0" + header + main + inner + comment


def _xmp(receipt: Receipt, text: str | None = None) -> bytes:
    redrawn = "image" in (receipt.pictures or {})
    source_type = "compositeWithTrainedAlgorithmicMedia" if redrawn else "trainedAlgorithmicMedia"
    more = "" if text is None else _XMP_RECEIPT.format(namespace=_NAMESPACE, text=escape(text))
    return _XMP.format(source_type=f"{_SOURCE_TYPES}{source_type}", more=more).encode()


def read(path: str | os.PathLike[str]) -> Receipt:
    """The receipt in an image file, whose pixels are not read.

    Raises:
        RequestError: there is none, it is damaged, or another program made the image; `read_any` reads some of those.
    """
    found = read_any(path)
    if isinstance(found, ForeignSettings):
        raise RequestError(
            f"{path} was made by {found.program}, and only kerasdiff's metadata is read; kerasdiff.replay takes over "
            "what it can"
        )
    return found


def read_any(path: str | os.PathLike[str]) -> Receipt | ForeignSettings:
    """The receipt in an image file, or what AUTOMATIC1111, ComfyUI or InvokeAI wrote there; raises as `read` does."""
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
    found = _read(io.BytesIO(picture), len(picture), name)
    if isinstance(found, ForeignSettings):
        raise RequestError(f"{name} was made by {found.program}, and only kerasdiff's metadata is read")
    return found


def _read(file: pathlib.Path | io.BytesIO, size: int, name: str) -> Receipt | ForeignSettings:
    texts = _texts(file, size, name)
    try:
        if "kerasdiff" in texts:
            return Receipt.from_json(texts["kerasdiff"])
        for reader in _READERS:
            settings = reader(texts)
            if settings is not None:
                return settings
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from None
    raise RequestError(f"{name} has no embedded metadata: it was saved without, or another program removed it")


def _texts(file: pathlib.Path | io.BytesIO, size: int, name: str) -> dict[str, str]:
    """The texts in a file by name: our JSON is "kerasdiff", AUTOMATIC1111's text "parameters"."""
    if size > _LARGEST_FILE:
        raise RequestError(f"{name} is larger than 256 MiB, which no image with kerasdiff's metadata is")
    try:
        # The size in pixels may be anything, as no pixel is read: Image.open would warn of it.
        with open(file, "rb") if isinstance(file, pathlib.Path) else file as opened:
            picture = _opened(opened, name)
            own = {"kerasdiff": _in_xmp(picture.info.get("xmp")), "parameters": _user_comment(picture)}
            texts: dict[Any, Any] = {**own, **_image_tags(picture), **picture.info}
            return {str(key): str(text) for key, text in texts.items() if isinstance(text, str) and text}
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


def _image_tags(picture: Image.Image) -> dict[str, str]:
    """Texts that ComfyUI puts into EXIF's Make and Model of a WebP, each with its name in front."""
    texts: dict[str, str] = {}
    if picture.format == "PNG":  # whose pixels Pillow would read to find EXIF
        return texts
    with contextlib.suppress(Exception):  # damaged EXIF is as good as none
        for tag, value in picture.getexif().items():
            name, _, text = str(value).partition(":")
            if tag in (ExifTags.Base.Make, ExifTags.Base.Model) and text.startswith("{"):
                texts[name] = text
    return texts


def _user_comment(picture: Image.Image) -> str:
    """EXIF's UserComment of a JPEG or WebP."""
    with contextlib.suppress(Exception):  # damaged EXIF is as good as none
        comment = None if picture.format == "PNG" else picture.getexif().get_ifd(ExifTags.IFD.Exif)[_USER_COMMENT]
        if isinstance(comment, bytes):
            return _decoded(comment)
    return ""


def _decoded(comment: bytes) -> str:
    """The text of a UserComment. Programs disagree about the byte order; the text has ASCII, so that zeros tell it."""
    if not comment.startswith(_UTF_16):
        return comment.removeprefix(b"ASCII").replace(b"\0", b"").decode(errors="replace")
    text = comment.removeprefix(_UTF_16)
    big = text[::2].count(0) >= text[1::2].count(0)
    return text.decode("utf-16-be" if big else "utf-16-le", errors="replace")
