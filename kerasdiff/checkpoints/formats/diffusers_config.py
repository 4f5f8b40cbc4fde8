"""The settings files of diffusers and transformers: read to a `ModelConfig`, and written from one."""

import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

from kerasdiff.checkpoints import recognition
from kerasdiff.checkpoints.formats import fixed_settings
from kerasdiff.checkpoints.formats.diffusers_scheduler import read_scheduler, scheduler_settings
from kerasdiff.checkpoints.formats.diffusers_vae import vae_config, vae_settings
from kerasdiff.checkpoints.formats.json_settings import JsonSettings, read_json, written
from kerasdiff.errors import ModelError
from kerasdiff.models.config import Defaults, ModelConfig
from kerasdiff.models.network_configs import AnyVAEConfig, SafetyCheckerConfig, TextEncoderConfig, UNetConfig, VAEConfig
from kerasdiff.samplers.recipes import RECIPES, published

# Our name of a setting -> their name, and their default.
_Table = Mapping[str, tuple[str, Any]]
_TEXT_ENCODER: _Table = {
    "activation": ("hidden_act", "quick_gelu"),
    "width": ("hidden_size", 512),
    "mlp_width": ("intermediate_size", 2048),
    "max_length": ("max_position_embeddings", 77),
    "num_heads": ("num_attention_heads", 8),
    "num_layers": ("num_hidden_layers", 12),
    "vocab_size": ("vocab_size", 49408),
}
_UNET: _Table = {
    "in_channels": ("in_channels", 4),
    "out_channels": ("out_channels", 4),
    "layers_per_level": ("layers_per_block", 2),
    "context_width": ("cross_attention_dim", 1280),
    "norm_groups": ("norm_num_groups", 32),
    "norm_epsilon": ("norm_eps", 1e-5),
}
# The guidance that LatentConsistencyModelPipeline takes by default.
LCM_GUIDANCE = 8.5
_VISION: _Table = {
    "activation": ("hidden_act", "quick_gelu"),
    "width": ("hidden_size", 768),
    "image_size": ("image_size", 224),
    "mlp_width": ("intermediate_size", 3072),
    "num_heads": ("num_attention_heads", 12),
    "num_layers": ("num_hidden_layers", 12),
    "patch_size": ("patch_size", 32),
}
# What is supported in one way only, which is their default too.
_VISION_FIXED = {"num_channels": 3, "layer_norm_eps": 1e-5}
_PREPROCESSOR_FIXED = {
    "do_resize": True,
    "resample": 3,  # bicubic
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": None,
}
# Names of the tanh GELU in transformers.
_ACTIVATIONS = dict.fromkeys(
    ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"
) | {"gelu_python": "gelu"}
_UNET_READ = (
    *("block_out_channels", "down_block_types", "up_block_types", "attention_head_dim", "num_attention_heads"),
    *("mid_block_type", "only_cross_attention", "sample_size", "time_embedding_dim", "time_cond_proj_dim"),
)
# What a pipeline's index may name that is read, or has no effect on an image.
_COMPONENTS = ("feature_extractor", "safety_checker", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
# Where an index that we wrote has a recipe; diffusers does not look at names with such a beginning.
RECIPE = "_kerasdiff_recipe"
# The classes that a component may be of.
_CLASSES = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
}
_LARGEST_SAMPLE = 2**12
# What is in the middle of a U-Net -> the type of its block.
_MIDDLES = {"attention": "UNetMidBlock2DCrossAttn", "plain": "UNetMidBlock2D", None: None}
_CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
_PLAIN = ("DownBlock2D", "UpBlock2D")


def read_config(folder: pathlib.Path) -> ModelConfig:
    """The configuration of a model folder, from the files of its components."""
    _index(folder)
    unet, sample_size = _unet(folder / "unet" / "config.json")
    missing = [name for name in ("vae", "text_encoder", "tokenizer", "scheduler") if not (folder / name).is_dir()]
    if missing:
        raise ModelError(f"{folder} is not a whole model: it has unet, but not {', '.join(missing)}")
    vae = read_vae(folder / "vae" / "config.json")
    sampling = read_scheduler(folder / "scheduler" / "scheduler_config.json", _scheduler_class(folder))
    recognition.check_channels(folder / "unet" / "config.json", unet, vae)
    height, width = (size * vae.factor for size in sample_size)
    return ModelConfig(
        _text_encoder(folder / "text_encoder" / "config.json"),
        unet,
        vae,
        sampling.schedule,
        Defaults(
            height=height,
            width=width,
            sampler=sampling.sampler,
            spacing=sampling.spacing,
            sampler_options=sampling.options,
            **of_lcm(unet),
            recipe=_recipe(folder, unet),
        ),
        _safety_checker(folder) if _has_safety_checker(folder) else None,
    )


def of_lcm(unet: UNetConfig) -> dict[str, Any]:
    """The steps and the guidance of a latent consistency model, which has an input for its weight."""
    return {"num_steps": 4, "guidance_scale": LCM_GUIDANCE} if unet.embeds_guidance else {}


