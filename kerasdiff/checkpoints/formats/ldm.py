"""Single files in the original layout of latent diffusion (LDM), Stable Diffusion 1.x and 2.x.

Blocks are numbered through there; the numbers follow from the configuration, which follows from
the tensors' names and shapes.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from kerasdiff.checkpoints import recognition
from kerasdiff.checkpoints.formats.diffusers_config import of_lcm
from kerasdiff.checkpoints.formats.diffusers_folder import clip_path, renamed
from kerasdiff.checkpoints.formats.ldm_sampling import read_sampling
from kerasdiff.checkpoints.formats.native import config_from
from kerasdiff.checkpoints.mapped_source import LeftOverReport, MappedSource, TensorSlice
from kerasdiff.errors import ModelError
from kerasdiff.models.blocks import decoder_blocks, encoder_blocks, unet_blocks
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.network_configs import AnyVAEConfig, TextEncoderConfig, UNetConfig, VAEConfig
from kerasdiff.models.tokenizer import Tokenizer
from kerasdiff.runtime.safetensors_map import TensorFiles
from kerasdiff.samplers.recipes import RECIPES, told_by

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."
# How the names of a network's tensors begin.
PREFIXES = {"text_encoder": (CLIP, OPEN_CLIP), "unet": (UNET,), "decoder": (VAE,), "encoder": (VAE,)}
# Where a file that we wrote has a tokenizer or settings that are not the usual ones, in its metadata.
TOKENIZER, CONFIG, RECIPE = "kerasdiff.tokenizer", "kerasdiff.config", "kerasdiff.recipe"
# What training leaves in such files: copies of the weights, the schedule, counters.
_REST = re.compile(
    r"model_ema\.|cond_stage_model\.(transformer\.)?(logit_scale|vision|visual_|text_projection)|"
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
    (r"(cond_stage_model\.transformer\.)(?=(embeddings|encoder|final_layer_norm)\.)", r"\1text_model."),
    # What diffusers' script, made for Stable Diffusion's levels, leaves as it is.
    (r"model\.diffusion_model\.up_blocks\.0\.attentions\.(\d+)\.", rf"{UNET}output_blocks.\1.1."),
    (r"vae\.(?=(encoder|decoder|quant_conv|post_quant_conv)\.)", VAE),
    # As a conversion by diffusers' script leaves it.
    (rf"({re.escape(UNET)})time_embedding\.cond_proj\.", r"\1time_embed.cond_proj."),
    *((rf"(.*\.mid\.attn_1\.)({theirs})\.", rf"\1{usual}.") for usual, theirs in _VAE_ATTENTION.items()),
)
# A tensor of each part of a U-Net's middle.
_MIDDLE = ("in_layers.2", "proj_in", "in_layers.2")
# Numbers that a level has in Stable Diffusion: two blocks, and the change of size.
_USUAL_BLOCKS = 3
_COND_PROJ = UNET + "time_embed.cond_proj.weight"
_HEADS_V1, _HEAD_WIDTH_V2 = 8, 64
_WIDTH_V2, _LAYERS_V2 = 1024, 23


def open_file(path: pathlib.Path) -> tuple[ModelConfig, Tokenizer, Callable[..., Any]]:
    """A file's configuration and tokenizer, and a function from a network's name to its parameters."""
    tensors = TensorFiles([path], usual_name)
    _check_parts(path, tensors)
    own = tensors.metadata
    config = config_from(own[CONFIG], path) if CONFIG in own else read_config(tensors)
    told = own[RECIPE] if own.get(RECIPE) in RECIPES else told_by(own.get("modelspec.title", ""))
    if told is not None and config.defaults.recipe is None:
        config = dataclasses.replace(config, defaults=dataclasses.replace(config.defaults, recipe=told))
    report = LeftOverReport()
    inside = (UNET, VAE, CLIP, OPEN_CLIP)
    report(tensors.where, [key for key in tensors if not key.startswith(inside) and not _REST.match(key)])

    skips = _skips_numbers(tensors)

    def source(network: str, shapes: Callable[[], dict[str, tuple[int, ...]]]) -> MappedSource:
        ignored = lambda key: is_ignored(network, key, config)  # noqa: E731
        found = MappedSource(tensors, shapes(), slices(network, config, skips), ignored)
        report(tensors.where, found.left_over)
        return found

    tokenizer = Tokenizer.from_json(own[TOKENIZER], path) if TOKENIZER in own else usual_tokenizer(config)
    return config, tokenizer, source


def usual_tokenizer(config: ModelConfig) -> Tokenizer:
    """CLIP's, as a file has none unless we wrote it; 2.x pads with "!"."""
    return Tokenizer.clip("!") if config.main_text_encoder.activation == "gelu" else Tokenizer.clip()


