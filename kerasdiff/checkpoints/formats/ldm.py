"""Single files in the original layout of latent diffusion (LDM): Stable Diffusion 1.x, 2.x and XL.

Their configuration follows from the tensors' names and shapes.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from kerasdiff.checkpoints import recognition
from kerasdiff.checkpoints.formats import ldm_text
from kerasdiff.checkpoints.formats.diffusers_config import of_lcm
from kerasdiff.checkpoints.formats.diffusers_folder import renamed
from kerasdiff.checkpoints.formats.ldm_sampling import read_sampling
from kerasdiff.checkpoints.formats.ldm_shapes import UNET, VAE, count, is_xl, shape_of
from kerasdiff.checkpoints.formats.ldm_unet import skips_numbers, unet_config, unet_paths
from kerasdiff.checkpoints.formats.native import config_from
from kerasdiff.checkpoints.mapped_source import LeftOverReport, MappedSource, TensorSlice
from kerasdiff.errors import ModelError
from kerasdiff.models.blocks import decoder_blocks, encoder_blocks
from kerasdiff.models.config import SDXL_VAE, ModelConfig
from kerasdiff.models.network_configs import AnyVAEConfig, VAEConfig
from kerasdiff.models.tokenizer import Tokenizer
from kerasdiff.runtime.safetensors_map import TensorFiles
from kerasdiff.samplers.recipes import RECIPES, told_by

# The networks that such a file may have, and how the names of their tensors may begin.
PREFIXES = {
    "text_encoder": (ldm_text.PLACE, ldm_text.XL_PLACES[0]),
    "text_encoder_2": ldm_text.XL_PLACES,
    "unet": (UNET,),
    "decoder": (VAE,),
    "encoder": (VAE,),
}
# Where a file that we wrote has a tokenizer or settings that are not the usual ones, in its metadata.
TOKENIZERS = {"text_encoder": "kerasdiff.tokenizer", "text_encoder_2": "kerasdiff.tokenizer_2"}
CONFIG, RECIPE = "kerasdiff.config", "kerasdiff.recipe"
# The defaults of a latent consistency model.
LCM: dict[str, Any] = {"sampler": "lcm", "spacing": None, "recipe": "lcm"}
_ENCODER = r"(?:cond_stage_model|conditioner\.embedders\.\d)"
# What training leaves in such files: copies of the weights, the schedule, counters.
_REST = re.compile(
    rf"model_ema\.|{_ENCODER}\.(transformer\.)?(logit_scale|vision|visual_|text_projection)|"
    r"(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod|sqrt_recip|betas|log_one|posterior_|lvlb_weights|logvar|"
    r"scale_factor|global_step|epoch$|loss\.|embedding_manager\.|optimizer|lr_schedulers|callbacks\.|(denoiser\.)?(log_)?sigmas$|"
    r"first_stage_model\.(loss|model_ema)\.|v_pred$|ztsnr$"
)
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q|query",
    "k": "to_k|key",
    "v": "to_v|value",
    "proj_out": r"to_out\.0|proj_attn",
}
# Other names of the same tensors: the NAI kind's text encoder, and the autoencoder's of diffusers, new and before 2023.
_RENAMED = (
    (rf"({_ENCODER}\.transformer\.)(?=(embeddings|encoder|final_layer_norm)\.)", r"\1text_model."),
    # What diffusers' script, made for Stable Diffusion's levels, leaves as it is.
    (r"model\.diffusion_model\.up_blocks\.0\.attentions\.(\d+)\.", rf"{UNET}output_blocks.\1.1."),
    (r"vae\.(?=(encoder|decoder|quant_conv|post_quant_conv)\.)", VAE),
    # As a conversion by diffusers' script leaves it.
    (rf"({re.escape(UNET)})time_embedding\.cond_proj\.", r"\1time_embed.cond_proj."),
    *((rf"(.*\.mid\.attn_1\.)({theirs})\.", rf"\1{usual}.") for usual, theirs in _VAE_ATTENTION.items()),
)


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """What a file has: its configuration, network -> tokenizer, and network -> parameters.

    Networks that are `missing` have the usual configuration.
    """

    config: ModelConfig
    tokenizers: dict[str, Tokenizer]
    source: Callable[..., Any]
    missing: tuple[str, ...] = ()


def open_file(path: pathlib.Path) -> SingleFile:
    """Opens a file; raises ModelError if it is no model, or has not even text encoders and U-Net."""
    tensors = TensorFiles([path], usual_name)
    _check_parts(path, tensors)
    own = tensors.metadata
    config = config_from(own[CONFIG], path) if CONFIG in own else read_config(tensors)
    told = own[RECIPE] if own.get(RECIPE) in RECIPES else told_by(own.get("modelspec.title", ""))
    if told is not None and config.defaults.recipe is None:
        config = dataclasses.replace(config, defaults=dataclasses.replace(config.defaults, recipe=told))
    report = LeftOverReport()
    inside = (UNET, VAE, *(start for network in config.text_encoders for start in _starts(network, config)))
    report(tensors.where, [key for key in tensors if not key.startswith(inside) and not _REST.match(key)])

    skips = skips_numbers(tensors)

    def source(network: str, shapes: Callable[[], dict[str, tuple[int, ...]]]) -> MappedSource:
        ignored = lambda key: is_ignored(network, key, config)  # noqa: E731
        found = MappedSource(tensors, shapes(), slices(network, config, skips), ignored)
        report(tensors.where, found.left_over)
        return found

    tokenizers = {
        network: Tokenizer.from_json(own[key], path) if key in own else usual_tokenizer(network, config)
        for network, key in TOKENIZERS.items()
        if network in config.text_encoders
    }
    return SingleFile(config, tokenizers, source, () if _has_vae(tensors) else ("decoder", "encoder"))


def usual_tokenizer(network: str, config: ModelConfig) -> Tokenizer:
    """CLIP's, as a file has none unless we wrote it; an OpenCLIP's pads with "!"."""
    return Tokenizer.clip("!") if config.text_encoders[network].activation == "gelu" else Tokenizer.clip()


def usual_name(key: str) -> str:
    """The usual name of a tensor."""
    for pattern, usual in _RENAMED:
        key = re.sub(f"^{pattern}", usual, key)
    return key


def _check_parts(path: pathlib.Path, tensors: TensorFiles) -> None:
    """Raises ModelError, with what the file is as far as that is known, if it is no whole model.

    An autoencoder may be missing, which another file can have.
    """
    recognition.refuse_architectures(path, tensors)
    parts: dict[str, tuple[str, ...]] = {"U-Net": (UNET,)}
    for network, place in ldm_text.places(tensors).items():
        parts[network.replace("_", " ")] = ldm_text.spellings(place)
    missing = [name for name, prefixes in parts.items() if not any(key.startswith(prefixes) for key in tensors)]
    if len(parts) + _has_vae(tensors) - len(missing) < 2:
        recognition.refuse_part(path, tensors)
        shape_of(tensors, UNET + "input_blocks.0.0.weight")
    elif missing:
        prefixes = " or ".join(parts[missing[0]])
        name = " and no ".join(missing)
        raise ModelError(f"{path} has no {name} (nothing begins with {prefixes}): give a file with the whole model")


def _has_vae(tensors: TensorFiles) -> bool:
    return any(key.startswith(VAE) for key in tensors)


def _starts(network: str, config: ModelConfig) -> tuple[str, ...]:
    """How the names of a network's tensors begin in the file of a model."""
    if network in config.text_encoders:
        return ldm_text.spellings(ldm_text.place_of(network, config))
    return PREFIXES[network]


