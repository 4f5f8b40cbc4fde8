"""Where adapters are: from paths, and names on the Hugging Face hub, to files; and the hashes that files go by."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Collection

import safetensors

from kerasdiff.adapters.lora_metadata import PEFT_SETTINGS, PEFT_WEIGHTS
from kerasdiff.checkpoints import hub
from kerasdiff.checkpoints.file_stamps import sha256 as sha256
from kerasdiff.errors import ModelError
from kerasdiff.runtime.safetensors_map import TORCH_ENDINGS
from kerasdiff.validation import nearest, shown

# The names that diffusers and peft give a LoRA, and diffusers an embedding; of each first that of safetensors.
_LORAS = tuple(f"{stem}{end}" for end in (".safetensors", ".bin") for stem in ("pytorch_lora_weights", PEFT_WEIGHTS))
_EMBEDDINGS = ("learned_embeds.safetensors", "learned_embeds.bin")
# How the names of LoRAs and of all adapters end, and how many files a folder is searched for.
_LORA_ENDINGS = (".safetensors", *TORCH_ENDINGS)
ENDINGS = (*_LORA_ENDINGS, ".png")
# How the names of upscalers end.
UPSCALERS = (".safetensors", *TORCH_ENDINGS, ".ckpt")
_MOST_FILES = 10_000
# What is read to know what a file is called.
_LARGEST_HEADER = 2**20
_SHOWN = 3


def find_lora(reference: str) -> pathlib.Path:
    """The file that a path leads to, or of "org/name" or "org/name/file.safetensors" on the Hugging Face hub.

    A folder has one file of the usual names, or only one. In an existing folder a file may be named without its
    ending, its subfolder, or as its training called it.
    """
    path = os.path.abspath(os.path.expanduser(reference))
    if os.path.isdir(path):
        return _in_folder(pathlib.Path(path))
    for there in (path, *(f"{path}{ending}" for ending in _LORA_ENDINGS)):
        if os.path.lexists(there):
            return pathlib.Path(there)
    folder, name = os.path.split(path)
    near = None
    if os.path.dirname(reference) and os.path.isdir(folder):
        files = []
        with contextlib.suppress(ModelError):  # too many to look through
            files = files_below(folder, _LORA_ENDINGS)
        named = itertools.chain(
            (file for file in files if file.stem == name), (file for file in files if trained_as(file) == name)
        )
        found = next(named, None)
        if found is not None:
            return found
        near = nearest(name, [file.stem for file in files])
    elif hub.is_name(reference):
        return _from_hub(reference)
    raise hub.not_found("LoRA", reference, near)


@functools.cache  # asking the hub again takes a second
def _from_hub(name: str) -> pathlib.Path:
    return hub.fetch_adapter(name, _LORAS, [PEFT_SETTINGS])


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
    """The file of a folder that is meant."""
    names = sorted(path.name for path in folder.iterdir())
    for endings in (".safetensors", TORCH_ENDINGS):
        found = [name for name in names if name.endswith(endings)]
        chosen = next((name for name in _LORAS if name in found), found[0] if len(found) == 1 else None)
        if chosen is not None:
            return folder / chosen
        if found:
            raise ModelError(f"{folder} has several files: give one of them, {', '.join(found[:_SHOWN])}")
    raise ModelError(f"{folder} has no .safetensors file, and none of PyTorch's")


def find_embedding(reference: str) -> pathlib.Path:
    """The file or folder that a path leads to, or of "org/name" or "org/name/file.safetensors" on the hub."""
    path = os.path.abspath(os.path.expanduser(reference))
    if os.path.exists(path):
        return pathlib.Path(path)
    if hub.is_name(reference):
        return hub.fetch_adapter(reference, _EMBEDDINGS)
    raise ModelError(f"there is no embedding {shown(reference)}: give a file, a folder, or 'org/name'")


def find_upscaler(reference: str) -> pathlib.Path:
    """The file that a path leads to, or of "org/name" or "org/name/file.pth" on the hub."""
    path = os.path.abspath(os.path.expanduser(reference))
    if os.path.isfile(path):
        return pathlib.Path(path)
    if os.path.isdir(path):
        files = [file.name for file in files_below(path, UPSCALERS)]
        among = f": give one of its files, {', '.join(files[:_SHOWN])}" if files else ""
        raise ModelError(f"{shown(reference)} is a folder, and not an upscaler{among}")
    if hub.is_name(reference):
        return _upscaler_from_hub(reference)
    raise ModelError(
        f"there is no upscaler {shown(reference)}; give a .safetensors or .pth file, or 'org/name/file.pth' on the "
        "Hugging Face hub"
    )


@functools.cache
def _upscaler_from_hub(name: str) -> pathlib.Path:
    return hub.fetch_adapter(name, ())


def files_below(folder: str | os.PathLike[str], endings: Collection[str] = ENDINGS) -> list[pathlib.Path]:
    """The files of a folder, and of those in it, that may be adapters, sorted; ModelError if it has too many files."""
    walk = (pathlib.Path(place, name) for place, _, names in os.walk(folder) for name in names)
    paths = list(itertools.islice(walk, _MOST_FILES + 1))
    if len(paths) > _MOST_FILES:
        raise ModelError(f"{folder} has more than {_MOST_FILES} files; give a folder of adapters alone")
    return sorted(path for path in paths if path.suffix.lower() in endings and path.is_file())


def trained_as(path: pathlib.Path) -> str | None:
    """What the training of a file called it, as AUTOMATIC1111's interface knows it too."""
    try:
        with open(path, "rb") as file:
            small = int.from_bytes(file.read(8), "little") < _LARGEST_HEADER
        if small:
            with safetensors.safe_open(path, "np") as opened:
                return (opened.metadata() or {}).get("ss_output_name")
    except (OSError, safetensors.SafetensorError):  # no LoRA, and nobody asked for it
        pass
    return None


def check_hash(where: str, known: str | None, found: str) -> None:
    """ModelError if a file has another hash than the one that is known."""
    if known not in (None, found):
        raise ModelError(f"{where} has changed: its SHA-256 was {known:.12}..., and is {found:.12}...")