def usual_name(key: str) -> str:
    """The usual name of a tensor."""
    for pattern, usual in _RENAMED:
        key = re.sub(f"^{pattern}", usual, key)
    return key


def _check_parts(path: pathlib.Path, tensors: TensorFiles) -> None:
    """Raises ModelError, with what the file is as far as that is known, if it is no whole model."""
    recognition.refuse_architectures(path, tensors)
    parts = {"a U-Net": (UNET,), "an autoencoder": (VAE,), "a text encoder": (CLIP, OPEN_CLIP)}
    there = {name: any(key.startswith(prefixes) for key in tensors) for name, prefixes in parts.items()}
    missing = [name for name, found in there.items() if not found]
    if len(missing) > 1:
        recognition.refuse_part(path, tensors)
    elif missing:
        prefix = " or ".join(parts[missing[0]])
        name = missing[0].partition(" ")[2]
        raise ModelError(f"{path} has no {name} (nothing begins with {prefix}): give a file with the whole model")


def read_config(tensors: TensorFiles) -> ModelConfig:
    """The configuration that the tensors' names and shapes tell.

    Heads and norm groups are not in them: they are those of Stable Diffusion.
    """
    unet, vae, text_encoder = _unet_config(tensors), read_vae(tensors), _text_config(tensors)
    recognition.check_channels(tensors.where, unet, vae)
    schedule, defaults = read_sampling(tensors, text_encoder.activation == "gelu")
    if unet.embeds_guidance:
        defaults = dataclasses.replace(defaults, sampler="lcm", recipe="lcm", **of_lcm(unet))
    return ModelConfig(text_encoder, unet, vae, schedule, defaults)


def _is_v2(tensors: TensorFiles, text_width: int) -> bool:
    """Whether it is Stable Diffusion 2.x, whose text encoder may also have the names of 1.x."""
    return text_width == _WIDTH_V2 or OPEN_CLIP + "ln_final.weight" in tensors


def _shape(tensors: TensorFiles, key: str) -> tuple[int, ...]:
    if key not in tensors:
        raise ModelError(f"{tensors.where} is no Stable Diffusion checkpoint: it has no {key}")
    return tensors.shape(key)