def read_config(tensors: TensorFiles) -> ModelConfig:
    """The configuration that the tensors' names and shapes tell.

    Heads and norm groups are not in them: they are those of Stable Diffusion. Neither are the numbers of the
    autoencoder's latents.
    """
    xl, places = is_xl(tensors), ldm_text.places(tensors)
    encoders = {network: ldm_text.text_config(tensors, network, place) for network, place in places.items()}
    unet, vae = unet_config(tensors, encoders), read_vae(tensors)
    recognition.check_channels(tensors.where, unet, vae)
    v2 = not xl and encoders["text_encoder"].activation == "gelu"
    schedule, defaults = read_sampling(tensors, "xl" if xl else "v2" if v2 else "v1")
    if unet.embeds_guidance:
        defaults = dataclasses.replace(defaults, **LCM, **of_lcm(unet))
    return ModelConfig(
        encoders.get("text_encoder"),
        unet,
        vae,
        schedule,
        defaults,
        text_encoder_2=encoders.get("text_encoder_2"),
        # As diffusers' pipelines have it where a file says nothing.
        force_zeros_for_empty_prompt=len(encoders) > 1,
    )


def read_vae(tensors: TensorFiles) -> VAEConfig:
    """The autoencoder that the tensors' names and shapes tell; of a model without, the usual one."""
    usual = SDXL_VAE if is_xl(tensors) else VAEConfig(norm_epsilon=1e-6)
    if not _has_vae(tensors):
        return usual
    levels = count(tensors, VAE + "encoder.down.")
    depth = count(tensors, VAE + "encoder.down.0.block.")
    widths = tuple(shape_of(tensors, f"{VAE}encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels))
    if not widths:
        raise ModelError(f"{tensors.where} has only a part of an autoencoder: give a file with the whole model")
    latent_channels = shape_of(tensors, VAE + "post_quant_conv.weight")[0]
    return dataclasses.replace(usual, latent_channels=latent_channels, widths=widths, layers_per_level=depth)


def is_ignored(network: str, key: str, config: ModelConfig) -> bool:
    """Whether a tensor may be left over by a network."""
    # What is outside of all networks is reported when the file is opened.
    if _REST.match(key) or not key.startswith(_starts(network, config)):
        return True
    if network in config.text_encoders:
        return ldm_text.is_unread(key, network, config)
    other_half = {"decoder": ("encoder.", "quant_conv."), "encoder": ("decoder.", "post_quant_conv.")}
    return network in other_half and key.removeprefix(VAE).startswith((*other_half[network], "loss."))


def slices(network: str, config: ModelConfig, skips: bool = False) -> Callable[[str], Iterator[TensorSlice]]:
    """Our name of a parameter -> its slices in such a file, which may skip numbers of the U-Net's blocks."""
    if network in config.text_encoders:
        return ldm_text.text_slices(network, config)
    paths = unet_paths(config.unet, skips) if network == "unet" else _vae_paths(config.vae, network)

    def of(name: str) -> Iterator[TensorSlice]:
        path, leaf = renamed(name)
        for ours, theirs in paths.items():
            if path == ours or path.startswith(f"{ours}."):
                yield TensorSlice(f"{theirs}{path.removeprefix(ours)}.{leaf}")

    return of


def _vae_paths(config: AnyVAEConfig, half: str) -> dict[str, str]:
    if not isinstance(config, VAEConfig):
        raise ModelError("single files have no place for a small autoencoder (TAESD)")
    paths = {
        "conv_in": "conv_in",
        "conv_norm_out": "norm_out",
        "conv_out": "conv_out",
        "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
        "mid_block.attentions.0.to_q": "mid.attn_1.q",
        "mid_block.attentions.0.to_k": "mid.attn_1.k",
        "mid_block.attentions.0.to_v": "mid.attn_1.v",
        "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    }

    for block in encoder_blocks(config) if half == "encoder" else decoder_blocks(config):
        if block.kind == "downsamplers":
            paths[f"{block.name}.conv"] = f"down.{block.level - 1}.downsample.conv"
        elif block.kind == "upsamplers":
            paths[f"{block.name}.conv"] = f"up.{block.level + 1}.upsample.conv"
        else:
            side = block.part.partition("_")[0]
            where = f"mid.block_{block.index + 1}" if side == "mid" else f"{side}.{block.level}.block.{block.index}"
            paths |= {f"{block.name}.{part}": f"{where}.{part}" for part in ("norm1", "conv1", "norm2", "conv2")}
            paths[f"{block.name}.conv_shortcut"] = f"{where}.nin_shortcut"
    whole = {ours: f"{VAE}{half}.{theirs}" for ours, theirs in paths.items()}
    return {**whole, "quant_conv": VAE + "quant_conv", "post_quant_conv": VAE + "post_quant_conv"}