def _recipe(folder: pathlib.Path, unet: UNetConfig) -> str | None:
    """The recipe that follows from a model's files: from its U-Net, or because they say from which model they are."""
    if unet.embeds_guidance:
        return "lcm"
    for path in (folder / "model_index.json", folder / "unet" / "config.json"):
        values = read_json(path) if path.is_file() else {}
        said = values.get(RECIPE)
        if isinstance(said, str) and said in RECIPES:
            return said
        if (known := published(values.get("_name_or_path"))) is not None:
            return known
    return None


def _index(folder: pathlib.Path) -> None:
    """Refuses other pipelines, and names components that are not read, or not as what they are."""
    recognition.refuse_pipeline(folder)
    path = folder / "model_index.json"
    entries = read_json(path) if path.is_file() else {}
    others = {name: value for name, value in entries.items() if name not in _COMPONENTS}
    unread = [name for name, value in others.items() if isinstance(value, list) and value and value[0] is not None]
    if unread:
        warnings.warn(f"{', '.join(unread)[:200]} is not used, which {path} names", stacklevel=2)
    for name, known in _CLASSES.items():
        match entries.get(name):
            case [str(library), str(found)] if found not in known:
                warnings.warn(f"{path}: {name} is {found} of {library}, and is read as {known[0]}", stacklevel=2)


def _scheduler_class(folder: pathlib.Path) -> str | None:
    """The scheduler's class in model_index.json, if there is one of diffusers."""
    index = folder / "model_index.json"
    match JsonSettings(index).get("scheduler", [], list) if index.is_file() else []:
        case ["diffusers", str(class_name)]:
            return class_name
    return None


def _settings(path: pathlib.Path, component: str) -> JsonSettings:
    """The settings of a component; raises ModelError for a class that is known to be something else."""
    settings, supported = JsonSettings(path), _CLASSES[component]
    (found, *_) = settings.get("architectures", [], list) or [settings.get("_class_name", None, str)]
    foreign = recognition.of_class(found)
    if foreign is not None and found not in supported:
        raise ModelError(f"{path}: {found} ({foreign.name}) is not supported; known: {', '.join(supported)}")
    return settings


def _text_encoder(path: pathlib.Path) -> TextEncoderConfig:
    whole = _settings(path, "text_encoder")
    # A whole CLIP has those of its text half inside.
    inner = whole.get("text_config", None, dict)
    settings = whole if inner is None else JsonSettings(path, inner)
    settings.require(fixed_settings.TEXT_ENCODER)
    known = (key for key, _ in _TEXT_ENCODER.values())
    settings.report_unknown((*known, *fixed_settings.TEXT_ENCODER, *fixed_settings.TEXT_ENCODER_UNREAD))
    fields = settings.fields(_TEXT_ENCODER)
    fields["activation"] = _ACTIVATIONS.get(fields["activation"], fields["activation"])
    return settings.made(TextEncoderConfig, **fields)


def _unet(path: pathlib.Path) -> tuple[UNetConfig, tuple[int, int]]:
    """The U-Net, and height and width of the latents that it was trained on."""
    settings = _settings(path, "unet")
    widths = settings.numbers("block_out_channels", [320, 640, 1280, 1280])
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
    settings = settings.per_level(
        {
            "layers_per_block": [True] * levels,
            "cross_attention_dim": attends,
            "transformer_layers_per_block": attends,
            "reverse_transformer_layers_per_block": attention[::-1],
        }
    )
    settings.require(
        {**fixed_settings.UNET, "time_embedding_dim": (None, 0, 4 * widths[0])}, fixed_settings.UNET_MEANINGS
    )
    known = (key for key, _ in _UNET.values())
    settings.report_unknown((*known, *_UNET_READ, *fixed_settings.UNET, *fixed_settings.UNET_UNREAD))
    # Diffusers' name is a slip of its own: attention_head_dim is the number of heads.
    heads = settings.numbers("attention_head_dim", 8, levels, attends)
    if settings.get("num_attention_heads", None, (int, list)) is not None:
        heads = settings.numbers("num_attention_heads", 8, levels, attends)
    fields = settings.fields(_UNET)
    fields |= {"widths": widths, "attention": attention, "num_heads": heads, "middle": middle}
    fields["only_cross_attention"] = _only_cross(settings, attention)
    embedding = settings.get("time_cond_proj_dim", None, int)
    fields["time_cond_proj_dim"] = None if embedding == 0 else embedding
    config = settings.made(UNetConfig, gelu="erf", transformer_epsilon=1e-6, **fields)
    return config, _sample_size(settings)


def _only_cross(settings: JsonSettings, attention: tuple[bool, ...]) -> tuple[bool, ...]:
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


def read_vae(path: pathlib.Path, scaling_factor: float = VAEConfig.scaling_factor) -> AnyVAEConfig:
    """An autoencoder, from its config.json; the `scaling_factor` is for one of the large kind that states none."""
    return vae_config(_settings(path, "vae"), scaling_factor)


