"""Folders in the layout of diffusers: a `model_index.json` and one folder for each component."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from kerasdiff.checkpoints.mapped_source import LEAVES, MappedSource, TensorSlice
from kerasdiff.errors import ModelError, RequestError
from kerasdiff.models.config import (
    Defaults,
    ModelConfig,
    SafetyCheckerConfig,
    ScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from kerasdiff.runtime.safetensors_map import TensorFiles
from kerasdiff.samplers import sampler_name

_LARGEST_JSON = 64 * 2**20
# Network -> its folder and the stem of its weights, of what every model has.
FILES = {
    "text_encoder": ("text_encoder", "model"),
    "unet": ("unet", "diffusion_pytorch_model"),
    "decoder": ("vae", "diffusion_pytorch_model"),
    "encoder": ("vae", "diffusion_pytorch_model"),
}
# The same of all networks.
ALL_FILES = {**FILES, "safety_checker": ("safety_checker", "model")}
# Settings that the networks here have in one way only, with what diffusers takes if a file does not say.
_UNET_FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
_VAE_FIXED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_VISION_FIXED: dict[str, Any] = {"num_channels": 3, "layer_norm_eps": 1e-5}
_PREPROCESSOR_FIXED: dict[str, Any] = {
    "do_resize": True,
    "resample": 3,  # bicubic
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": None,
}
SPACING_FLAGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}


def is_folder(folder: pathlib.Path) -> bool:
    """Whether a folder has diffusers' layout."""
    return (folder / "unet" / "config.json").is_file()


def read_config(folder: pathlib.Path) -> ModelConfig:
    """The configuration of a model folder, from the files that its components come with.

    Raises:
        ModelError: a file is missing or wrong, or describes something that is not built here.
    """
    unet, sample_size = _unet(folder / "unet" / "config.json")
    vae = _vae(folder / "vae" / "config.json")
    text_encoder = _text_encoder(folder / "text_encoder" / "config.json")
    schedule, sampler, spacing = _schedule(folder / "scheduler" / "scheduler_config.json")
    size = sample_size * 2 ** (len(vae.widths) - 1)
    defaults = Defaults(height=size, width=size, sampler=sampler, spacing=spacing)
    safety_checker = _safety_checker(folder) if _has_safety_checker(folder) else None
    return ModelConfig(text_encoder, unet, vae, schedule, defaults, safety_checker)


def files(folder: pathlib.Path, variant: str | None) -> Callable[[str], list[pathlib.Path]]:
    """The files of each network's weights."""
    return lambda network: _weight_files(folder / ALL_FILES[network][0], ALL_FILES[network][1], variant)


def source(files: Callable[[str], list[pathlib.Path]]) -> Callable[..., MappedSource]:
    """Where each network's parameters come from."""
    return lambda network, shapes: MappedSource(
        TensorFiles(files(network)), shapes(), PLACES[network], IGNORED[network]
    )


def check(folder: pathlib.Path, variant: str | None) -> None:
    """Looks whether all files that drawing needs are there, and reads none of the weights.

    Raises:
        ModelError: one is not.
    """
    files = [folder / "scheduler" / "scheduler_config.json"]
    for place, stem in dict.fromkeys(FILES.values()):
        files += [folder / place / "config.json", *_weight_files(folder / place, stem, variant)]
    for file in files:
        if not file.is_file():
            raise ModelError(f"there is no {file}")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: no such file, or something else in it.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ModelError(f"{path} is too large for a settings file")
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds {type(values).__name__}, not a JSON object")
    return values


