"""ControlNets in the layout of diffusers: a folder with a config.json and a file of weights."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from kerasdiff.checkpoints.formats import diffusers_folder
from kerasdiff.checkpoints.formats.diffusers_unet import unet_config, unet_settings
from kerasdiff.checkpoints.formats.json_settings import JsonSettings, read_json
from kerasdiff.checkpoints.mapped_source import TensorSlice
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.control_configs import ControlNetConfig

# How the names of its files of weights begin.
WEIGHTS = "diffusion_pytorch_model"
_OWN = (
    *("controlnet_conditioning_channel_order", "conditioning_embedding_out_channels", "global_pool_conditions"),
    "conditioning_channels",
)
_UP = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D", "DownBlock2D": "UpBlock2D"}


def controlnet_config(path: pathlib.Path, model: ModelConfig) -> ControlNetConfig:
    """What a config.json says; `model` is what the ControlNet steers."""
    values = read_json(path)
    settings = JsonSettings(path, values)
    default = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    down = settings.get("down_block_types", default, list)
    theirs = {name: value for name, value in values.items() if name not in _OWN}
    theirs["up_block_types"] = [_UP.get(kind, kind) for kind in reversed(down)]
    unet, _ = unet_config(JsonSettings(path, theirs), model.unet.pooled_width)
    return settings.made(
        ControlNetConfig,
        unet=unet,
        hint_channels=settings.get("conditioning_channels", 3, int),
        hint_widths=settings.numbers("conditioning_embedding_out_channels", [16, 32, 96, 256]),
        channel_order=settings.get("controlnet_conditioning_channel_order", "rgb", str),
        global_pool=settings.get("global_pool_conditions", False, bool),
    )


def controlnet_settings(config: ControlNetConfig, model: ModelConfig) -> dict[str, Any]:
    """The inverse of `controlnet_config`."""
    unet = unet_settings(dataclasses.replace(model, unet=config.unet))
    theirs = {name: value for name, value in unet.items() if name not in ("up_block_types", "out_channels")}
    own = config.channel_order, list(config.hint_widths), config.global_pool, config.hint_channels
    return theirs | {"_class_name": "ControlNetModel"} | dict(zip(_OWN, own, strict=True))


def controlnet_files(folder: pathlib.Path, variant: str | None = None) -> Callable[[str], list[pathlib.Path]]:
    """The files of its weights."""
    return lambda network: diffusers_folder.weight_files(folder, WEIGHTS, variant)


def controlnet_slices(name: str) -> Iterator[TensorSlice]:
    """What one of our names is called."""
    yield TensorSlice(".".join(diffusers_folder.renamed(name)))
