"""How programs name the layers of a LoRA file: from their names to ours.

Names with "_" in place of every "." are not parsed back: what the layers of a model may be called follows from our own
names of its parameters, by the tables that checkpoints are read with.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from kerasdiff.adapters.weight_change import SUFFIXES
from kerasdiff.checkpoints.formats import ldm
from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS
from kerasdiff.models.config import FAMILIES, ModelConfig

# Those that a LoRA may change.
NETWORKS = ("unet", "text_encoder", "text_encoder_2")
# Of a name; a longer one would take long to search.
_LONGEST = 500
# How tensors' names end, in all spellings; diffusers' of before 2024 first, then peft's, then kohya's and LyCORIS'.
_ENDING = re.compile(
    r"(?:(?:\.lora_linear_layer|[._]lora)\.(?:(?P<side>down|up)\.weight|(?P<alpha>alpha))|"
    r"\.lora_(?P<letter>[AB])(?:\.\w+)?\.weight|"
    r"(?P<magnitude>\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?)|"
    rf"\.(?P<plain>{'|'.join(map(re.escape, SUFFIXES))})(?:\.default)?)\Z"
)
_LETTERS = {"A": "lora_down.weight", "B": "lora_up.weight"}
_WRAPPER = r"(?:base_model_model_|lycoris_)?"
# What stands before a layer's name; that of a second text encoder is never left out.
_PREFIXES = {
    "unet": re.compile(_WRAPPER + r"(?:(?:lora|oft)_unet_|unet_|(?:model_)?diffusion_model_)?"),
    "text_encoder": re.compile(
        _WRAPPER + r"(?:(?:lora|oft)_te1?_|text_encoder_|(?:text_encoders_)?clip_l_(?:transformer_)?|"
        r"cond_stage_model_(?:transformer|model)_|conditioner_embedders_0_transformer_)?"
    ),
    "text_encoder_2": re.compile(
        _WRAPPER + r"(?:(?:lora|oft)_te2_|text_encoder_2_|(?:text_encoders_)?clip_g_(?:transformer_)?|"
        r"conditioner_embedders_(?:1_(?:transformer|model)|0_model)_)"
    ),
}
_OF_TEXT_ENCODER = re.compile(
    r"(text_model_)?(encoder_layers_\d|embeddings_|final_layer_norm)|(transformer_)?resblocks_\d|ln_final|text_projection"
)
_WRAPPED_IN_TEXT_ENCODER = ((r"_to_(q|k|v|out)(_0)?$", r"_\1_proj"),)
# Layers that diffusers wrapped before 2024, whose wrappers had names of their own.
_WRAPPED = {
    "unet": ((r"_processor_to_", "_to_"), (r"_to_out$", "_to_out_0")),
    "text_encoder": _WRAPPED_IN_TEXT_ENCODER,
    "text_encoder_2": _WRAPPED_IN_TEXT_ENCODER,
}
# How the names of layers begin in Stable Diffusion of any size.
_LIKE_OURS = {
    "unet": re.compile(
        r"(down_blocks|up_blocks|input_blocks|middle_block|output_blocks)_\d|mid_block_|conv_(norm_)?(in|out)|time_emb|"
        r"out_[02]|label_emb_\d|add_embedding_"
    ),
    "text_encoder": _OF_TEXT_ENCODER,
    "text_encoder_2": _OF_TEXT_ENCODER,
}


@dataclasses.dataclass(frozen=True)
class ForeignLayers:
    """Layers that other models have, by their names; `families` are those of ours that have them, if any."""

    family: str
    part: str
    names: re.Pattern[str]
    families: tuple[str, ...] = ()


OF_XL = ("sdxl", "sdxl_refiner")
_XL, _VIDEO, _FLUX = FAMILIES["sdxl"], "a video model", "Flux or one of its kind"
# In order: the first that fits is meant.
FOREIGN = (
    *(
        ForeignLayers(family, part, re.compile(names))
        for family, part, names in (
            (_VIDEO, "a video model or AnimateDiff", r".*(motion_modules_|temporal_|time_stack_)"),
            (_VIDEO, "a video model", r"(.*_)?blocks_\d+_((self|cross)_attn_|ffn_\d)"),
            (_FLUX, _FLUX, r"(.*_)?(single_transformer_blocks|single_blocks|double_blocks)_\d"),
            ("Stable Diffusion 3", "Stable Diffusion 3", r"(.*_)?joint_blocks_\d|lora_te3_|text_encoder_3_"),
            ("an IP-Adapter (FaceID)", "an IP-Adapter", r"\d+_to_(q|k|v|out)$"),
            (
                "a diffusion transformer (Stable Diffusion 3, Flux or a later one)",
                "a diffusion transformer",
                r"(base_model_model_)?(lora_)?transformer_(?!resblocks)|"
                r"(lora_unet_|diffusion_model_|lycoris_|unet_)?(transformer_blocks|blocks|layers)_\d",
            ),
        )
    ),
    *(
        ForeignLayers(_XL, f"the {part} of {_XL}", re.compile(names), OF_XL)
        for part, names in (
            ("second text encoder", _PREFIXES["text_encoder_2"].pattern),
            ("size embedding", r".*_(label_emb_\d|add_embedding_)"),
            ("deep transformers", r".*blocks?_\d.*_transformer_blocks_[1-9]"),
        )
    ),
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of ours, "unet.conv_in"; a name may mean one of `parts` equal parts of its rows.

    `order` is smaller where a name is preferred to others of the same layer.
    """

    path: str
    order: int
    part: int = 0
    parts: int = 1


