"""Writes images to files."""

import io
import os
import pathlib
from typing import Any

from PIL import Image

from kerasdiff import validation
from kerasdiff.atomic_write import atomic_write
from kerasdiff.errors import RequestError

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS = ("png", "jpg", "webp")


def check_output(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path that an image can be written to: its extension and folder are checked before the work."""
    path = pathlib.Path(validation.path("path", path))
    kind_of(path)
    if not os.path.isdir(path.parent):
        raise RequestError(f"cannot save to {_shown(path)}: there is no folder {_shown(path.parent)}; make it first")
    return path


def kind_of(path: pathlib.Path) -> str:
    """Pillow's name of the format of a path's extension."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"cannot save to {_shown(path)}: the name must end in one of {', '.join(KINDS)}")
    return kind


def numbered(path: pathlib.Path, count: int) -> list[pathlib.Path]:
    """The paths of several images: `path` itself for one, path_1, path_2, ... for more."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, count + 1)]


def write(image: Image.Image, path: str | os.PathLike[str], **options: Any) -> pathlib.Path:
    """Writes an image, with options of `PIL.Image.Image.save`; see `write_whole`."""
    path = check_output(path)
    # Through memory: when Pillow writes the file, its error does not say that the disk is full.
    try:
        encoded = encode(image, kind_of(path), **options)
    except OSError as error:
        raise RequestError(f"cannot save to {_shown(path)}: {error.strerror or validation.reason(error)}") from error
    return write_whole(path, encoded)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file of the `kind` "PNG", "JPEG" or "WEBP"."""
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    return encoded.getvalue()


def write_whole(path: pathlib.Path, data: bytes) -> pathlib.Path:
    """Writes a file completely or not at all, also if the power fails.

    Raises:
        RequestError: it cannot be written; its cause is the `OSError`.
    """
    try:
        with atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        raise RequestError(f"cannot save to {_shown(path)}: {error.strerror or validation.reason(error)}") from error
    return path


def _shown(path: pathlib.Path) -> str:
    return validation.line(str(path), 100)
