"""The image encoders of IP-Adapters: CLIP's vision transformer with its projection, in a folder of transformers."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

from kerasdiff.checkpoints.formats import diffusers_folder
from kerasdiff.checkpoints.formats.diffusers_config import vision_fields
from kerasdiff.checkpoints.formats.json_settings import JsonSettings
from kerasdiff.checkpoints.mapped_source import LEAVES, TensorSlice
from kerasdiff.errors import ModelError
from kerasdiff.models.control_configs import IPAdapterConfig
from kerasdiff.models.network_configs import CLIPVisionConfig
from kerasdiff.validation import shown

SETTINGS, STEM, NAME = "config.json", "model", "image_encoder"
# Where they are from the folder of an adapter's file, in the layout of h94/IP-Adapter.
_BESIDE = (NAME, f"../models/{NAME}", f"../sdxl_models/{NAME}", f"../{NAME}")
# What they are called, by the width of their embeddings, and by that of what their layers give.
_NAMES = {
    True: {768: "CLIP ViT-L/14", 1024: "CLIP ViT-H/14", 1280: "CLIP ViT-bigG/14"},
    False: {1024: "CLIP ViT-L/14", 1280: "CLIP ViT-H/14", 1664: "CLIP ViT-bigG/14"},
}
_PLACES = {"CLIP ViT-H/14": "models/image_encoder", "CLIP ViT-bigG/14": "sdxl_models/image_encoder"}
# The rest of a whole CLIP.
_REST = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")


def image_encoder_config(folder: pathlib.Path) -> CLIPVisionConfig:
    """What the settings in a folder say."""
    path = folder / SETTINGS
    fields = vision_fields(path)
    return JsonSettings(path).made(CLIPVisionConfig, resize=fields["image_size"], **fields)


def find_image_encoder(adapter: pathlib.Path, config: IPAdapterConfig, given: str | None) -> pathlib.Path:
    """The folder of the image encoder of an adapter's file: the `given` one, or one beside it.

    Raises:
        ModelError: there is none, or only such as the adapter does not read.
    """
    where = [pathlib.Path(os.path.abspath(os.path.expanduser(given)))] if given is not None else places(adapter.parent)
    where = [inner for folder in where for inner in (folder, *([folder / NAME] if given is not None else []))]
    there = [folder for folder in where if (folder / SETTINGS).is_file()]
    for folder in there:
        if config.reads(image_encoder_config(folder)):
            return folder
    needed = f"{adapter} needs the image encoder {_needed(config)}"
    if given is not None and not there:
        raise ModelError(f"{needed}, and there is none at {shown(given)}; give its folder, with {SETTINGS}")
    if there:
        others = ", ".join(f"{folder} is {_what(config, image_encoder_config(folder))}" for folder in there)
        raise ModelError(f"{needed}, and {others}; give another folder as encoder")
    raise ModelError(f"{needed}: give its folder as encoder, or put it beside the file, as {NAME}/")


def places(folder: pathlib.Path) -> list[pathlib.Path]:
    """Where image encoders may be for files in a folder."""
    return [pathlib.Path(os.path.normpath(folder / place)) for place in _BESIDE]


def _needed(config: IPAdapterConfig) -> str:
    width = config.embedding_width
    what = "whose embeddings are" if config.kind == "plain" else "whose layers are"
    name = _NAMES[config.kind == "plain"].get(width)
    if name is None:
        return f"{what} {width} wide"
    return f"{name}{f' ({_PLACES[name]} of h94/IP-Adapter)' if name in _PLACES else ''}, {what} {width} wide"


def _what(config: IPAdapterConfig, encoder: CLIPVisionConfig) -> str:
    width = encoder.projection if config.kind == "plain" else encoder.width
    return _NAMES[config.kind == "plain"].get(width, f"one of {width}")


def image_encoder_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of its weights."""
    return diffusers_folder.weight_files(folder, STEM, None)


def is_other(key: str) -> bool:
    """Whether a tensor belongs to the rest of a whole CLIP."""
    return key.startswith(_REST)


def image_encoder_slices(name: str) -> Iterator[TensorSlice]:
    """What one of our names is called."""
    path, _, leaf = name.partition(".")[2].rpartition(".")
    if path == "visual_projection":
        yield TensorSlice(f"{path}.{LEAVES[leaf]}")
    else:
        key = f"{diffusers_folder.clip_path(path)}.{LEAVES[leaf]}" if path else f"embeddings.{leaf}"
        yield TensorSlice(f"vision_model.{key}")
