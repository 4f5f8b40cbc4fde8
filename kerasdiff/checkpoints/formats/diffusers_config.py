"""The settings files of diffusers and transformers: read to a `ModelConfig`, and written from one."""

import pathlib
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from kerasdiff.checkpoints import recognition
from kerasdiff.checkpoints.formats import diffusers_folder, fixed_settings
from kerasdiff.checkpoints.formats.diffusers_scheduler import read_scheduler, scheduler_settings
from kerasdiff.checkpoints.formats.diffusers_unet import reads_pooled, unet_config, unet_settings
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
# The guidance that LatentConsistencyModelPipeline takes by default.
LCM_GUIDANCE = 8.5
# The guidance that StableDiffusionXLPipeline takes by default.
XL_GUIDANCE = 5.0
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
# The pipeline of a model that edits a picture as a text says (InstructPix2Pix).
_EDITING = "StableDiffusionInstructPix2PixPipeline"
# What a pipeline's index may name that is read, or has no effect on an image.
_COMPONENTS = ("feature_extractor", "safety_checker", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
_COMPONENTS_XL = (*_COMPONENTS, "text_encoder_2", "tokenizer_2")
# Where an index that we wrote has a recipe; diffusers does not look at names with such a beginning.
RECIPE = "_kerasdiff_recipe"
# The classes that a component may be of.
_CLASSES = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "CLIPModel"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
}


