"""Writing a model in any of the formats; no network is built for it."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator

import ml_dtypes
import numpy as np
import safetensors.numpy

from kerasdiff import validation
from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.formats import (
    diffusers_config,
    diffusers_controlnet,
    diffusers_folder,
    keras_cv_h5,
    ldm,
    ldm_sampling,
    ldm_text,
    native,
    tokenizer_folder,
)
from kerasdiff.checkpoints.formats.diffusers_unet import linear_projection
from kerasdiff.checkpoints.mapped_source import TensorSlice
from kerasdiff.errors import ModelError
from kerasdiff.models.blocks import unet_blocks
from kerasdiff.models.config import SD_V1, SD_V2, ModelConfig
from kerasdiff.models.network_configs import VAEConfig
from kerasdiff.models.networks import names_of
from kerasdiff.models.tokenizer import Tokenizer
from kerasdiff.runtime import safetensors_write
from kerasdiff.runtime.safetensors_map import TensorFiles

_LOG = logging.getLogger("kerasdiff")
# What is the same model for KerasCV and for diffusers, which compute it differently.
_REFERENCES = ("activation", "gelu", "transformer_epsilon", "norm_epsilon")
# Settings that mean nothing if a model does not have them.
_NEUTRAL = ("steps_offset", "set_alpha_to_one", "mlp_width")
# What an image depends on, whoever opens the file.
_DECISIVE = ("text_encoder", "text_encoder_2", "unet", "vae", "schedule", "force_zeros_for_empty_prompt")
# Parts of the names of dense layers that are 1 x 1 convolutions in other formats.
_CONVOLUTIONS = {"decoder": (".to_",), "encoder": (".to_",)} | dict.fromkeys(
    ("unet", "controlnet"), (".proj_in.", ".proj_out.")
)


def write_single_file(model: Checkpoint, path: pathlib.Path, dtype: str = "float32") -> None:
    """Writes one `.safetensors` file in the layout of latent diffusion, which has no safety checker."""
    config = model.config
    kind = ldm_sampling.kind_of(config)
    slices: dict[str, dict[int, np.ndarray]] = {}
    for network in (name for name in names_of(config) if name in ldm.PREFIXES):
        find = ldm.slices(network, config)
        for name, values in _parameters(model, network, dtype):
            target = next(find(name))
            convolution = network in ("decoder", "encoder") or not linear_projection(config)
            tensor = _transposed(network, name, values, convolution)
            slices.setdefault(target.key, {})[target.part] = np.ascontiguousarray(tensor.T if target.turned else tensor)
    tensors = {key: _joined(parts) for key, parts in slices.items()} | ldm_sampling.markers(config)
    if kind == "v2":
        # The last layer of OpenCLIP's text encoder, which Stable Diffusion 2.x does not read: zeros.
        start = f"{ldm_text.PLACE}{ldm_text.OPEN_CLIP}transformer.resblocks."
        first, last = (f"{start}{index}." for index in (0, config.main_text_encoder.num_layers))
        layer = {name: tensor for name, tensor in tensors.items() if name.startswith(first)}
        tensors |= {name.replace(first, last): np.zeros_like(tensor) for name, tensor in layer.items()}
    metadata = {"format": "pt", **ldm_sampling.size_metadata(config)}
    for network in config.text_encoders:
        if not has_tokenizer(model, ldm.usual_tokenizer(network, config), network):
            metadata[ldm.TOKENIZERS[network]] = _tokenizer(model, network).to_json()
    if config.defaults.recipe is not None:
        metadata[ldm.RECIPE] = config.defaults.recipe
    safetensors.numpy.save_file(tensors, path, metadata)
    written = TensorFiles([path])
    schedule, defaults = ldm_sampling.read_sampling(written, kind)
    if config.unet.embeds_guidance:
        defaults = dataclasses.replace(defaults, **ldm.LCM, **diffusers_config.of_lcm(config.unet))
    if config.defaults.recipe is not None:
        defaults = dataclasses.replace(defaults, recipe=config.defaults.recipe)
    usual = dataclasses.replace(config, schedule=schedule, defaults=defaults, safety_checker=None)
    try:
        other = _differences(config, ldm.read_config(written), *_DECISIVE)
    except ModelError:  # widths that the usual groups and heads do not divide
        other = [f"norm_groups={config.unet.norm_groups}", f"num_heads={config.unet.num_heads}"]
        other += _differences(config, usual, "schedule")
    if other:
        _LOG.warning(
            "such files have no place for %s of %s: kerasdiff finds it in their metadata, other programs take what is "
            "usual",
            ", ".join(other),
            model.name,
        )
        own = json.dumps(dataclasses.replace(config, safety_checker=None).to_json())
        safetensors.numpy.save_file(tensors, path, {**metadata, ldm.CONFIG: own})
    else:
        _report_lost("single_file", model, usual, "defaults")


def write_diffusers(model: Checkpoint, folder: pathlib.Path, dtype: str = "float32") -> None:
    """Writes a folder that `diffusers.DiffusionPipeline.from_pretrained` reads."""
    config = model.config
    for name, settings in diffusers_config.settings_files(config).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "projection_dim" in settings and path.parent.name in config.text_encoders:
            # Where a pooled embedding is taken from, if it is not CLIP's vocabulary.
            settings = {**settings, "eos_token_id": _tokenizer(model, path.parent.name).end_id}
        path.write_text(json.dumps(settings, indent=2) + "\n")
    files: dict[pathlib.Path, list[str]] = {}
    for network in names_of(config):
        component = diffusers_folder.COMPONENTS[network]
        files.setdefault(folder / component.folder / f"{component.stem}.safetensors", []).append(network)
    # 1.x has convolutions where the others have dense layers; its VAE has dense layers too.
    convolution = not linear_projection(config)
    for path, networks in files.items():
        _write_torch_file(model, path, networks, dtype, convolution)
    for network, encoder in config.text_encoders.items():
        place = folder / diffusers_folder.tokenizer_of(network)
        tokenizer_folder.write(_tokenizer(model, network), place, encoder.max_length)


def write_controlnet(control: Checkpoint, model: ModelConfig, folder: pathlib.Path, dtype: str = "float32") -> None:
    """Writes a ControlNet of a model as a folder that `diffusers.ControlNetModel.from_pretrained` reads."""
    config, settings = control.config.controlnet, diffusers_controlnet.controlnet_settings  # type: ignore[attr-defined]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings(config, model), indent=2) + "\n")
    path = folder / f"{diffusers_controlnet.WEIGHTS}.safetensors"
    _write_torch_file(control, path, ["controlnet"], dtype, not linear_projection(model))


def write_native(model: Checkpoint, folder: pathlib.Path, dtype: str = "float16") -> None:
    """Writes a folder of ours, which is mapped into memory and not copied if its type is the one asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_json(), indent=2) + "\n")
    for name, network in zip(native.TOKENIZERS, model.config.text_encoders, strict=False):
        (folder / name).write_text(_tokenizer(model, network).to_json(), "utf-8")
    for network in names_of(model.config):
        native.write_network(folder / f"{network}.safetensors", model.shapes(network), model.parameters(network), dtype)


