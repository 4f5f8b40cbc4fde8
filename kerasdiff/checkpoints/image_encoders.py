"""Where the image encoder of an IP-Adapter is: beside its file, as in h94/IP-Adapter, or where it is said to be."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence

from kerasdiff.checkpoints import hub
from kerasdiff.checkpoints.formats import diffusers_folder
from kerasdiff.checkpoints.formats.image_encoder_folder import SETTINGS, STEM, image_encoder_config
from kerasdiff.errors import ModelError
from kerasdiff.models.control_configs import IPAdapterConfig
from kerasdiff.models.network_configs import CLIPVisionConfig
from kerasdiff.validation import shown

NAME = "image_encoder"
# From the folder of an adapter's file.
_BESIDE = (NAME, f"../models/{NAME}", f"../sdxl_models/{NAME}", f"../{NAME}")
# What they are called, by the width of their embeddings, and by that of what their layers give.
_OF_EMBEDDINGS = {768: "CLIP ViT-L/14", 1024: "CLIP ViT-H/14", 1280: "CLIP ViT-bigG/14"}
_OF_LAYERS = {1024: "CLIP ViT-L/14", 1280: "CLIP ViT-H/14", 1664: "CLIP ViT-bigG/14"}
_PUBLISHED = {"CLIP ViT-H/14": f"models/{NAME}", "CLIP ViT-bigG/14": f"sdxl_models/{NAME}"}


def find_image_encoder(adapter: pathlib.Path, config: IPAdapterConfig, name: str, given: str | None) -> pathlib.Path:
    """The folder of the image encoder that an adapter's file reads: the `given` one, or one beside it.

    `name` is what the adapter was asked for by, which may be on the Hugging Face hub, where its encoder is then too.

    Raises:
        ModelError: there is none, or only such as the adapter does not read.
    """
    where = _folders(adapter.parent) if given is None else _given(given)
    on_hub = given is None and hub.is_place(name) and not os.path.exists(os.path.expanduser(name))
    if on_hub:
        where = _folders(hub.fetch_chosen(name, _settings).parent)
    there = [folder for folder in where if (folder / SETTINGS).is_file()]
    found = next((folder for folder in there if config.reads(image_encoder_config(folder))), None)
    if found is not None:
        return _from_hub(name, os.path.relpath(found, adapter.parent)) if on_hub else found
    needed = f"{adapter} needs the image encoder {_needed(config)}"
    if there:
        others = ", ".join(f"{folder} is {_what(config, image_encoder_config(folder))}" for folder in there)
        raise ModelError(f"{needed}, and {others}; give another folder as encoder")
    if given is not None:
        raise ModelError(f"{needed}, and there is none at {shown(given)}; give its folder, with {SETTINGS}")
    raise ModelError(f"{needed}: give its folder as encoder, or put it beside the file, as {NAME}/")


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Where image encoders may be for files in a folder."""
    return [pathlib.Path(os.path.normpath(folder / place)) for place in _BESIDE]


def _given(name: str) -> list[pathlib.Path]:
    folder = pathlib.Path(os.path.abspath(os.path.expanduser(name)))
    if not folder.is_dir() and hub.is_place(name):
        return [_from_hub(name, None)]
    return [folder, folder / NAME]


@functools.cache  # asking the hub again takes a second
def _from_hub(name: str, beside: str | None) -> pathlib.Path:
    """A folder that a name leads to, or one beside the file that it leads to, with its weights."""

    def choose(repository: str, names: Sequence[str], place: str) -> tuple[str, Sequence[str]]:
        meant = place if beside is None else os.path.normpath(f"{os.path.dirname(place)}/{beside}").lstrip("/")
        start = f"{meant}/" if meant else ""
        inside = [one.removeprefix(start) for one in names if one.startswith(start)]
        sets = diffusers_folder.variants(inside, STEM)
        if SETTINGS not in inside or not sets:
            raise ModelError(f"{repository}/{meant} has no image encoder: it lacks {SETTINGS} or weights")
        taken = sets[None] if None in sets else next(iter(sets.values()))
        return meant, [start + one for one in (SETTINGS, *diffusers_folder.with_shards(taken))]

    return hub.fetch_chosen(name, choose)


def _settings(repository: str, names: Sequence[str], place: str) -> tuple[str, Sequence[str]]:
    """An adapter's file, and the settings of all image encoders that are near it."""
    folders = (os.path.normpath(f"{os.path.dirname(place)}/{beside}").lstrip("/") for beside in _BESIDE)
    return place, [place, *(f"{folder}/{SETTINGS}" for folder in folders if f"{folder}/{SETTINGS}" in names)]


def _needed(config: IPAdapterConfig) -> str:
    width, names = config.embedding_width, _OF_EMBEDDINGS if config.kind == "plain" else _OF_LAYERS
    what = f"whose {'embeddings' if config.kind == 'plain' else 'layers'} are {width} wide"
    if width not in names:
        return what
    published = f" ({_PUBLISHED[names[width]]} of h94/IP-Adapter)" if names[width] in _PUBLISHED else ""
    return f"{names[width]}{published}, {what}"


def _what(config: IPAdapterConfig, encoder: CLIPVisionConfig) -> str:
    plain = config.kind == "plain"
    width, names = (encoder.projection, _OF_EMBEDDINGS) if plain else (encoder.width, _OF_LAYERS)
    return names.get(width, f"one of {width}")
