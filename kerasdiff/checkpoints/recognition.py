"""What files and folders hold that are no whole Stable Diffusion model of a kind that is read, and what to do then.

One table: a kind is recognised by the names of its tensors or by the class in its settings.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from kerasdiff.checkpoints.formats.json_settings import read_json
from kerasdiff.errors import ModelError
from kerasdiff.models.network_configs import AnyVAEConfig, UNetConfig
from kerasdiff.runtime.safetensors_map import TORCH_ENDINGS, TensorFiles

_OURS = "only Stable Diffusion 1.x, 2.x and XL are supported"
_WHOLE = "give the whole model that it belongs to, as a folder of diffusers or a single file"
_STEERS = "it steers a model and is none itself: give the model, and this as controls= (--control)"
_NOT_READ = "it steers a model and is none itself, and kerasdiff does not read it; give the model, and {} as controls="
_AUTOENCODER = "it can take the place of a model's autoencoder: give the model, and this as vae= (--vae)"
# Widths of the text encoders whose words an embedding stands for.
_EMBEDDING_WIDTHS = (768, 1024, 1280)
_MOST_EMBEDDINGS = 8
# A longer name would take long to search.
_LONGEST_NAME = 500


@dataclasses.dataclass(frozen=True)
class ForeignKind:
    """Something that is no model for this package; `advice` is what to do with it.

    `tensors` is how the name of one of its tensors begins, `classes` what its class or pipeline may begin with. An
    `architecture` is recognised in a file that has everything else of a model, a part only where the rest is missing.
    With `beside` another tensor must be there whose name begins so.
    """

    name: str
    advice: str
    tensors: str
    classes: tuple[str, ...] = ()
    architecture: bool = False
    beside: str = ""

    def has(self, key: str) -> bool:
        """Whether a tensor's name shows it."""
        return re.match(self.tensors, key[:_LONGEST_NAME]) is not None

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether the names of a file's tensors show it."""
        keys = list(keys)
        return any(map(self.has, keys)) and any(re.match(self.beside, key[:_LONGEST_NAME]) for key in keys)

    def error(self, where: object) -> ModelError:
        """One line."""
        return ModelError(f"{where} is {self.name}{'' if self.architecture else ', not a whole model'}: {self.advice}")


def _architecture(name: str, tensors: str, *classes: str, advice: str = _OURS) -> ForeignKind:
    return ForeignKind(name, advice, tensors, classes, architecture=True)


def _other_control(
    name: str, tensors: str, *classes: str, advice: str = "an ordinary ControlNet", **fields: Any
) -> ForeignKind:
    return ForeignKind(name, _NOT_READ.format(advice), tensors, classes, **fields)


