"""The image encoders of IP-Adapters: CLIP's vision transformer with its projection, in a folder of transformers."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from kerasdiff.checkpoints.formats import diffusers_folder
from kerasdiff.checkpoints.formats.diffusers_config import vision_fields
from kerasdiff.checkpoints.formats.json_settings import JsonSettings
from kerasdiff.checkpoints.mapped_source import LEAVES, TensorSlice
from kerasdiff.models.network_configs import CLIPVisionConfig

SETTINGS, STEM = "config.json", "model"
# The rest of a whole CLIP.
_REST = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")


def image_encoder_config(folder: pathlib.Path) -> CLIPVisionConfig:
    """What the settings in a folder say."""
    path = folder / SETTINGS
    fields = vision_fields(path)
    return JsonSettings(path).made(CLIPVisionConfig, resize=fields["image_size"], **fields)


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