class _Settings:
    """Values of a JSON file, or a part of one, each checked for its kind when it is asked for."""

    def __init__(self, path: pathlib.Path, values: dict[str, Any] | None = None) -> None:
        self.path, self._values = path, read_json(path) if values is None else values

    def get(self, name: str, default: Any, kind: type | tuple[type, ...]) -> Any:
        value = self._values.get(name, default)
        kind = (int, float) if kind is float else kind
        fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if value is not None and not fits:
            raise ModelError(f"{self.path}: {name}={value!r:.80} is not of the expected kind")
        return default if value is None else value

    def numbers(self, name: str, default: list[int] | int, count: int | None = None) -> tuple[int, ...]:
        value = self.get(name, default, (int, list))
        values = [value] * (count or 1) if isinstance(value, int) else value
        if not values or not all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in values):
            raise ModelError(f"{self.path}: {name}={value!r:.80} must hold positive whole numbers")
        if count is not None and len(values) != count:
            raise ModelError(f"{self.path}: {name} has {len(values)} entries, {count} are needed")
        return tuple(values)

    def size(self, name: str, default: int) -> int | tuple[int, int]:
        """A number of pixels for the shorter side, or a height and a width."""
        value = self.get(name, default, (int, dict))
        sides = {"shortest_edge": value} if isinstance(value, int) else value
        whole = all(type(side) is int for side in sides.values())
        if not whole or set(sides) not in ({"shortest_edge"}, {"height", "width"}):
            raise ModelError(
                f"{self.path}: {name}={value!r:.80} is not supported; a number, shortest_edge, or height and width are"
            )
        return sides["shortest_edge"] if len(sides) == 1 else (sides["height"], sides["width"])

    def require(self, fixed: dict[str, Any]) -> None:
        for name, expected in fixed.items():
            value = self._values.get(name, expected)
            if value != expected and not (expected is None and value is False):
                raise ModelError(f"{self.path}: {name}={value!r:.80} is not supported; only {expected!r} is")


def _unet(path: pathlib.Path) -> tuple[UNetConfig, int]:
    settings = _Settings(path)
    settings.require(_UNET_FIXED)
    widths = settings.numbers("block_out_channels", [320, 640, 1280, 1280])
    levels = len(widths)
    down = settings.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], list)
    up = settings.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, list)
    kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
    for kind in (*down, *up):
        if not isinstance(kind, str) or kind not in kinds:
            raise ModelError(f"{path}: block type {kind!r:.80} is not supported; known: {', '.join(kinds)}")
    attention = tuple(kinds[kind] for kind in down)
    if len(attention) != levels or tuple(kinds[kind] for kind in reversed(up)) != attention:
        raise ModelError(f"{path}: down_block_types and up_block_types do not mirror each other over {levels} levels")
    # Diffusers' name is a slip of its own: attention_head_dim is the number of heads.
    heads = settings.numbers("attention_head_dim", 8, levels)
    if settings.get("num_attention_heads", None, (int, list)) is not None:
        heads = settings.numbers("num_attention_heads", 8, levels)
    config = UNetConfig(
        in_channels=settings.get("in_channels", 4, int),
        out_channels=settings.get("out_channels", 4, int),
        widths=widths,
        layers_per_level=settings.get("layers_per_block", 2, int),
        attention=attention,
        num_heads=heads,
        context_width=settings.get("cross_attention_dim", 1280, int),
        norm_groups=settings.get("norm_num_groups", 32, int),
        gelu="erf",
        transformer_epsilon=1e-6,
        norm_epsilon=settings.get("norm_eps", 1e-5, float),
    )
    return config, settings.get("sample_size", 64, int)


def _vae(path: pathlib.Path) -> VAEConfig:
    settings = _Settings(path)
    settings.require(_VAE_FIXED)
    widths = settings.numbers("block_out_channels", [64])
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if settings.get(name, [kind], list) != [kind] * len(widths):
            raise ModelError(f"{path}: {name} must be {kind!r} at all {len(widths)} levels")
    return VAEConfig(
        latent_channels=settings.get("latent_channels", 4, int),
        widths=widths,
        layers_per_level=settings.get("layers_per_block", 1, int),
        norm_groups=settings.get("norm_num_groups", 32, int),
        norm_epsilon=1e-6,
        scaling_factor=settings.get("scaling_factor", 0.18215, float),
    )


def _text_encoder(path: pathlib.Path) -> TextEncoderConfig:
    settings = _Settings(path)
    settings.require({"layer_norm_eps": 1e-5})
    return TextEncoderConfig(
        vocab_size=settings.get("vocab_size", 49408, int),
        width=settings.get("hidden_size", 512, int),
        num_layers=settings.get("num_hidden_layers", 12, int),
        num_heads=settings.get("num_attention_heads", 8, int),
        max_length=settings.get("max_position_embeddings", 77, int),
        activation=settings.get("hidden_act", "quick_gelu", str),
        mlp_width=settings.get("intermediate_size", 2048, int),
    )