CONTROLNET = ForeignKind(
    "a ControlNet",
    _STEERS,
    r"control_model\.|controlnet_|control_|zero_convs\.|input_hint_block\.",
    ("ControlNetModel", "MultiControlNet"),
)
_UNET, _UNET_FILE = "model.diffusion_model.", r"(model\.diffusion_model\.)?"
_XL_UNET = ForeignKind(
    "a U-Net of Stable Diffusion XL",
    "text encoders and autoencoder are missing; " + _WHOLE,
    _UNET_FILE + r"(label_emb\.0\.|add_embedding\.)",
)
# In order: the first that fits is meant.
KINDS = (
    _architecture(
        "a network with a LoRA that is not fused (PEFT's base_layer)",
        r".*\.base_layer\.",
        advice="fuse it (pipeline.fuse_lora(), then unload_lora_weights()) and save the model again",
    ),
    _architecture(
        "quantised",
        r"scaled_fp8$|.*\.(scale_weight|weight_scale|scale_input|qweight|qzeros|SCB)$|.*\.weight\.(absmax|quant_map|quant_state)",
        advice="its numbers mean nothing without their scales; use a copy in float16, bfloat16 or plain float8",
    ),
    _architecture("unCLIP, which is steered by pictures", r"noise_augmentor\.", "StableUnCLIP", "UnCLIP"),
    _architecture("a depth model", r"depth_model\.", "StableDiffusionDepth2Img"),
    _architecture(
        "an instruct-pix2pix model for SDXL",
        r"(?!)",
        "StableDiffusionXLInstructPix2Pix",
        advice="those of 1.x and 2.x are read",
    ),
    _architecture("Kolors", r"(?!)", "Kolors"),
    _architecture("Playground v2.5, or another model of EDM's schedule", r"edm_(mean|std|vpred)\b", "EDM"),
    _architecture(
        "a Stable Diffusion upscaler",
        _UNET_FILE + r"(label_emb\.weight|class_embedding\.)|low_res_model\.",
        "StableDiffusionUpscale",
        "StableDiffusionLatentUpscale",
    ),
    _other_control(
        "a ControlNet for Stable Diffusion 3 or Flux",
        r"controlnet_(x_embedder|mode_embedder|blocks|single_blocks)\.",
        "SD3ControlNet",
        "FluxControlNet",
        architecture=True,
    ),
    _other_control(
        "a SparseCtrl for AnimateDiff",
        r"(module\.)?controlnet_cond_embedding\.",
        "SparseControlNet",
        beside=r".*\bmotion_modules\.",
        architecture=True,
    ),
    _architecture("Stable Diffusion 3", _UNET_FILE + r"joint_blocks\.", "StableDiffusion3", "SD3Transformer"),
    _architecture("Flux", _UNET_FILE + r"(double_blocks|single_blocks|double_stream_modulation)", "Flux", "Chroma"),
    _architecture(
        "a video model",
        r".*\.(time_stack|time_mixer|temporal_transformer_blocks|temporal_res_block)\b",
        "StableVideoDiffusion",
        "UNetSpatioTemporal",
        "UNet3D",
        "TextToVideo",
        "WanPipeline",
        "LTX",
        "CogVideo",
        "HunyuanVideo",
    ),
    _architecture(
        "a motion module of AnimateDiff", r".*\bmotion_modules\.", "UNetMotionModel", "MotionAdapter", "AnimateDiff"
    ),
    _architecture("GLIGEN", _UNET_FILE + r"(position_net\.|.*\.fuser\.)", "StableDiffusionGLIGEN"),
    _architecture("Stable Cascade", r"clip_txt_mapper\.", "StableCascade", "Wuerstchen"),
    _architecture(
        "another architecture",
        r"cc_projection\.|transformer_blocks\.\d+\.|(.*\.)?(transformer_blocks\.\d+\.scale_shift_table|cap_embedder\.|patchify_proj\.)|"
        r"double_layers\.",
        *("PixArt", "Sana", "AuraFlow", "Lumina", "HunyuanDiT", "Kandinsky", "QwenImage"),
        *(
            "ZImage",
            "AltDiffusion",
            "PaintByExample",
            "AudioLDM",
            "StableAudio",
            "IFPipeline",
            "Mochi",
            "LDMTextToImage",
        ),
    ),
    _other_control("a Control-LoRA", r"lora_controlnet$"),
    ForeignKind(
        "a LoRA",
        "it changes a model and is none itself: give the model, and this file as loras= (--lora)",
        r"(lora|lycoris)_|bundle_emb\.|.*\.(lora_(A|B|down|up|mid|linear_layer|magnitude_vector)\b|lora\.(down|up)\.|"
        r"hada_w\d|lokr_w\d|oft_(blocks|diag)|dora_scale)|.*\.processor\..*_lora\.(down|up)\.",
    ),
    ForeignKind(
        "an IP-Adapter",
        "it shows pictures to a model and is none itself: give the model, and this as image_prompts= (--image_prompt)",
        r"image_proj\.|ip_adapter\.",
        ("ImageProjection", "IPAdapter"),
    ),
    _other_control(
        "a ControlNet Union (ProMax or the like)",
        r"control_add_embedding\.|task_embedding$|transformer_layes\.",
        "ControlNetUnion",
        "ControlNetModel_Union",
        advice="a ControlNet for one kind of hint",
    ),
    _other_control(
        "a ControlNet-XS",
        r"(control_model\.)?(.*\b(base_to_ctrl|ctrl_to_base)\b|control_to_base_for_conv_in|enc_zero_convs_(in|out)\.)",
        "ControlNetXS",
        "UNetControlNetXS",
    ),
    _other_control("a ControlLLLite", r"lllite_"),
    _other_control("the difference of a ControlNet and a model", r"difference$"),
    _other_control("a BrushNet", r"brushnet_", "BrushNet", advice="a ControlNet for inpainting"),
    CONTROLNET,
    ForeignKind(
        "a textual inversion",
        "it adds a word to a model and is none itself; give the model, and this with embeddings=",
        r"emb_params$|clip_[lg]$|string_to_(param|token)\b|<[^.]+>$",
    ),
    ForeignKind(
        "an upscaler (ESRGAN or the like)",
        "it enlarges pictures and draws none; give the model, and this file, if it is of ESRGAN's kind, as upscale= "
        "(--upscale)",
        r"(params(_ema)?\.)?(conv_first\.|body\.\d+\.(weight|bias)$)|model\.1\.sub\.|"
        r"(RRDB_trunk|layers\.\d+\.residual_group)\.|.*\bRDB\d\.|.*\brdb\d\.",
    ),
    ForeignKind("a T2I-Adapter", _STEERS, r"(adapter\.)?body\.\d+\.|style_embedding$", ("T2IAdapter", "MultiAdapter")),
    ForeignKind("a safety checker", _WHOLE, r"(concept_embeds|special_care_embeds)", ("StableDiffusionSafetyChecker",)),
    ForeignKind(
        "a whole CLIP",
        _WHOLE + ", whose text encoder may be such a CLIP",
        r"logit_scale$",
        ("CLIPModel", "AltCLIP"),
    ),
    ForeignKind(
        "the picture half of a CLIP",
        _WHOLE,
        r"(vision_model|visual)\.",
        ("CLIPVisionModel", "SiglipVision", "Dinov2"),
    ),
    ForeignKind(
        "a text encoder",
        _WHOLE,
        r"(cond_stage_model\.(transformer|model)|conditioner\.embedders\.\d+|text_model|transformer)\.|encoder\.block\.\d+\.layer\.|"
        r"encoder\.layers\.\d+\.self_attn\.",
        ("CLIPText", "T5Encoder", "XLMRoberta", "Bert"),
    ),
    ForeignKind(
        "a small autoencoder (TAESD)",
        _AUTOENCODER,
        r"(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.|\d+\.conv\.\d+\.",
        ("AutoencoderTiny",),
    ),
    ForeignKind(
        "an autoencoder (VAE)",
        _AUTOENCODER,
        r"((first_stage_model|vae)\.)?(encoder|decoder)\.(down|up|mid|conv_in)|(post_)?quant_conv\.",
        ("Autoencoder", "AsymmetricAutoencoder", "ConsistencyDecoder", "VQModel"),
    ),
    _XL_UNET,
    ForeignKind(
        "a U-Net",
        "text encoder and autoencoder are missing; " + _WHOLE,
        _UNET_FILE + r"(input_blocks\.|down_blocks\.\d+\.(resnets|attentions)\.|conv_in\.)",
        ("UNet2D",),
    ),
    ForeignKind("a scheduler", _WHOLE, r"(?!)", ("DDIM", "PNDM", "Euler", "DPMSolver", "LMSDiscrete", "UniPC")),
)
# Channels that a U-Net reads -> what it is.
CHANNELS = {5: "a depth model", 7: "an upscaler", 8: "an instruct-pix2pix model"}


