"""Names of a job's files, made from the ids of its rows."""

from __future__ import annotations

import os
import unicodedata

from kerasdiff import validation
from kerasdiff.errors import RequestError

# With a number, an ending and what a draft adds, names stay below the 255 bytes that file systems have room for.
_MAX_BYTES = 100
# Control characters, and what else breaks a line.
_UNFIT = ("Cc", "Zl", "Zp")


def check_id(value: str) -> str:
    """An id that can be the name of a file.

    Raises:
        RequestError: it is not a text, blank, too long, begins with a dot, or has a character that names cannot have.
    """
    validation.text("id", value)
    if not value.strip():
        raise RequestError("id is blank; files are named after it")
    if value.startswith("."):
        raise RequestError(f"id={validation.shown(value)} begins with a dot, which would hide its file")
    for character in value:
        if character in "/\\" or unicodedata.category(character) in _UNFIT:
            raise RequestError(
                f"id={validation.shown(value)} has {character!r} in it, which the name of its file cannot have"
            )
    if len(value.encode()) > _MAX_BYTES:
        raise RequestError(f"id={validation.shown(value)} has {len(value.encode())} bytes; it may have {_MAX_BYTES}")
    return value


def same_file(row_id: str) -> str:
    """What two ids have in common if a file system may take their files for one: letters' case, ways to write accents.

    Example:
        ```python
        same_file("Red") == same_file("red")  # True
        ```
    """
    return unicodedata.normalize("NFC", row_id).casefold()


def picture_path(folder: str | os.PathLike[str], path: str) -> str:
    """The absolute path of a picture that is told relative to a folder; a link stays one, to be refused as such."""
    return path if path.lower().startswith(("http://", "https://")) else os.path.abspath(os.path.join(folder, path))


def take_id(row_id: str, taken: dict[str, str]) -> None:
    """Adds an id to those that are taken, as `same_file(id) -> id`.

    Raises:
        RequestError: it is taken, or some file systems take its file for that of one that is.
    """
    name = same_file(row_id)
    other = taken.get(name)
    taken[name] = row_id
    if other == row_id:
        raise RequestError(f"id={validation.shown(row_id)} is there twice; files are named after ids")
    if other is not None:
        raise RequestError(
            f"id={validation.shown(row_id)} and id={validation.shown(other)} are one file where names have no upper "
            "and lower case; change one of them"
        )


def file_name(row_id: str, number: int, batch_size: int, format: str = "png") -> str:  # noqa: A002
    """The file of one image of a row: the id itself, or with the image's number if a row has several.

    Args:
        row_id: of the row.
        number: which of its images, from 1.
        batch_size: how many it has.
        format: "png", "jpg" or "webp".

    Example:
        ```python
        file_name("cat", 2, 3)  # "cat_2.png"
        ```
    """
    return f"{row_id}.{format}" if batch_size == 1 else f"{row_id}_{number}.{format}"