def _has_safety_checker(folder: pathlib.Path) -> bool:
    """Whether a model comes with a safety checker; its index may leave out one whose folder is there."""
    index = folder / "model_index.json"
    if not (folder / "safety_checker").is_dir():
        return False
    if not index.is_file():
        return True
    entry = _Settings(index).get("safety_checker", [None, None], list)
    if entry not in ([None, None], ["stable_diffusion", "StableDiffusionSafetyChecker"]):
        raise ModelError(
            f"{index}: safety_checker={entry!r:.80} is not supported; only StableDiffusionSafetyChecker is"
        )
    return entry[0] is not None


def _safety_checker(folder: pathlib.Path) -> SafetyCheckerConfig:
    path = folder / "safety_checker" / "config.json"
    whole = _Settings(path)
    # Older files have a copy of what differs from the defaults, which is what counts; some have no nesting.
    vision = whole.get("vision_config_dict", whole.get("vision_config", None, dict), dict)
    settings = whole if vision is None else _Settings(path, vision)
    settings.require(_VISION_FIXED)
    image_size = settings.get("image_size", 224, int)
    resize, mean, std = _preprocessor(folder / "feature_extractor" / "preprocessor_config.json", image_size)
    return SafetyCheckerConfig(
        image_size=image_size,
        patch_size=settings.get("patch_size", 32, int),
        width=settings.get("hidden_size", 768, int),
        num_layers=settings.get("num_hidden_layers", 12, int),
        num_heads=settings.get("num_attention_heads", 12, int),
        mlp_width=settings.get("intermediate_size", 3072, int),
        projection=whole.get("projection_dim", 512, int),
        activation=settings.get("hidden_act", "quick_gelu", str),
        resize=resize,
        mean=mean,
        std=std,
    )