def write_keras_cv(model: Checkpoint, folder: pathlib.Path, dtype: str = "float32") -> None:
    """Writes the set of HDF5 files that KerasCV's Stable Diffusion reads, which has no safety checker."""
    blocks, expected = ([block.name for block in unet_blocks(unet)] for unet in (model.config.unet, SD_V1.unet))
    if model.config.unet.embeds_sizes:
        raise ModelError(f"{model.name} is Stable Diffusion XL, which KerasCV does not have; choose another format")
    if model.config.unet.embeds_guidance:
        raise ModelError(f"{model.name} takes guidance as an input, which KerasCV has no place for; use another format")
    if model.config.needs_pictures:
        raise ModelError(f"{model.name} reads pictures too, which KerasCV has no place for; use another format")
    if model.config.unet.large and blocks != expected:
        raise ModelError(
            f"the U-Net of {model.name} has other blocks than Stable Diffusion 1.x and 2.x, and KerasCV builds no "
            "other; choose another format"
        )
    preset = "sd-v1-4" if model.config.main_text_encoder.activation == "quick_gelu" else "sd-v2-1"
    folder.mkdir(parents=True, exist_ok=True)
    for network, (_, name, _) in keras_cv_h5.PUBLISHED[preset].items():
        pattern = keras_cv_h5.convolutions(preset, network)
        keras_cv_h5.write(folder / name, _parameters(model, network, dtype), pattern)
    usual = SD_V1 if preset == "sd-v1-4" else SD_V2
    usual = dataclasses.replace(model.config, schedule=usual.schedule, defaults=usual.defaults)
    _report_lost("keras_cv", model, usual, "schedule", "defaults")