def check_channels(where: object, unet: UNetConfig, vae: AnyVAEConfig) -> None:
    """Raises ModelError if a U-Net reads more than latents, and a (masked) picture behind, or gives something else."""
    channels, latent = unet.in_channels, vae.latent_channels
    edits = (2 * latent,) if unet.may_edit else ()
    if channels not in (latent, 2 * latent + 1, *edits):
        meaning = f": it is {CHANNELS[channels]}" if channels in CHANNELS else ""
        raise ModelError(
            f"{where}: a U-Net with {channels} input channels is not supported{meaning}; {latent}, and "
            f"{2 * latent + 1} for inpainting{f' or {2 * latent} for editing' if edits else ''}, are"
        )
    if unet.out_channels != latent:
        raise ModelError(f"{where}: the U-Net gives {unet.out_channels} channels, the autoencoder reads {latent}")


def of_class(name: object) -> ForeignKind | None:
    """The kind that a class or pipeline of diffusers or transformers belongs to."""
    if not isinstance(name, str):
        return None
    return next((kind for kind in KINDS if name.startswith(kind.classes or ("\0",))), None)


def refuse_architectures(where: object, keys: Iterable[str]) -> None:
    """Raises ModelError if a tensor's name shows another architecture."""
    keys = list(keys)
    for kind in KINDS:
        if kind.architecture and kind.fits(keys):
            raise kind.error(where)


def refuse_left_over(where: object, keys: Iterable[str]) -> None:
    """Raises ModelError if tensors that a network does not use show that it is another than its settings say."""
    keys = list(keys)
    refuse_architectures(where, keys)
    if any(map(_XL_UNET.has, keys)):
        raise ModelError(f"{where} is {_XL_UNET.name}, but its settings are another model's: give its own config.json")


def refuse_settings_file(path: pathlib.Path) -> None:
    """Raises ModelError for a model's settings in place of the model."""
    if path.suffix == ".json":
        folder = next((parent for parent in list(path.parents)[:2] if _is_model(parent)), path.parent)
        raise ModelError(f"{path} has settings of a model: give the model's folder, {folder}")


def refuse_as_control(where: object, kind: ForeignKind | None, keys: Iterable[str] = ()) -> None:
    """Raises ModelError for what was given as a ControlNet and is known to be something else."""
    if kind is not CONTROLNET and any(key.startswith(_UNET) for key in keys):
        raise ModelError(f"{where} is a model, not a ControlNet: give it as model= (--model)")
    if kind is None:
        raise ModelError(f"{where} is no ControlNet or adapter that is known here")
    if kind is not CONTROLNET:
        raise ModelError(f"{where} is {kind.name}, which is not read as a ControlNet: {kind.advice}")


