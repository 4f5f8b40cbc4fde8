"""Names of a job's files, made from the ids of its rows."""

import os
import unicodedata

from kerasdiff import validation
from kerasdiff.checkpoints import hub
from kerasdiff.errors import RequestError
from kerasdiff.runtime.safetensors_map import TORCH_ENDINGS

# With a number, an extension and what a temporary name adds, names stay below the 255 bytes of file systems.
_MAX_BYTES = 100
# Control characters, and other line breaks.
_INVALID = ("Cc", "Zl", "Zp")


def check_id(row_id: str) -> None:
    """Refuses an id that cannot be the name of a file."""
    validation.text("id", row_id)
    if not row_id.strip():
        raise RequestError("id is blank; files are named after it")
    shown, size = validation.shown(row_id), len(row_id.encode())
    if row_id.startswith("."):
        raise RequestError(f"id={shown} starts with a dot, which would hide its file")
    for character in row_id:
        if character in "/\\" or unicodedata.category(character) in _INVALID:
            raise RequestError(f"id={shown} contains {character!r}, which is not allowed in a file name")
    if size > _MAX_BYTES:
        raise RequestError(f"id={shown} is {size} bytes long; at most {_MAX_BYTES} are allowed")


def reserve_id(row_id: str, reserved: dict[str, str]) -> None:
    """Adds an id to the reserved ones, by what names its file wherever case and forms of accents are ignored.

    A RequestError says if it is a duplicate, or some file systems would use one file for both.
    """
    name = unicodedata.normalize("NFC", row_id).casefold()
    other = reserved.get(name)
    reserved[name] = row_id
    if other == row_id:
        raise RequestError(f"duplicate id {validation.shown(row_id)}; files are named after ids")
    if other is not None:
        raise RequestError(
            f"ids {validation.shown(row_id)} and {validation.shown(other)} name the same file where upper and lower "
            "case are not distinguished; change one of them"
        )


def absolute_path(folder: str | os.PathLike[str], path: str) -> str:
    """The absolute path of an image given relative to a folder; a link stays one, to be refused as such."""
    return path if path.lower().startswith(("http://", "https://")) else os.path.abspath(os.path.join(folder, path))


def adapter_path(folder: str | os.PathLike[str], path: str) -> str:
    """The absolute path of an adapter given relative to a folder; a name on the hub stays one if nothing is there."""
    absolute = os.path.abspath(os.path.join(folder, path))
    names = (absolute, *(f"{absolute}{ending}" for ending in (".safetensors", *TORCH_ENDINGS)))
    local = map(os.path.exists, (*names, os.path.dirname(absolute)))
    return path if hub.is_name(path) and not any(local) else absolute


def file_name(row_id: str, number: int, batch_size: int, format: str = "png") -> str:  # noqa: A002
    """The file of one image of a row: "cat.png" for the only one, "cat_2.png" for the second of several."""
    return f"{row_id}.{format}" if batch_size == 1 else f"{row_id}_{number}.{format}"
