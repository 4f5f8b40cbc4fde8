"""ControlNets in the layout of diffusers: a folder with a config.json and a file of weights."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from kerasdiff.checkpoints.formats import diffusers_folder
from kerasdiff.checkpoints.formats.diffusers_unet import reads_pooled, unet_config, unet_settings
from kerasdiff.checkpoints.formats.json_settings import JsonSettings, read_json
from kerasdiff.checkpoints.mapped_source import TensorSlice
from kerasdiff.errors import ModelError
from kerasdiff.models.config import FAMILIES, SD_V2, SDXL_REFINER, ModelConfig
from kerasdiff.models.control_configs import ControlNetConfig
from kerasdiff.models.network_configs import UNetConfig

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
    depths = values.get("transformer_layers_per_block")
    if isinstance(depths, list) and any(isinstance(depth, list) for depth in depths):
        # Of the half that a ControlNet does not have.
        theirs["reverse_transformer_layers_per_block"] = [
            [*depth, *depth[-1:]] if isinstance(depth, list) else depth for depth in reversed(depths)
        ]
    check_family(path.parent, *what_is_read(settings), model)
    unet, _ = unet_config(JsonSettings(path, theirs), model.unet.pooled_width, least=0)
    check_widths(path.parent, unet.widths, unet.layers_per_level, model)
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
    theirs = {
        name: value for name, value in unet.items() if name not in ("up_block_types", "out_channels", "sample_size")
    }
    own = config.channel_order, list(config.hint_widths), config.global_pool, config.hint_channels
    return theirs | {"_class_name": "ControlNetModel"} | dict(zip(_OWN, own, strict=True))


def what_is_read(settings: JsonSettings) -> tuple[int | None, int | None]:
    """How many numbers a ControlNet reads beside the text, and how many of a token of text; None if none is stated."""
    added = settings.get("projection_class_embeddings_input_dim", 0, int) if reads_pooled(settings) else None
    context = settings.get("cross_attention_dim", 1280, (int, list))
    widths = {width for width in context if width} if isinstance(context, list) else {context}
    return added, widths.pop() if len(widths) == 1 else None


def check_family(where: object, added: int | None, context: object, model: ModelConfig) -> None:
    """Raises ModelError if a ControlNet is for another family than that of the model that it is to steer.

    `added` is how many numbers it reads beside the text, None if it reads none, and `context` the width of the text.
    """
    ours = model.unet
    theirs = model.family
    if added != _added(ours) or (added is None and context is not None):
        theirs = family_of(added, context) or "sd1"
    if theirs != model.family:
        own = FAMILIES[model.family]
        raise ModelError(f"{where} is a ControlNet for {FAMILIES[theirs]}, and this model is {own}; give one for that")
    if added != _added(ours):
        raise _other_size(where, f"{added} numbers beside the text, not {_added(ours)}")
    if context not in (None, ours.context_width):
        raise _other_size(where, f"{context!r:.80} numbers a token of text, not {ours.context_width}")


def family_of(added: int | None, context: object) -> str | None:
    """The family that a ControlNet is for, by what it reads; None if nothing in it tells."""
    if added is None:
        return None if context is None else "sd2" if context == SD_V2.unet.context_width else "sd1"
    return "sdxl_refiner" if added == _added(SDXL_REFINER.unet) else "sdxl"


def _added(unet: UNetConfig) -> int | None:
    return None if unet.pooled_width is None else unet.pooled_width + unet.num_time_ids * unet.time_id_width


def _other_size(where: object, reason: str) -> ModelError:
    return ModelError(f"{where} is a ControlNet for a model of another size than this one: {reason}")


def check_widths(where: object, widths: Sequence[int], layers: int, model: ModelConfig) -> None:
    """Raises ModelError if what a ControlNet makes has not the sizes of what it is to be added to."""
    ours = model.unet
    if (tuple(widths), layers) != (ours.widths, ours.layers_per_level):
        found, wanted = (", ".join(map(str, each)) or "none" for each in (widths, ours.widths))
        raise _other_size(
            where, f"{layers} blocks a level, with channels {found}, not {ours.layers_per_level} of {wanted}"
        )


def check_inputs(where: object, config: ControlNetConfig, model: ModelConfig) -> None:
    """Raises ModelError if a ControlNet reads something else than latents of the model, and hints in colour."""
    latents, factor = model.vae.latent_channels, model.latent_factor
    if config.unet.in_channels != latents:
        reads = f"latents of {config.unet.in_channels} channels, and this model has {latents}"
    elif config.hint_channels != 3:
        reads = f"hints of {config.hint_channels} channels; those of 3 are supported"
    elif config.factor != factor:
        reads = f"hints {config.factor} times as large as latents, and for this model they are {factor} times as large"
    else:
        return
    raise ModelError(f"{where} is a ControlNet that reads {reads}")


def controlnet_slices(name: str) -> Iterator[TensorSlice]:
    """What one of our names is called."""
    yield TensorSlice(".".join(diffusers_folder.renamed(name)))
