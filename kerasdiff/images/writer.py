"""Writes images to files."""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

from kerasdiff import validation
from kerasdiff.atomic_write import atomic_write, check_folder, check_name
from kerasdiff.errors import RequestError

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS = ("png", "jpg", "webp")


def check_output(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path that an image can be written to: its extension and folder are checked before the work."""
    path = pathlib.Path(validation.path("path", path))
    kind_of(path)
    check_parent(path)
    return path


def check_parent(path: pathlib.Path) -> None:
    """A RequestError if there is no folder for a file."""
    if not os.path.isdir(path.parent):
        raise RequestError(f"cannot save to {_shown(path)}: there is no folder {_shown(path.parent)}; make it first")


def try_output(path: str | os.PathLike[str], count: int = 1) -> None:
    """Finds out before the work whether so many images can be saved to `path`, which is left as it is.

    Raises:
        RequestError: as `write` would; a name is too long or that of a folder, or the folder is read-only.
    """
    targets = numbered(check_output(path), count)
    for target in targets:
        with saving(target):
            check_name(target)
    with saving(targets[0]):
        check_folder(targets[0].parent)


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
    with saving(path):
        encoded = encode(image, kind_of(path), **options)
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
    with saving(path), atomic_write(path) as file:
        file.write(data)
    return path


@contextlib.contextmanager
def saving(path: pathlib.Path) -> Iterator[None]:
    """Makes of an `OSError` a `RequestError` that says which file could not be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or validation.reason(error)
        raise RequestError(f"cannot save to {_shown(path)}: {reason}; choose another name or folder") from error


def _shown(path: pathlib.Path) -> str:
    return validation.line(str(path), 100)
