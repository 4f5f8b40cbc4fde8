"""The U-Net of a single file: blocks are numbered through there, and the numbers follow from its configuration."""

import dataclasses
import itertools
import re
from typing import Any

from kerasdiff.checkpoints.formats.ldm_shapes import UNET, count, is_xl, shape_of
from kerasdiff.checkpoints.formats.ldm_text import HEAD_WIDTH, is_v2
from kerasdiff.errors import ModelError
from kerasdiff.models.blocks import unet_blocks
from kerasdiff.models.network_configs import TextEncoderConfig, UNetConfig
from kerasdiff.runtime.safetensors_map import TensorFiles

# A tensor of each part of a U-Net's middle.
_MIDDLE = ("in_layers.2", "proj_in", "in_layers.2")
# Numbers that a level has in Stable Diffusion: two blocks, and the change of size.
_USUAL_BLOCKS = 3
_COND_PROJ = UNET + "time_embed.cond_proj.weight"
_ADDED = UNET + "label_emb.0.0.weight"
_TRANSFORMER = re.compile(rf"({re.escape(UNET)}(?:\w+_blocks\.\d+|middle_block)\.1)\.transformer_blocks\.(\d{{1,4}})\.")
_HEADS_V1 = 8


def unet_config(tensors: TensorFiles, encoders: dict[str, TextEncoderConfig]) -> UNetConfig:
    """The U-Net that the tensors' names and shapes tell; norm groups, and what heads mean, are Stable Diffusion's."""
    first = shape_of(tensors, UNET + "input_blocks.0.0.weight")
    widths: list[int] = [first[0]]
    attention: list[bool] = []
    only_cross: list[bool] = []
    depths: list[int] = [0]
    skips = skips_numbers(tensors)
    for block in range(1, count(tensors, UNET + "input_blocks.")):
        if skips and block % _USUAL_BLOCKS == 2:
            continue
        if f"{UNET}input_blocks.{block}.0.op.weight" in tensors:
            widths.append(0)
            depths.append(0)
            continue
        widths[-1] = shape_of(tensors, f"{UNET}input_blocks.{block}.0.out_layers.3.weight")[0]
        depths[-1] += 1
        if depths[-1] == 1:
            attention.append(f"{UNET}input_blocks.{block}.1.norm.weight" in tensors)
            keys = f"{UNET}input_blocks.{block}.1.transformer_blocks.0.attn1.to_k.weight"
            only_cross.append(keys in tensors and tensors.shape(keys)[-1] != widths[-1])
    if len(set(depths)) != 1 or len(attention) != len(widths) or depths[0] < 1:
        raise ModelError(f"{tensors.where} has a U-Net of another make: {depths} residual blocks a level")
    middle = [block for block in range(3) if f"{UNET}middle_block.{block}.{_MIDDLE[block]}.weight" in tensors]
    if middle not in ([], [0], [0, 1, 2]):
        raise ModelError(f"{tensors.where} has a U-Net of another make: its middle has parts {middle}")
    readers = (key for key in tensors if key.startswith(UNET) and key.endswith(".attn2.to_k.weight"))
    context_width = shape_of(tensors, next(readers, UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight"))[-1]
    wide = is_xl(tensors) or is_v2(tensors, context_width)
    config = UNetConfig(
        in_channels=first[1],
        out_channels=shape_of(tensors, UNET + "out.2.weight")[0],
        widths=tuple(widths),
        layers_per_level=depths[0],
        attention=tuple(attention),
        num_heads=tuple(max(1, width // HEAD_WIDTH) if wide else _HEADS_V1 for width in widths),
        context_width=context_width,
        gelu="erf",
        transformer_epsilon=1e-6,
        only_cross_attention=tuple(only_cross) if any(only_cross) else (),
        middle=("attention" if len(middle) > 1 else "plain") if middle else None,
        time_cond_proj_dim=tensors.shape(_COND_PROJ)[-1] if _COND_PROJ in tensors else None,
        **(_added(tensors, encoders) if is_xl(tensors) else {}),
    )
    return _with_depths(tensors, config, skips)


def _added(tensors: TensorFiles, encoders: dict[str, TextEncoderConfig]) -> dict[str, Any]:
    """What is embedded besides the text; the refiner takes a score where the base model has a second size."""
    pooled = next((encoder.projection for encoder in encoders.values() if encoder.projection is not None), 0)
    count, inputs = 6 if len(encoders) > 1 else 5, shape_of(tensors, _ADDED)[-1]
    width, rest = divmod(inputs - pooled, count)
    if rest or width < 1:
        raise ModelError(
            f"{tensors.where} has a U-Net of another make: {_ADDED} reads {inputs} numbers, which are not those of a "
            f"pooled text ({pooled}) and of {count} sizes"
        )
    return {"pooled_width": pooled, "num_time_ids": count, "time_id_width": width}


def _with_depths(tensors: TensorFiles, config: UNetConfig, skips: bool) -> UNetConfig:
    """The same with the depths of its transformers, each counted by itself."""
    found: dict[str, int] = {}
    for match in filter(None, map(_TRANSFORMER.match, tensors)):
        found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    paths, last = unet_paths(config, skips), len(config.widths) - 1
    middle = found.get(f"{UNET}middle_block.1", 1)
    depths: dict[str, list[Any]] = {part: [1] * last + [middle] for part in ("down", "up")}
    for block in unet_blocks(config):
        if block.num_heads and not block.part.startswith("mid"):
            half = depths[block.part.partition("_")[0]]
            before = half[block.level] if block.index else ()
            half[block.level] = (*before, found.get(paths[block.attention], 1))
    config = dataclasses.replace(
        config, transformer_depth=tuple(depths["down"]), up_transformer_depth=tuple(depths["up"])
    )
    before = config.depths(last)[0]
    if config.middle == "attention" and before != middle:
        raise ModelError(
            f"{tensors.where} has a U-Net of another make: {middle} transformer blocks in its middle, and before it "
            f"{before}"
        )
    return config


def skips_numbers(tensors: TensorFiles) -> bool:
    """Whether a U-Net with one block a level has the numbers of one with two, as diffusers' and kohya's scripts write.

    The first change of size is then block 3, and no block is 2.
    """
    first, second = (f"{UNET}input_blocks.{block}.0." for block in (2, 3))
    return second + "op.weight" in tensors and not any(key.startswith(first) for key in tensors)


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_paths(config: UNetConfig, skips: bool) -> dict[str, str]:
    """Our name of a layer -> the beginning of its tensors' names in a file, which may skip numbers of blocks."""
    paths = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "time_embedding.cond_proj": "time_embed.cond_proj",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }

    inputs, outputs = itertools.count(1), itertools.count()
    where, attends = "", False
    for block in unet_blocks(config):
        if block.kind == "downsamplers":
            number = next(itertools.islice(inputs, skips, None))
            paths[f"{block.name}.conv"] = f"input_blocks.{number}.0.op"
        elif block.kind == "upsamplers":  # the last part of the block before, or of Stable Diffusion's
            if skips:
                where, attends = f"output_blocks.{next(outputs)}", block.part != "up_blocks.0"
            paths[f"{block.name}.conv"] = f"{where}.{2 if attends else 1}.conv"
        else:
            attends = block.num_heads > 0
            if block.part == "mid_block":
                resnet, attention = f"middle_block.{2 * block.index}", "middle_block.1"
            else:
                down = block.part.startswith("down")
                where = f"input_blocks.{next(inputs)}" if down else f"output_blocks.{next(outputs)}"
                resnet, attention = f"{where}.0", f"{where}.1"
            paths |= {f"{block.name}.{ours}": f"{resnet}.{theirs}" for ours, theirs in RESNET.items()}
            if attends:
                paths[block.attention] = attention
    return {ours: UNET + theirs for ours, theirs in paths.items()}