def check_autoencoder(model: Checkpoint, kind: str) -> None:
    """Raises ModelError if a format has no place for a model's autoencoder."""
    config = model.config
    if kind != "kerasdiff" and config.other_encoder is not None:
        raise ModelError(
            f"format={kind!r} has no place for a decoder and an encoder of different kinds; give a vae that has both, "
            "or format='kerasdiff'"
        )
    if kind in ("single_file", "keras_cv") and not isinstance(config.vae, VAEConfig):
        raise ModelError(
            f"format={kind!r} has no place for a small autoencoder (TAESD); use format='diffusers' or 'kerasdiff'"
        )


def has_tokenizer(model: Checkpoint, usual: Tokenizer, network: str | None = None) -> bool:
    """Whether a model's tokenizer, its first one or a text encoder's, gives the same rows as a usual one."""
    encoder = model.config.main_text_encoder if network is None else model.config.text_encoders[network]
    ours, most = _tokenizer(model, network), encoder.max_length
    rules = [(one.ends, one.padding_side, one.truncation_side, min(one.max_length, most)) for one in (ours, usual)]
    return rules[0] == rules[1] and ours.vocabulary.get_vocab() == usual.vocabulary.get_vocab()


def _report_lost(kind: str, model: Checkpoint, usual: ModelConfig, *parts: str) -> None:
    """Logs which settings whoever opens the file will not find."""
    lost = _differences(model.config, usual, *parts)
    if lost:
        _LOG.warning("format=%r does not keep %s of %s", kind, ", ".join(lost), model.name)


def _differences(config: ModelConfig, other: ModelConfig, *parts: str) -> list[str]:
    """The settings in some parts of two configurations that differ, with those of the first."""
    found = []
    for part in parts:
        ours, theirs = getattr(config, part), getattr(other, part)
        for name, value in vars(ours).items() if dataclasses.is_dataclass(ours) else [(part, ours)]:
            neutral = name in _REFERENCES or (value is None and name in _NEUTRAL)
            if not neutral and value != getattr(theirs, name, theirs):
                found.append(f"{name}={validation.shown(value)}")
    return found


def _write_torch_file(
    model: Checkpoint, path: pathlib.Path, networks: Iterable[str], dtype: str, convolution: bool
) -> None:
    """Writes networks as diffusers names and lays out their parameters, one tensor in memory at a time."""

    def slices_of(network: str) -> Callable[[str], Iterator[TensorSlice]]:
        if network == "controlnet":
            return diffusers_controlnet.controlnet_slices
        return diffusers_folder.COMPONENTS[network].slices

    def as_torch(network: str, name: str, values: np.ndarray) -> tuple[str, np.ndarray]:
        key = next(slices_of(network)(name)).key
        return key, _transposed(network, name, values, convolution and network in ("unet", "controlnet"))

    nothing = np.zeros(1, "float32")
    shapes = dict(
        as_torch(network, name, np.broadcast_to(nothing, shape))
        for network in networks
        for name, shape in model.shapes(network).items()
    )
    values = (as_torch(network, *each) for network in networks for each in model.parameters(network))
    inside = {key: value.shape for key, value in shapes.items()}
    safetensors_write.write(path, inside, values, dtype, {"format": "pt"})


def _joined(parts: dict[int, np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate([parts[part] for part in sorted(parts)])


def _tokenizer(model: Checkpoint, network: str | None = None) -> Tokenizer:
    """The model's first one, or that of a text encoder; one that KerasCV brings cannot be written, and is CLIP's."""
    found = model.tokenizer if network is None else model.tokenizers[network]
    return found if isinstance(found, Tokenizer) else Tokenizer.clip()


def _parameters(model: Checkpoint, network: str, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in model.parameters(network):
        yield name, np.asarray(values).astype(getattr(ml_dtypes, dtype, dtype))


def _transposed(network: str, name: str, values: np.ndarray, convolution: bool) -> np.ndarray:
    """A value as torch has it: kernels go from (..., in, out) to (out, in, ...)."""
    if not name.endswith(".kernel"):
        return values
    if values.ndim == 4:
        return values.transpose(3, 2, 0, 1)
    values = values.T
    if "transformer_blocks" in name or not any(part in name for part in _CONVOLUTIONS.get(network, ())):
        return values
    return values[:, :, None, None] if convolution else values
