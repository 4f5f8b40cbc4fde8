"""The settings of diffusers' U-Nets: read to a configuration, and written from one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kerasdiff.checkpoints.formats import fixed_settings
from kerasdiff.checkpoints.formats.json_settings import JsonSettings, written
from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.network_configs import UNetConfig

# Our name of a setting -> their name, and their default.
_UNET: Mapping[str, tuple[str, Any]] = {
    "in_channels": ("in_channels", 4),
    "out_channels": ("out_channels", 4),
    "layers_per_level": ("layers_per_block", 2),
    "context_width": ("cross_attention_dim", 1280),
    "norm_groups": ("norm_num_groups", 32),
    "norm_epsilon": ("norm_eps", 1e-5),
}
_READ = (
    *("block_out_channels", "down_block_types", "up_block_types", "attention_head_dim", "num_attention_heads"),
    *("mid_block_type", "only_cross_attention", "sample_size", "time_embedding_dim", "time_cond_proj_dim"),
    *("transformer_layers_per_block", "reverse_transformer_layers_per_block"),
)
_LARGEST_SAMPLE = 2**12
# What is in the middle of a U-Net -> the type of its block.
_MIDDLES = {"attention": "UNetMidBlock2DCrossAttn", "plain": "UNetMidBlock2D", None: None}
_CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
_PLAIN = ("DownBlock2D", "UpBlock2D")
# Of the refiner, and of all others of Stable Diffusion XL's family.
_TIME_IDS = (5, 6)
_Depths = tuple[int | tuple[int, ...], ...]


def reads_pooled(settings: JsonSettings) -> bool:
    """Whether a U-Net reads a pooled embedding and sizes beside the text, as Stable Diffusion XL does."""
    return settings.get("addition_embed_type", None, str) == "text_time"


def unet_config(settings: JsonSettings, pooled: int | None, least: int = 1) -> tuple[UNetConfig, tuple[int, int]]:
    """The U-Net, and height and width of the latents that it was trained on.

    `pooled` is the width of the pooled embedding that the text encoders give, `least` how many blocks a transformer has
    at least.
    """
    path, widths = settings.path, settings.numbers("block_out_channels", [320, 640, 1280, 1280])
    down = _blocks(settings, "down_block_types", [_CROSS[0]] * 3 + [_PLAIN[0]])
    up = _blocks(settings, "up_block_types", [_PLAIN[1]] + [_CROSS[1]] * 3)
    kinds = {_CROSS[0]: True, _PLAIN[0]: False, _CROSS[1]: True, _PLAIN[1]: False}
    for kind in (*down, *up):
        if kind not in kinds:
            raise ModelError(f"{path}: block type {kind!r:.80} is not supported; known: {', '.join(kinds)}")
    attention = tuple(kinds[kind] for kind in down)
    levels = len(widths)
    if len(attention) != levels or tuple(kinds[kind] for kind in reversed(up)) != attention:
        raise ModelError(f"{path}: down_block_types and up_block_types do not mirror each other over {levels} levels")
    middle = settings.choice("mid_block_type", {block: kind for kind, block in _MIDDLES.items()}, _MIDDLES["attention"])
    # The middle's attention has the settings of the last level.
    attends = (*attention[:-1], attention[-1] or middle == "attention")
    settings = settings.per_level({"layers_per_block": [True] * levels, "cross_attention_dim": attends})
    settings.require(
        {**fixed_settings.UNET, "time_embedding_dim": (None, 0, 4 * widths[0])}, fixed_settings.UNET_MEANINGS
    )
    known = (key for key, _ in _UNET.values())
    settings.report_unknown((*known, *_READ, *fixed_settings.UNET, *fixed_settings.UNET_UNREAD))
    # Diffusers' name is a slip of its own: attention_head_dim is the number of heads.
    heads = settings.numbers("attention_head_dim", 8, levels, attends)
    if settings.get("num_attention_heads", None, (int, list)) is not None:
        heads = settings.numbers("num_attention_heads", 8, levels, attends)
    fields = settings.fields(_UNET)
    fields |= {"widths": widths, "attention": attention, "num_heads": heads, "middle": middle}
    fields |= _transformers(settings, attention, attends, least) | _added(settings, pooled)
    fields["only_cross_attention"] = _only_cross(settings, attention)
    embedding = settings.get("time_cond_proj_dim", None, int)
    fields["time_cond_proj_dim"] = None if embedding == 0 else embedding
    config = settings.made(UNetConfig, gelu="erf", transformer_epsilon=1e-6, **fields)
    return config, _sample_size(settings)


def _transformers(
    settings: JsonSettings, attention: Sequence[bool], attends: Sequence[bool], least: int
) -> dict[str, _Depths]:
    """How many transformer blocks there are, on the way down and on the way up."""
    name = "transformer_layers_per_block"
    down = _depths(settings, name, attends, least)
    if settings.get(f"reverse_{name}", None, (int, list)) is None:
        if any(isinstance(depth, tuple) for depth in down):
            raise ModelError(f"{settings.path}: {name}={list(down)!r:.80} needs reverse_{name} beside it")
        up = down
    else:
        up = _depths(settings, f"reverse_{name}", attention[::-1], least)[::-1]
    same = all(one == other for one, other, used in zip(down, up, attention, strict=True) if used)
    return {
        "transformer_depth": () if same and set(down) == {1} else down,
        "up_transformer_depth": () if same else up,
    }


def _depths(settings: JsonSettings, name: str, used: Sequence[bool], least: int) -> _Depths:
    """One number per level, or one per block where these differ; 1 where there is none and none is used."""
    value = settings.get(name, 1, (int, list))
    levels = value if isinstance(value, list) else [value] * len(used)
    if len(levels) != len(used):
        raise ModelError(f"{settings.path}: {name} has {len(levels)} entries, {len(used)} are needed")
    found: list[int | tuple[int, ...]] = []
    for level, uses in zip(levels, used, strict=True):
        counts = tuple(level if isinstance(level, list) else [level])
        if not uses and not all(counts):
            counts = (1,)
        if not counts or not all(type(count) is int and count >= least for count in counts):
            raise ModelError(f"{settings.path}: {name}={value!r:.80} must hold positive whole numbers")
        found.append(counts[0] if len(set(counts)) == 1 else counts)
    return tuple(found)


def _added(settings: JsonSettings, pooled: int | None) -> dict[str, int]:
    """The pooled embedding and the sizes that are inputs beside the text."""
    if not reads_pooled(settings):
        return {}
    width, total = (
        settings.get(name, 0, int) for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    )
    left = total - (pooled or 0)
    if width < 1 or left % width or left // width not in _TIME_IDS:
        raise ModelError(
            f"{settings.path}: projection_class_embeddings_input_dim={total} must be the {pooled} numbers of a pooled "
            f"embedding and {' or '.join(map(str, _TIME_IDS))} times addition_time_embed_dim={width}"
        )
    return {"pooled_width": pooled or 0, "num_time_ids": left // width, "time_id_width": width}


def _only_cross(settings: JsonSettings, attention: Sequence[bool]) -> tuple[bool, ...]:
    """The levels with attention whose first one reads the text too; () if there is none."""
    found = settings.get("only_cross_attention", False, (bool, list))
    found = found if isinstance(found, list) else [found] * len(attention)
    if len(found) != len(attention) or not all(one in (True, False, None) for one in found):
        raise ModelError(
            f"{settings.path}: only_cross_attention={found!r:.80} must be true or false, or one of them per level"
        )
    only = tuple(bool(one) and attends for one, attends in zip(found, attention, strict=True))
    return only if any(only) else ()


def _blocks(settings: JsonSettings, name: str, default: list[str]) -> list[str]:
    """Types of blocks; the oldest versions of diffusers began their names with "UNetRes"."""
    return [str(kind).removeprefix("UNetRes") for kind in settings.get(name, default, list)]


def _sample_size(settings: JsonSettings) -> tuple[int, int]:
    """Height and width of the latents that a U-Net was trained on."""
    sizes = settings.numbers("sample_size", 64)
    if len(sizes) > 2 or max(sizes) > _LARGEST_SAMPLE:
        raise ModelError(
            f"{settings.path}: sample_size={list(sizes)!r:.80} must be one number, or a height and a width"
        )
    # Before 0.9, diffusers saved Stable Diffusion 1.x with 32, and it still takes 64 for what these versions wrote.
    version = re.match(r"0\.(\d+)\b", settings.get("_diffusers_version", "", str))
    if len(sizes) == 1 and sizes[0] < 64 and version and int(version[1]) < 9:
        return 64, 64
    return sizes[0], sizes[-1]


def linear_projection(config: ModelConfig) -> bool:
    """Whether transformers begin and end with dense layers; in Stable Diffusion 1.x these are convolutions."""
    return config.unet.embeds_sizes or config.main_text_encoder.activation != "quick_gelu"


def unet_settings(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model's U-Net."""
    unet, levels = config.unet, range(len(config.unet.widths))
    kinds = [_CROSS if attention else _PLAIN for attention in unet.attention]
    sizes = [size // config.latent_factor for size in (config.defaults.height, config.defaults.width)]
    settings = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sizes[0] if sizes[0] == sizes[1] else sizes,
        **written(unet, _UNET),
        "block_out_channels": list(unet.widths),
        "down_block_types": [down for down, _ in kinds],
        "up_block_types": [up for _, up in reversed(kinds)],
        "attention_head_dim": list(unet.num_heads),
        "use_linear_projection": linear_projection(config),
    }
    if unet.middle != "attention":
        settings["mid_block_type"] = _MIDDLES[unet.middle]
    if unet.only_cross_attention:
        settings["only_cross_attention"] = unet.only_cross_attention
    if unet.embeds_guidance:
        settings["time_cond_proj_dim"] = unet.time_cond_proj_dim
    if unet.transformer_depth:
        settings["transformer_layers_per_block"] = unet.transformer_depth
    # Without it, diffusers takes no numbers per block.
    if unet.up_transformer_depth or any(isinstance(depth, tuple) for depth in unet.transformer_depth):
        up = unet.up_transformer_depth or [unet.depths(level, up=True) for level in levels]
        settings["reverse_transformer_layers_per_block"] = up[::-1]
    if unet.pooled_width is not None:
        settings |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": unet.time_id_width,
            "projection_class_embeddings_input_dim": unet.pooled_width + unet.num_time_ids * unet.time_id_width,
        }
    return settings
