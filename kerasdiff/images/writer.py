"""Writing pictures to files."""

from __future__ import annotations

import io
import os
import pathlib
from typing import Any

from PIL import Image

from kerasdiff import validation
from kerasdiff.atomic_write import atomic_write, final_name
from kerasdiff.errors import RequestError

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS = ("png", "jpg", "webp")


def check_output(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path that a picture can be written to, found out before the work and not after it.

    Raises:
        RequestError: an unknown ending, or a folder that is not there.
    """
    path = pathlib.Path(validation.path("path", path))
    kind_of(path)
    if not os.path.isdir(path.parent):
        raise RequestError(f"cannot save to {_shown(path)}: there is no folder {_shown(path.parent)}; make it first")
    return path


def kind_of(path: pathlib.Path) -> str:
    """Pillow's name of the format that a path's ending stands for.

    Raises:
        RequestError: an unknown ending.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"cannot save to {_shown(path)}: the name must end in one of {', '.join(KINDS)}")
    return kind


def numbered(path: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Where several pictures go: `path` itself for one, path_1, path_2, ... for more."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, count + 1)]


def write(image: Image.Image, path: str | os.PathLike[str], **told: Any) -> pathlib.Path:
    """Writes a picture under a temporary name that is then renamed, so that no half-written file is left.

    Args:
        image: the picture.
        path: where.
        **told: what else goes into the file, as `PIL.Image.Image.save` takes it.

    Raises:
        RequestError: it cannot be written; its cause is the `OSError`.
    """
    path = check_output(path)
    # By way of memory: where Pillow writes a file by itself, its error does not say that the disk is full.
    try:
        encoded = encode(image, kind_of(path), **told)
    except OSError as error:
        raise RequestError(f"cannot save to {_shown(path)}: {error.strerror or validation.reason(error)}") from error
    return write_whole(path, encoded)


def encode(image: Image.Image, kind: str, **told: Any) -> bytes:
    """A picture as the bytes of its file.

    Args:
        image: the picture.
        kind: "PNG", "JPEG" or "WEBP".
        **told: as in `write`.

    Raises:
        OSError: Pillow cannot encode it.
    """
    encoded = io.BytesIO()
    image.save(encoded, kind, **told)
    return encoded.getvalue()


def write_whole(path: pathlib.Path, data: bytes) -> pathlib.Path:
    """Writes a file that is there whole or not at all, after a loss of power too.

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


def drafted(name: str) -> str | None:
    """The name of the file that a temporary file was to become; None if it is no such file."""
    return final_name(name)