def refuse_part(path: pathlib.Path, tensors: TensorFiles) -> None:
    """Raises ModelError if a file's tensors are known to be something else than a whole model."""
    kind = of_tensors(tensors)
    if kind is not None:
        raise _with_parent(kind, path)


def refuse_pipeline(folder: pathlib.Path, where: object = None) -> None:
    """Raises ModelError if a folder's index names a pipeline, or a schedule, of another architecture."""
    index = settings_of(folder / "model_index.json")
    pipeline, scheduler = of_class(index.get("_class_name")), index.get("scheduler")
    schedule = of_class(scheduler[-1]) if isinstance(scheduler, list) and scheduler else None
    for kind in (pipeline, schedule):
        if kind is not None and (kind is pipeline or kind.architecture):
            raise kind.error(folder if where is None else where)


def refuse_settings(folder: pathlib.Path, where: object = None) -> None:
    """Raises ModelError if a folder's own settings say that it is something else than a whole model."""
    refuse_pipeline(folder, where)
    settings = settings_of(folder / "config.json")
    architectures = settings.get("architectures")
    for name in (settings.get("_class_name"), *(architectures if isinstance(architectures, list) else ())):
        kind = of_class(name)
        if kind is not None:
            raise _with_parent(kind, folder) if where is None else kind.error(where)


def refuse_names(where: object, names: Iterable[str]) -> None:
    """Raises ModelError if the name of one of the files is that of a LoRA or the like."""
    for name in names:
        for beginnings, key in _FILE_NAMES.items():
            if name.startswith(beginnings):
                raise next(kind for kind in KINDS if kind.has(key)).error(where)


def refuse_folder(folder: pathlib.Path) -> None:
    """Raises ModelError if a folder without a U-Net's folder is known to be something else than a whole model."""
    refuse_settings(folder)
    names = sorted(path.name for path in folder.iterdir())
    refuse_names(folder, names)
    parent = folder.resolve().parent
    if _is_model(parent):
        raise ModelError(f"{folder} is a part of a model: give the model's folder, {parent}")
    # The Hub's cache keeps a model below.
    inside = [
        path.parents[1] for pattern in ("*", "snapshots/*") for path in folder.glob(f"{pattern}/unet/config.json")
    ]
    if inside:
        raise ModelError(
            f"{folder} is not a model folder, but has one: give {' or '.join(map(str, sorted(inside)[:3]))}"
        )
    files = [name for name in names if name.endswith((".safetensors", *TORCH_ENDINGS))]
    # What our own format has no file of.
    if files and not {"text_encoder.safetensors", "unet.safetensors", "decoder.safetensors"} & set(files):
        with contextlib.suppress(ModelError):
            kind = of_tensors(TensorFiles([folder / files[0]]))
            if kind is not None:
                raise _with_parent(kind, folder / files[0]) from None
        shown = ", ".join(str(folder / name) for name in files[:3])
        raise ModelError(f"{folder} is not a model folder, but has files that may be models: give one of them, {shown}")


# Beginnings of the names of files -> the name of a tensor in such a file.
_FILE_NAMES = {
    ("adapter_config.json", "adapter_model.", "pytorch_lora_weights"): "lora_",
    ("learned_embeds",): "emb_params",
    ("ip-adapter", "ip_adapter"): "ip_adapter.",
}


def of_tensors(tensors: TensorFiles) -> ForeignKind | None:
    """The kind that a file's tensors show."""
    kind = next((kind for kind in KINDS if kind.fits(tensors)), None)
    if kind is None and 1 <= len(tensors) <= _MOST_EMBEDDINGS:
        # diffusers names an embedding's tensor after its word.
        shapes = [tensors.shape(key) for key in tensors]
        if all(len(shape) in (1, 2) and shape[-1] in _EMBEDDING_WIDTHS for shape in shapes):
            return next(kind for kind in KINDS if kind.has("emb_params"))
    return kind


def _with_parent(kind: ForeignKind, path: pathlib.Path) -> ModelError:
    """The error, with the folder of the whole model if that is above."""
    for parent in list(path.resolve().parents)[:2]:
        if _is_model(parent):
            return ModelError(f"{path} is {kind.name}, a part of a model: give the model's folder, {parent}")
    return kind.error(path)


def _is_model(folder: pathlib.Path) -> bool:
    return (folder / "unet" / "config.json").is_file()


def settings_of(path: pathlib.Path) -> dict[str, object]:
    """A settings file, or nothing if it cannot be read: whoever needs it says so."""
    try:
        return read_json(path)
    except ModelError:
        return {}
