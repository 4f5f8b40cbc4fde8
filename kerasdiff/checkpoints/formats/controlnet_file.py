"""Single files of ControlNets in the original layout or that of diffusers: what a network is follows from shapes."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence

from kerasdiff.checkpoints.formats import diffusers_folder
from kerasdiff.checkpoints.formats.diffusers_controlnet import check_family, check_widths
from kerasdiff.checkpoints.formats.json_settings import JsonSettings
from kerasdiff.checkpoints.formats.ldm_shapes import count
from kerasdiff.checkpoints.formats.ldm_unet import RESNET
from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.control_configs import ControlNetConfig
from kerasdiff.models.network_configs import UNetConfig
from kerasdiff.runtime.safetensors_map import TensorFiles

# How the names may begin in the original layout, also in a file with the whole model beside it.
PREFIX = "control_model."
_HINT = "controlnet_cond_embedding"
_FIRST, _ADDED, _BLOCKS = f"{_HINT}.conv_in.weight", "add_embedding.linear_1.weight", "transformer_blocks."
_RENAMED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block_out.0": "controlnet_mid_block",
}
# In the name of a file whose residuals are means, which nothing in it tells.
_POOLED = "shuffle"


def usual_names(keys: Iterable[str]) -> Callable[[str], str]:
    """From the names of a file's tensors to those of diffusers."""
    bare = {key.removeprefix(PREFIX) for key in keys}
    changes = [int(match[1]) for match in (re.match(r"input_blocks\.(\d+)\.0\.op\.", key) for key in bare) if match]
    hints = [int(match[1]) for match in (re.match(r"input_hint_block\.(\d+)\.", key) for key in bare) if match]
    blocks, last = min(changes, default=10**4), max(hints, default=0)

    def renamed(key: str) -> str:
        name, _, leaf = key.removeprefix(PREFIX).rpartition(".")
        if name in _RENAMED:
            return f"{_RENAMED[name]}.{leaf}"
        part, *numbers = name.split(".")
        if part == "zero_convs":
            return f"controlnet_down_blocks.{numbers[0]}.{leaf}"
        if part == "input_hint_block" and numbers[0].isdecimal():
            number = int(numbers[0])
            layer = {0: "conv_in", last: "conv_out"}.get(number, f"blocks.{number // 2 - 1}")
            return f"{_HINT}.{layer}.{leaf}"
        found = re.fullmatch(r"input_blocks\.(\d+)\.(\d)\.(.*)|middle_block\.(\d)\.(.*)", name)
        if found is None:
            return key
        number = int(found[1] or 0) - 1
        level, index = (f"down_blocks.{number // blocks}", number % blocks) if found[1] else ("mid_block", 0)
        kind, inner = (int(found[2]), found[3]) if found[1] else (int(found[4]) % 2, found[5])
        index = index if found[1] else int(found[4]) // 2
        if inner == "op":
            return f"{level}.downsamplers.0.conv.{leaf}"
        if kind:
            return f"{level}.attentions.{index}.{inner}.{leaf}"
        return f"{level}.resnets.{index}.{_LAYERS.get(inner, inner)}.{leaf}"

    return renamed


_LAYERS = {theirs: ours for ours, theirs in RESNET.items()}


def open_tensors(paths: Sequence[pathlib.Path]) -> tuple[TensorFiles, Callable[[str], bool]]:
    """The tensors of files by diffusers' names, and which of them may be left over."""
    keys = list(TensorFiles(paths))
    inside = any(key.startswith(PREFIX) for key in keys)
    own = {key for key in keys if key.startswith(PREFIX) or not inside}
    renamed = usual_names(own)
    tensors = TensorFiles(paths, lambda key: renamed(key) if key in own else key)
    return tensors, lambda key: (key in keys and key not in own) or diffusers_folder.COMPONENTS["unet"].is_unread(key)


def shapes_config(path: pathlib.Path, tensors: TensorFiles, model: ModelConfig) -> ControlNetConfig:
    """What names and shapes tell; heads and groups are those of the model that it steers.

    Raises:
        ModelError: it lacks a part, or was made for another model.
    """
    matrix, kernel = (functools.partial(_shape, path, tensors, rank) for rank in (2, 4))
    levels, layers = count(tensors, "down_blocks."), count(tensors, "down_blocks.0.resnets.")
    first, latents = kernel(_FIRST), kernel("conv_in.weight")
    added, context = what_shapes_read(path, tensors)
    check_family(path, added, context, model)
    widths = tuple(kernel(f"down_blocks.{level}.resnets.0.conv1.weight")[0] for level in range(levels))
    check_widths(path, widths, layers, model)
    places = [f"down_blocks.{level}.attentions." for level in range(levels)]
    attention = tuple(f"{place}0.norm.weight" in tensors for place in places)
    middle = "mid_block.attentions.0."
    depths: list[int | tuple[int, ...]] = [
        tuple(count(tensors, f"{place}{index}.{_BLOCKS}") for index in range(layers)) if attends else 1
        for place, attends in zip(places, attention, strict=True)
    ]
    if not attention[-1]:
        depths[-1] = count(tensors, middle + _BLOCKS)
    keys = [f"{place}0.{_BLOCKS}0.attn1.to_k.weight" for place in places]
    only = [key in tensors and matrix(key)[1] != width for key, width in zip(keys, widths, strict=True)]
    settings, theirs = JsonSettings(path, {}), model.unet
    unet = settings.made(
        UNetConfig,
        in_channels=latents[1],
        widths=widths,
        layers_per_level=layers,
        attention=attention,
        num_heads=theirs.num_heads,
        context_width=theirs.context_width if context is None else context,
        norm_groups=theirs.norm_groups,
        gelu="erf",
        transformer_epsilon=1e-6,
        norm_epsilon=theirs.norm_epsilon,
        middle="attention" if f"{middle}norm.weight" in tensors else "plain",
        only_cross_attention=tuple(only) if any(only) else (),
        transformer_depth=tuple(depths),
        pooled_width=theirs.pooled_width,
        num_time_ids=theirs.num_time_ids,
        time_id_width=theirs.time_id_width,
    )
    hints = (f"{_HINT}.blocks.{2 * index + 1}.weight" for index in range(count(tensors, f"{_HINT}.blocks.") // 2))
    return settings.made(
        ControlNetConfig,
        unet=unet,
        hint_channels=first[1],
        hint_widths=(first[0], *(kernel(key)[0] for key in hints)),
        global_pool=is_pooled(path),
    )


def is_pooled(path: pathlib.Path) -> bool:
    """Whether a file's residuals are means, which its name alone tells."""
    return _POOLED in path.stem.lower()


def what_shapes_read(path: pathlib.Path, tensors: TensorFiles) -> tuple[int | None, int | None]:
    """How many numbers a ControlNet reads beside the text, and how many of a token of text; None if none."""
    context = next((key for key in tensors if key.endswith(".attn2.to_k.weight")), None)
    added = _ADDED if _ADDED in tensors else None
    return tuple(None if key is None else _shape(path, tensors, 2, key)[1] for key in (added, context))  # type: ignore[return-value]


def _shape(path: pathlib.Path, tensors: TensorFiles, rank: int, key: str) -> tuple[int, ...]:
    if key not in tensors:
        raise ModelError(f"{path} has only a part of a ControlNet: it has no {key}")
    shape = tensors.shape(key)
    if len(shape) != rank:
        raise ModelError(f"{path} is no ControlNet that can be built: {key} has shape {list(shape)}")
    return shape