def _preprocessor(
    path: pathlib.Path, image_size: int
) -> tuple[int | tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """What a picture is resized to, and the mean and deviation of its colours."""
    settings = _Settings(path)
    settings.require(_PREPROCESSOR_FIXED)
    crop = settings.size("crop_size", 224)
    if crop not in (image_size, (image_size, image_size)):
        raise ModelError(f"{path}: crop_size={crop} is not supported; the safety checker needs {image_size} pixels")
    usual = SafetyCheckerConfig()
    mean = settings.get("image_mean", list(usual.mean), list)
    std = settings.get("image_std", list(usual.std), list)
    return settings.size("size", 224), tuple(mean), tuple(std)


def _schedule(path: pathlib.Path) -> tuple[ScheduleConfig, str, str | None]:
    settings = _Settings(path)
    betas = settings.get("trained_betas", None, list)
    schedule = ScheduleConfig(
        num_train_timesteps=settings.get("num_train_timesteps", 1000, int),
        beta_start=settings.get("beta_start", 0.0001, float),
        beta_end=settings.get("beta_end", 0.02, float),
        beta_schedule=settings.get("beta_schedule", "linear", str),
        prediction_type=settings.get("prediction_type", "epsilon", str),
        trained_betas=None if betas is None else tuple(betas),
        rescale_betas_zero_snr=settings.get("rescale_betas_zero_snr", False, bool),
        steps_offset=settings.get("steps_offset", 0, int),
        set_alpha_to_one=settings.get("set_alpha_to_one", None, bool),
    )
    # What a class filled in by itself does not follow when the sampler is switched.
    filled_in = settings.get("_use_default_values", [], list)
    spacing = None if "timestep_spacing" in filled_in else settings.get("timestep_spacing", None, str)
    for flag, name in SPACING_FLAGS.items():
        if settings.get(flag, False, bool):
            spacing = name
    return schedule, _sampler(settings), spacing


def _sampler(settings: _Settings) -> str:
    """The sampler of a scheduler's class; one that is not here leaves the choice to us."""
    class_name = settings.get("_class_name", "", str)
    if class_name == "DPMSolverMultistepScheduler":
        algorithm = settings.get("algorithm_type", "dpmsolver++", str)
        third = settings.get("solver_order", 2, int) == 3
        stochastic = "dpmpp_3m_sde" if third else "dpmpp_2m_sde"
        return {"sde-dpmsolver++": stochastic, "dpmsolver": "dpm_solver"}.get(algorithm, "dpmpp_2m")
    try:
        return sampler_name(class_name)
    except RequestError:
        return Defaults().sampler


def _weight_files(folder: pathlib.Path, stem: str, variant: str | None) -> list[pathlib.Path]:
    stems = [stem] if variant is None else [f"{stem}.{variant}"]
    for name in stems:
        if (folder / f"{name}.safetensors").is_file():
            return [folder / f"{name}.safetensors"]
        for index in (folder / f"{name}.safetensors.index.json", folder / f"{stem}.safetensors.index.{variant}.json"):
            if index.is_file():
                return _shards(folder, index)
    pickles = sorted(folder.glob("*.bin"))
    if pickles:
        raise ModelError(
            f"{folder} has its weights only as a pickle ({pickles[0].name}), which can run code when it is read; "
            "use a revision or a copy of the model with .safetensors files"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"it has {', '.join(others)}; choose one with variant=" if others else "it has no .safetensors file at all"
    raise ModelError(f"{folder} has no {stems[0]}.safetensors; {found}")


def _shards(folder: pathlib.Path, index: pathlib.Path) -> list[pathlib.Path]:
    shards = _Settings(index).get("weight_map", {}, dict).values()
    if not all(isinstance(shard, str) and re.fullmatch(r"[\w.-]+\.safetensors", shard) for shard in shards):
        raise ModelError(f"{index} names files that are not beside it")
    return [folder / shard for shard in sorted(set(shards))]


def _renamed(name: str) -> tuple[str, str]:
    """Our name without the network and with torch's leaf: ("conv_in", "weight")."""
    path, _, leaf = name.partition(".")[2].rpartition(".")
    return path, LEAVES[leaf]


def _unet_places(name: str) -> Iterator[TensorSlice]:
    yield TensorSlice(".".join(_renamed(name)))


def _vae_places(name: str) -> Iterator[TensorSlice]:
    path, leaf = _renamed(name)
    half = name.partition(".")[0]
    if path not in ("quant_conv", "post_quant_conv"):
        path = f"{half}.{path}"
    yield TensorSlice(f"{path}.{leaf}")
    # Before 2023 the attention's layers had other names.
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for ours, theirs in old.items():
        if path.endswith(f"attentions.0.{ours}"):
            yield TensorSlice(f"{path.removesuffix(ours)}{theirs}.{leaf}")


_CLIP = {
    r"(token|position|patch)_embedding": r"embeddings.\1_embedding",
    r"layers\.(\d+)\.([qkv]_proj|out_proj)": r"encoder.layers.\1.self_attn.\2",
    r"layers\.(\d+)\.(fc\d)": r"encoder.layers.\1.mlp.\2",
    r"layers\.(\d+)\.(layer_norm\d)": r"encoder.layers.\1.\2",
    r"final_layer_norm|pre_layrnorm|post_layernorm": r"\g<0>",
}


def clip_path(path: str) -> str:
    """Our name of a layer of CLIP's text or vision transformer, as transformers has it."""
    for ours, theirs in _CLIP.items():
        if re.fullmatch(ours, path):
            return re.sub(ours, theirs, path)
    raise ValueError(path)


def _text_places(name: str) -> Iterator[TensorSlice]:
    path, leaf = _renamed(name)
    yield TensorSlice(f"text_model.{clip_path(path)}.{leaf}")
    yield TensorSlice(f"{clip_path(path)}.{leaf}")


def _safety_places(name: str) -> Iterator[TensorSlice]:
    path, _, leaf = name.partition(".")[2].rpartition(".")
    if path == "visual_projection":
        yield TensorSlice(f"{path}.{LEAVES[leaf]}")
    elif not path and leaf != "class_embedding":
        yield TensorSlice(leaf)
    else:
        key = f"{clip_path(path)}.{LEAVES[leaf]}" if path else f"embeddings.{leaf}"
        yield TensorSlice(f"vision_model.vision_model.{key}")
        yield TensorSlice(f"vision_model.{key}")  # since transformers 5


PLACES = {
    "text_encoder": _text_places,
    "unet": _unet_places,
    "decoder": _vae_places,
    "encoder": _vae_places,
    "safety_checker": _safety_places,
}
IGNORED = {
    "text_encoder": lambda key: key.endswith("embeddings.position_ids"),
    "unet": lambda key: False,
    "decoder": lambda key: key.startswith(("encoder.", "quant_conv.")),
    "encoder": lambda key: key.startswith(("decoder.", "post_quant_conv.")),
    "safety_checker": lambda key: key.endswith("embeddings.position_ids"),
}
