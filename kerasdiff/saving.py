"""Writing pictures to files."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from PIL import Image

from kerasdiff.errors import RequestError

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def check_output(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path that a picture can be written to, found out before the work and not after it.

    Raises:
        RequestError: an unknown ending, or a folder that is not there.
    """
    path = pathlib.Path(path)
    kind_of(path)
    if not path.parent.is_dir():
        raise RequestError(f"cannot save to {path}: there is no folder {path.parent}; make it first")
    return path


def kind_of(path: pathlib.Path) -> str:
    """Pillow's name of the format that a path's ending stands for.

    Raises:
        RequestError: an unknown ending.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"cannot save to {path}: the name must end in one of {', '.join(KINDS)}")
    return kind


def write(image: Image.Image, path: str | os.PathLike[str], **told: Any) -> pathlib.Path:
    """Writes a picture under a temporary name that is then renamed, so that no half-written file is left.

    Args:
        image: the picture.
        path: where.
        **told: what else goes into the file, as `PIL.Image.Image.save` takes it.

    Raises:
        RequestError: it cannot be written.
    """
    path = check_output(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        image.save(draft, kind_of(path), **told)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RequestError(f"cannot save to {path}: {error.strerror or error}") from error
    return path