def split(key: str) -> tuple[str, str] | None:
    """A tensor's name as layer and suffix, which is spelt as kohya and LyCORIS do; None if it has none of them."""
    match = _ENDING.search(key) if len(key) <= _LONGEST else None
    if match is None or match.start() == 0:
        return None
    if match["side"]:
        suffix = f"lora_{match['side']}.weight"
    elif match["letter"]:
        suffix = _LETTERS[match["letter"]]
    else:
        suffix = match["plain"] or match["alpha"] or "dora_scale"
    return key[: match.start()], suffix


def is_magnitude(key: str) -> bool:
    """Whether a tensor is peft's vector of magnitudes, one for each output."""
    return ".lora_magnitude_vector" in key


def plain_name(network: str, module: str) -> str:
    """What a file calls a layer, with "_" for ".", and without what programs put before it or around it.

    It is "" for a layer of another network, as far as its name tells.
    """
    name = module.replace(".", "_")
    prefix = _PREFIXES[network].match(name)
    if prefix is None:
        return ""
    name = name[prefix.end() :]
    for wrapped, inner in _WRAPPED[network]:
        name = re.sub(wrapped, inner, name)
    return name


def foreign(module: str, family: str | None = None) -> ForeignLayers | None:
    """What a layer belongs to, if it is known to be one that models of a family do not have."""
    name = module.replace(".", "_")
    return next((each for each in FOREIGN if family not in each.families and each.names.match(name)), None)


def is_like_ours(network: str, module: str) -> bool:
    """Whether a network of Stable Diffusion, of any size, may have such a layer."""
    return _LIKE_OURS[network].match(plain_name(network, module)) is not None


@functools.lru_cache(maxsize=8)
def layers(network: str, names: tuple[str, ...], config: ModelConfig) -> dict[str, list[Layer]]:
    """Plain name -> the layers that it means, for our names of a network's parameters."""
    found: dict[str, list[Layer]] = {}
    in_diffusers, in_ldm = COMPONENTS[network].slices, ldm.slices(network, config)
    for name in names:
        for order, slice_ in enumerate([*in_diffusers(name), *in_ldm(name)]):
            key = re.sub(r"[._](weight|bias)$", "", slice_.key)
            plain = plain_name(network, key) or plain_name(network, f"{network}.{key}")
            layer = Layer(name.rpartition(".")[0], order, slice_.part, slice_.parts)
            if all(each.path != layer.path for each in found.setdefault(plain, [])):
                found[plain].append(layer)
    return found