def _has_safety_checker(folder: pathlib.Path) -> bool:
    """Whether a model comes with a safety checker; its index may leave out one whose folder is there."""
    index = folder / "model_index.json"
    if not (folder / "safety_checker").is_dir():
        return False
    if not index.is_file():
        return True
    entry = JsonSettings(index).get("safety_checker", [None, None], list)
    if entry not in ([None, None], ["stable_diffusion", "StableDiffusionSafetyChecker"]):
        raise ModelError(
            f"{index}: safety_checker={entry!r:.80} is not supported; only StableDiffusionSafetyChecker is"
        )
    return entry[0] is not None


def _safety_checker(folder: pathlib.Path) -> SafetyCheckerConfig:
    path = folder / "safety_checker" / "config.json"
    whole = JsonSettings(path)
    # Older files have a copy of what differs from the defaults, which is what counts; some have no nesting.
    vision = whole.get("vision_config_dict", whole.get("vision_config", None, dict), dict)
    settings = whole if vision is None else JsonSettings(path, vision)
    settings.require(_VISION_FIXED)
    fields = settings.fields(_VISION)
    fields |= _preprocessor(folder / "feature_extractor" / "preprocessor_config.json", fields["image_size"])
    return SafetyCheckerConfig(projection=whole.get("projection_dim", 512, int), **fields)


def _preprocessor(path: pathlib.Path, image_size: int) -> dict[str, Any]:
    """What a picture is resized to, and the mean and deviation of its colours."""
    settings = JsonSettings(path)
    settings.require(_PREPROCESSOR_FIXED)
    crop = settings.size("crop_size", 224)
    if crop not in (image_size, (image_size, image_size)):
        raise ModelError(f"{path}: crop_size={crop} is not supported; the safety checker needs {image_size} pixels")
    mean = settings.get("image_mean", SafetyCheckerConfig.mean, (list, tuple))
    std = settings.get("image_std", SafetyCheckerConfig.std, (list, tuple))
    return {"resize": settings.size("size", 224), "mean": tuple(mean), "std": tuple(std)}


def settings_files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """The settings files of a model folder, by their path in it."""
    text, unet = config.main_text_encoder, config.unet
    kinds = [_CROSS if attention else _PLAIN for attention in unet.attention]
    scheduler = scheduler_settings(config)
    guarded = config.safety_checker is not None
    sizes = [size // config.latent_factor for size in (config.defaults.height, config.defaults.width)]
    return {
        "model_index.json": {
            "_class_name": "LatentConsistencyModelPipeline" if unet.embeds_guidance else "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            **({} if config.defaults.recipe is None else {RECIPE: config.defaults.recipe}),
            "feature_extractor": ["transformers", "CLIPImageProcessor"] if guarded else [None, None],
            "requires_safety_checker": guarded,
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"] if guarded else [None, None],
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", vae_settings(config.vae)["_class_name"]],
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "layer_norm_eps": 1e-5,
            **written(text, _TEXT_ENCODER),
            "hidden_act": _activation(text),
            "intermediate_size": 4 * text.width if text.mlp_width is None else text.mlp_width,
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": sizes[0] if sizes[0] == sizes[1] else sizes,
            **written(unet, _UNET),
            "block_out_channels": list(unet.widths),
            "down_block_types": [down for down, _ in kinds],
            **({} if unet.middle == "attention" else {"mid_block_type": _MIDDLES[unet.middle]}),
            **({"only_cross_attention": unet.only_cross_attention} if unet.only_cross_attention else {}),
            "up_block_types": [up for _, up in reversed(kinds)],
            "attention_head_dim": list(unet.num_heads),
            "use_linear_projection": text.activation != "quick_gelu",
            **({"time_cond_proj_dim": unet.time_cond_proj_dim} if unet.embeds_guidance else {}),
        },
        "vae/config.json": vae_settings(config.vae),
        "scheduler/scheduler_config.json": scheduler,
        **({} if config.safety_checker is None else _safety_settings(config.safety_checker)),
    }


def _activation(config: TextEncoderConfig | SafetyCheckerConfig) -> str:
    return "quick_gelu" if config.activation == "quick_gelu" else "gelu"


def _safety_settings(config: SafetyCheckerConfig) -> dict[str, dict[str, Any]]:
    resize = config.resize
    return {
        "safety_checker/config.json": {
            "architectures": ["StableDiffusionSafetyChecker"],
            "model_type": "clip",
            "projection_dim": config.projection,
            "vision_config": {
                "model_type": "clip_vision_model",
                **_VISION_FIXED,
                **written(config, _VISION),
                "hidden_act": _activation(config),
            },
        },
        "feature_extractor/preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": config.image_size, "width": config.image_size},
            "do_convert_rgb": True,
            **{key: value for key, value in _PREPROCESSOR_FIXED.items() if value is not None},
            "image_mean": list(config.mean),
            "image_std": list(config.std),
            "size": {"shortest_edge": resize} if isinstance(resize, int) else {"height": resize[0], "width": resize[1]},
        },
    }