def read_config(folder: pathlib.Path) -> ModelConfig:
    """The configuration of a model folder, from the files of its components."""
    recognition.refuse_pipeline(folder)
    unet_file = _settings(folder / "unet" / "config.json", "unet")
    xl = reads_pooled(unet_file)
    _index(folder, _COMPONENTS_XL if xl else _COMPONENTS)
    encoders = diffusers_folder.text_encoders_in(folder) if xl else ["text_encoder"]
    if xl and "text_encoder_2" not in encoders:
        raise ModelError(f"{folder} is Stable Diffusion XL without its second text encoder, which every image needs")
    needed = ["vae", *encoders, *map(diffusers_folder.tokenizer_of, encoders), "scheduler"]
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise ModelError(f"{folder} is not a whole model: it has unet, but not {', '.join(missing)}")
    texts = {name: _text_encoder(folder / name / "config.json", name, xl) for name in encoders}
    unet, sample_size = unet_config(unet_file, texts[encoders[-1]].projection)
    vae = read_vae(folder / "vae" / "config.json", VAEConfig(force_upcast=xl))
    sampling = read_scheduler(folder / "scheduler" / "scheduler_config.json", _scheduler_class(folder), xl)
    recognition.check_channels(folder / "unet" / "config.json", unet, vae)
    if unet.in_channels == 2 * vae.latent_channels:
        _check_edits(folder, unet.in_channels)
    height, width = (size * vae.factor for size in sample_size)
    return ModelConfig(
        texts.get("text_encoder"),
        unet,
        vae,
        sampling.schedule,
        Defaults(
            height=height,
            width=width,
            sampler=sampling.sampler,
            spacing=sampling.spacing,
            sampler_options=sampling.options,
            **({"guidance_scale": XL_GUIDANCE} if xl else {}) | of_lcm(unet),
            recipe=_recipe(folder, unet),
        ),
        _safety_checker(folder) if not xl and _has_safety_checker(folder) else None,
        text_encoder_2=texts.get("text_encoder_2"),
        force_zeros_for_empty_prompt=xl and _zeros_for_empty(folder),
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


def _zeros_for_empty(folder: pathlib.Path) -> bool:
    """Whether a negative prompt that is not given is zeros, as it is by default."""
    index = folder / "model_index.json"
    return not index.is_file() or JsonSettings(index).get("force_zeros_for_empty_prompt", True, bool)


def _index(folder: pathlib.Path, known: Collection[str]) -> None:
    """Names components that are not read, or not as what they are."""
    path = folder / "model_index.json"
    entries = read_json(path) if path.is_file() else {}
    others = {name: value for name, value in entries.items() if name not in known}
    unread = [name for name, value in others.items() if isinstance(value, list) and value and value[0] is not None]
    if unread:
        warnings.warn(f"{', '.join(unread)[:200]} is not used, which {path} names", stacklevel=2)
    for name, classes in _CLASSES.items():
        match entries.get(name) if name in known else None:
            case [str(library), str(found)] if found not in classes:
                warnings.warn(f"{path}: {name} is {found} of {library}, and is read as {classes[0]}", stacklevel=2)


def _check_edits(folder: pathlib.Path, channels: int) -> None:
    """Raises ModelError if a U-Net that sees latents twice is another pipeline's than the one that edits."""
    index = folder / "model_index.json"
    found = JsonSettings(index).get("_class_name", _EDITING, str) if index.is_file() else _EDITING
    if found != _EDITING:
        where = folder / "unet" / "config.json"
        raise ModelError(
            f"{where}: a U-Net with {channels} input channels is not supported in {found:.80}; in {_EDITING} it is"
        )


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


def _text_encoder(path: pathlib.Path, component: str, xl: bool) -> TextEncoderConfig:
    whole = _settings(path, component)
    # A whole CLIP has those of its text half inside.
    inner = whole.get("text_config", None, dict)
    settings = whole if inner is None else JsonSettings(path, inner)
    settings.require(fixed_settings.TEXT_ENCODER)
    known = (key for key, _ in _TEXT_ENCODER.values())
    settings.report_unknown((*known, *fixed_settings.TEXT_ENCODER, *fixed_settings.TEXT_ENCODER_UNREAD))
    fields = settings.fields(_TEXT_ENCODER)
    fields["activation"] = _ACTIVATIONS.get(fields["activation"], fields["activation"])
    if xl:
        fields |= {"skipped_layers": 1, "final_norm": False}
    if component == "text_encoder_2":
        fields["projection"] = whole.get("projection_dim", 512, int)
    return settings.made(TextEncoderConfig, **fields)


def read_vae(path: pathlib.Path, usual: VAEConfig) -> AnyVAEConfig:
    """An autoencoder, from its config.json; one of the large kind that does not state it all is as `usual`."""
    return vae_config(_settings(path, "vae"), usual)


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
    fields = vision_fields(folder / "safety_checker" / "config.json")
    fields |= _preprocessor(folder / "feature_extractor" / "preprocessor_config.json", fields["image_size"])
    return SafetyCheckerConfig(**fields)


def vision_fields(path: pathlib.Path) -> dict[str, Any]:
    """The fields of a `CLIPVisionConfig`, from the settings of CLIP's half for pictures or of something around it."""
    whole = JsonSettings(path)
    # Older files have a copy of what differs from the defaults, which is what counts; some have no nesting.
    vision = whole.get("vision_config_dict", whole.get("vision_config", None, dict), dict)
    settings = whole if vision is None else JsonSettings(path, vision)
    settings.require(_VISION_FIXED)
    return {"projection": whole.get("projection_dim", 512, int), **settings.fields(_VISION)}


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
    scheduler = scheduler_settings(config)
    texts = {f"{name}/config.json": _text_settings(text) for name, text in config.text_encoders.items()}
    return {
        "model_index.json": {
            "_diffusers_version": "0.42.1",
            **({} if config.defaults.recipe is None else {RECIPE: config.defaults.recipe}),
            **(_pipeline_xl(config) if config.unet.embeds_sizes else _pipeline(config)),
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", vae_settings(config.vae)["_class_name"]],
        },
        **texts,
        "unet/config.json": unet_settings(config),
        "vae/config.json": vae_settings(config.vae),
        "scheduler/scheduler_config.json": scheduler,
        **({} if config.safety_checker is None else _safety_settings(config.safety_checker)),
    }


def _pipeline(config: ModelConfig) -> dict[str, Any]:
    """What a model's index says of a pipeline of Stable Diffusion 1.x or 2.x, and its components."""
    guarded, plain = config.safety_checker is not None, "StableDiffusionPipeline"
    latent_consistency = "LatentConsistencyModelPipeline" if config.unet.embeds_guidance else plain
    return {
        "_class_name": _EDITING if config.edits else latent_consistency,
        "feature_extractor": ["transformers", "CLIPImageProcessor"] if guarded else [None, None],
        "requires_safety_checker": guarded,
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"] if guarded else [None, None],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }


def _pipeline_xl(config: ModelConfig) -> dict[str, Any]:
    """The same of a pipeline of Stable Diffusion XL; the refiner has no first text encoder."""
    refines = config.family == "sdxl_refiner"
    kind = "Img2Img" if refines else "Inpaint" if config.inpaints else ""
    index: dict[str, Any] = {
        "_class_name": f"StableDiffusionXL{kind}Pipeline",
        "force_zeros_for_empty_prompt": config.force_zeros_for_empty_prompt,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if kind:
        index["requires_aesthetics_score"] = refines
    for name in ("text_encoder", "text_encoder_2"):
        text = config.text_encoders.get(name)
        there = text is not None
        class_name = "CLIPTextModel" if text is None or text.projection is None else _CLASSES["text_encoder_2"][0]
        index[name] = ["transformers", class_name] if there else [None, None]
        index[diffusers_folder.tokenizer_of(name)] = ["transformers", "CLIPTokenizer"] if there else [None, None]
    return index


def _text_settings(text: TextEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel" if text.projection is None else _CLASSES["text_encoder_2"][0]],
        "model_type": "clip_text_model",
        "layer_norm_eps": 1e-5,
        **written(text, _TEXT_ENCODER),
        "hidden_act": _activation(text),
        "intermediate_size": 4 * text.width if text.mlp_width is None else text.mlp_width,
        **({} if text.projection is None else {"projection_dim": text.projection}),
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