def _count(tensors: TensorFiles, prefix: str) -> int:
    """One more than the largest number behind a prefix."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _unet_config(tensors: TensorFiles) -> UNetConfig:
    first = _shape(tensors, UNET + "input_blocks.0.0.weight")
    widths: list[int] = [first[0]]
    attention: list[bool] = []
    only_cross: list[bool] = []
    depths: list[int] = [0]
    skips = _skips_numbers(tensors)
    for block in range(1, _count(tensors, UNET + "input_blocks.")):
        if skips and block % _USUAL_BLOCKS == 2:
            continue
        if f"{UNET}input_blocks.{block}.0.op.weight" in tensors:
            widths.append(0)
            depths.append(0)
            continue
        widths[-1] = _shape(tensors, f"{UNET}input_blocks.{block}.0.out_layers.3.weight")[0]
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
    context_width = _shape(tensors, next(readers, UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight"))[-1]
    v2 = _is_v2(tensors, context_width)
    heads = tuple(max(1, width // _HEAD_WIDTH_V2) if v2 else _HEADS_V1 for width in widths)
    return UNetConfig(
        in_channels=first[1],
        out_channels=_shape(tensors, UNET + "out.2.weight")[0],
        widths=tuple(widths),
        layers_per_level=depths[0],
        attention=tuple(attention),
        num_heads=heads,
        context_width=context_width,
        gelu="erf",
        transformer_epsilon=1e-6,
        only_cross_attention=tuple(only_cross) if any(only_cross) else (),
        middle=("attention" if len(middle) > 1 else "plain") if middle else None,
        time_cond_proj_dim=tensors.shape(_COND_PROJ)[-1] if _COND_PROJ in tensors else None,
    )


def _skips_numbers(tensors: TensorFiles) -> bool:
    """Whether a U-Net with one block a level has the numbers of one with two, as diffusers' and kohya's scripts write.

    The first change of size is then block 3, and no block is 2.
    """
    first, second = (f"{UNET}input_blocks.{block}.0." for block in (2, 3))
    return second + "op.weight" in tensors and not any(key.startswith(first) for key in tensors)


def read_vae(tensors: TensorFiles) -> VAEConfig:
    """The autoencoder that the tensors' names and shapes tell."""
    levels = _count(tensors, VAE + "encoder.down.")
    depth = _count(tensors, VAE + "encoder.down.0.block.")
    widths = tuple(_shape(tensors, f"{VAE}encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels))
    if not widths:
        raise ModelError(f"{tensors.where} has only a part of an autoencoder: give a file with the whole model")
    latent_channels = _shape(tensors, VAE + "post_quant_conv.weight")[0]
    return VAEConfig(latent_channels, widths, depth, norm_epsilon=1e-6)


def _text_config(tensors: TensorFiles) -> TextEncoderConfig:
    open_clip = OPEN_CLIP + "ln_final.weight" in tensors
    if open_clip:
        tokens, positions = OPEN_CLIP + "token_embedding.weight", OPEN_CLIP + "positional_embedding"
        layers, mlp = OPEN_CLIP + "transformer.resblocks.", "mlp.c_fc"
    else:
        tokens, positions = (f"{CLIP}embeddings.{kind}_embedding.weight" for kind in ("token", "position"))
        layers, mlp = CLIP + "encoder.layers.", "mlp.fc1"
    vocab_size, width = _shape(tensors, tokens)
    v2 = _is_v2(tensors, width)
    num_layers = _count(tensors, layers)
    if v2:  # Stable Diffusion 2.x reads the penultimate layer, and some files leave out the last
        num_layers = min(num_layers, _LAYERS_V2) if width == _WIDTH_V2 else num_layers - open_clip
    return TextEncoderConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=num_layers,
        num_heads=max(1, width // _HEAD_WIDTH_V2),
        max_length=_shape(tensors, positions)[0],
        activation="gelu" if v2 else "quick_gelu",
        mlp_width=_shape(tensors, f"{layers}0.{mlp}.weight")[0],
    )


def is_ignored(network: str, key: str, config: ModelConfig) -> bool:
    """Whether a tensor may be left over by a network."""
    # What is outside of all networks is reported when the file is opened.
    if _REST.match(key) or not key.startswith(PREFIXES[network]):
        return True
    if network == "text_encoder":
        last = config.main_text_encoder.num_layers
        unread = (f"{OPEN_CLIP}transformer.resblocks.{last}.", f"{CLIP}encoder.layers.{_LAYERS_V2}.")
        rest = ("embeddings.position_ids", "text_projection", "text_projection.weight", "logit_scale", "attn_mask")
        return key.endswith(rest) or key.startswith(unread)
    other_half = {"decoder": ("encoder.", "quant_conv."), "encoder": ("decoder.", "post_quant_conv.")}
    return network in other_half and key.removeprefix(VAE).startswith((*other_half[network], "loss."))


def slices(network: str, config: ModelConfig, skips: bool = False) -> Callable[[str], Iterator[TensorSlice]]:
    """Our name of a parameter -> its slices in such a file, which may skip numbers of the U-Net's blocks."""
    if network == "text_encoder":
        return _text_slices
    if network == "text_encoder_2":
        return _text_2_slices
    paths = _unet_paths(config.unet, skips) if network == "unet" else _vae_paths(config.vae, network)

    def of(name: str) -> Iterator[TensorSlice]:
        path, leaf = renamed(name)
        for ours, theirs in paths.items():
            if path == ours or path.startswith(f"{ours}."):
                yield TensorSlice(f"{theirs}{path.removeprefix(ours)}.{leaf}")

    return of


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet_paths(config: UNetConfig, skips: bool) -> dict[str, str]:
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
            paths |= {f"{block.name}.{ours}": f"{resnet}.{theirs}" for ours, theirs in _RESNET.items()}
            if attends:
                paths[block.attention] = attention
    return {ours: UNET + theirs for ours, theirs in paths.items()}


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


_RESBLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
    "out_proj": "attn.out_proj",
}


def _text_slices(name: str) -> Iterator[TensorSlice]:
    path, leaf = renamed(name)
    yield TensorSlice(f"{CLIP}{clip_path(path)}.{leaf}")
    ends = {
        "token_embedding": "token_embedding.weight",
        "position_embedding": "positional_embedding",
        "final_layer_norm": f"ln_final.{leaf}",
    }
    if path in ends:
        yield TensorSlice(OPEN_CLIP + ends[path])
    else:
        _, index, part = path.split(".")
        block = f"{OPEN_CLIP}transformer.resblocks.{index}"
        if part in _RESBLOCK:
            yield TensorSlice(f"{block}.{_RESBLOCK[part]}.{leaf}")
        else:  # one matrix for queries, keys and values
            yield TensorSlice(f"{block}.attn.in_proj_{leaf}", ("q_proj", "k_proj", "v_proj").index(part), 3)


def _text_2_slices(name: str) -> Iterator[TensorSlice]:
    path, _ = renamed(name)
    if path == "text_projection":
        yield TensorSlice("conditioner.embedders.1.model.text_projection")
        return
    for one in _text_slices(name):
        if one.key.startswith(OPEN_CLIP):
            key = one.key.replace("cond_stage_model", "conditioner.embedders.1")
            yield TensorSlice(key, one.part, one.parts)
