"""From the `model` argument to a `Checkpoint`."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.checkpoints import hub, recognition, vae_files
from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.file_stamps import FileStamps
from kerasdiff.checkpoints.formats import (
    diffusers_config,
    diffusers_folder,
    keras_cv_h5,
    keras_cv_live,
    ldm,
    tokenizer_folder,
)
from kerasdiff.checkpoints.formats.native import TOKENIZERS, NativeSource, read_config
from kerasdiff.checkpoints.vae_files import open_vae
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SD_V2, SDXL, SDXL_REFINER, ModelConfig
from kerasdiff.models.networks import names_of
from kerasdiff.models.tokenizer import Tokenizer
from kerasdiff.samplers import recipes

PRESETS_FOLDER = pathlib.Path(__file__).parents[1] / "presets"
TINY_FOLDER = PRESETS_FOLDER / "tiny"
# Presets that ship with the package, and their folders: what the first one does not have, the next one has.
BUNDLED = {"tiny": (TINY_FOLDER,), "tiny-xl": (PRESETS_FOLDER / "tiny-xl", TINY_FOLDER)}
PRESETS = ("sd-v1-4", "sd-v2-1", "sdxl", "sdxl-refiner", *BUNDLED)
_FULL_SIZE = {"sd-v1-4": SD_V1, "sd-v2-1": SD_V2, "sdxl": SDXL, "sdxl-refiner": SDXL_REFINER}
# Those that are a repository, and the half of its weights: full ones take twice the download and change no image much.
_REPOSITORIES = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}
_VARIANT = "fp16"


def open_model(
    model: Any,
    weights: str = "pretrained",
    *,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | os.PathLike[str] | None = None,
    refiner: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Opens a model by name or path, or a live `keras_cv.models.StableDiffusion`; arguments as in `Generator`.

    A `Checkpoint` is returned as it is, or with the autoencoder that `vae` names and the refiner.
    """
    found = _open(model, weights, revision, variant, vae)
    if refiner is None:
        return found
    if not isinstance(refiner, str | os.PathLike) or not os.fspath(refiner):
        raise ModelError(f"refiner must be a name or a path, not {validation.kind(refiner)}")
    refiner = validation.path("refiner", refiner)
    other = _open(refiner, weights, None, variant, name="refiner")
    return dataclasses.replace(found.with_refiner(other), requested={**found.requested, "refiner": refiner})


def _open(
    model: Any,
    weights: str,
    revision: str | None,
    variant: str | None,
    vae: str | os.PathLike[str] | None = None,
    name: str = "model",
) -> Checkpoint:
    if not isinstance(weights, str) or weights not in ("pretrained", "random"):
        raise ModelError(f"weights={validation.shown(weights)} is unknown; choose 'pretrained' or 'random'")
    for option, value in (("revision", revision), ("variant", variant)):
        if value is not None and not isinstance(value, str):
            raise ModelError(f"{option} must be a string, not {validation.kind(value)}")
    if isinstance(model, Checkpoint):
        return model if vae is None else with_vae(model, vae)
    requested = {"weights": weights, "revision": revision, "variant": variant}
    if keras_cv_live.is_live(model):
        if vae is not None:
            raise ModelError("vae does not go with a live KerasCV model, which brings its own autoencoder")
        if weights == "random":
            raise ModelError("weights='random' does not go with a live KerasCV model, which brings its own weights")
        found = keras_cv_live.open_live(model)
        return dataclasses.replace(found, requested={"model": found.name, **requested})
    if isinstance(model, os.PathLike):
        model = validation.path("model", model)
    if not isinstance(model, str):
        raise ModelError(
            f"model must be a name, a path or a keras_cv.models.StableDiffusion, not {type(model).__name__}; "
            f"known names: {', '.join(PRESETS)}"
        )
    pretrained = weights == "pretrained"
    checkpoint = _named(model, pretrained, revision, variant, name)
    checkpoint = dataclasses.replace(checkpoint, requested={"model": model, **requested})
    if vae is not None:
        checkpoint = with_vae(checkpoint, vae, variant, pretrained)
    if checkpoint.missing:
        lacks = "autoencoder" if "decoder" in checkpoint.missing else "encoder for pictures"
        raise ModelError(f"{model} has no {lacks}: give an autoencoder as vae= (--vae), or a file with the whole model")
    return checkpoint if pretrained else checkpoint.randomised()


def with_vae(
    model: Checkpoint, vae: str | os.PathLike[str], variant: str | None = None, weights: bool = True, name: str = "vae"
) -> Checkpoint:
    """A model with the autoencoder that an argument called `name` names, for previews if it is "preview_vae"."""
    if not isinstance(vae, str | os.PathLike) or not os.fspath(vae):
        raise ModelError(f"{name} must be a name or a path, not {validation.kind(vae)}")
    vae = validation.path(name, vae)
    found = open_vae(vae, model.latents_of, model.name, variant, weights, name)
    if name != "vae" and "decoder" not in found.halves:
        raise ModelError(f"{name}={validation.shown(vae)} has no decoder, which previews need")
    return dataclasses.replace(model.with_autoencoder(found), requested={**model.requested, "vae": vae})


def is_current(model: Checkpoint) -> bool:
    """Whether a model's name or path still leads to the files that it was opened from, and they are unchanged."""
    if model.autoencoder is not None and not vae_files.is_current(model.autoencoder, model.latents_of):
        return False
    if model.refiner is not None and not is_current(model.refiner):
        return False
    if model.stamps is None:
        return True
    name = model.origin["model"]
    if name in BUNDLED:
        return FileStamps.of(*BUNDLED[name]) == model.stamps
    path = _local(name)
    if path is None:
        path = hub.downloaded(_REPOSITORIES.get(name, name), model.origin["revision"])
    return path is not None and FileStamps.of(path) == model.stamps


def _local(model: str) -> pathlib.Path | None:
    """The file or folder that a path leads to, whatever the current folder becomes; None if there is none."""
    path = os.path.abspath(os.path.expanduser(model))
    # Unlike pathlib's, these do not raise for a name that is too long.
    if os.path.isdir(path):
        return pathlib.Path(os.path.realpath(path))
    return pathlib.Path(path) if os.path.exists(path) else None


def _named(model: str, weights: bool, revision: str | None, variant: str | None, name: str) -> Checkpoint:
    """A model by name or path, of an argument called `name`; without `weights`, none are downloaded."""
    if model in _REPOSITORIES:
        return _published(model, weights, revision, _VARIANT if variant is None else variant)
    if model in PRESETS:
        _report_no_variants(model, variant)
    if model in BUNDLED:
        folder, *others = BUNDLED[model]
        return dataclasses.replace(_opened(folder, others=others), name=model)
    if model in _FULL_SIZE:
        files = keras_cv_h5.from_hub(model, fetch=weights)
        return Checkpoint(model, _FULL_SIZE[model], Tokenizer.clip(), keras_cv_h5.source(files), files)
    path = _local(model)
    if path is not None:
        return _opened(path, variant)
    if hub.is_name(model):
        path = hub.fetch(model, revision, variant, weights)
        found = dataclasses.replace(_opened(path, variant), name=model.removeprefix("hf://"))
        return found if found.config.defaults.recipe is not None else found.with_recipe(recipes.published(found.name))
    near = validation.nearest(model, PRESETS)
    hint = f"did you mean {near!r}? " if near else ""
    raise ModelError(
        f"{name}={validation.shown(model)} is unknown; {hint}known: {', '.join(PRESETS)}, a folder, a .safetensors or "
        ".ckpt file, or 'org/name' on the Hugging Face hub"
    )


def _published(preset: str, weights: bool, revision: str | None, variant: str) -> Checkpoint:
    """A preset that is a repository; without `weights` nothing of it is downloaded."""
    if not weights:
        config, second = _FULL_SIZE[preset], Tokenizer.clip("!")
        first = second if config.text_encoder is None else Tokenizer.clip()
        return Checkpoint(preset, config, first, lambda network, _: None, tokenizer_2=second)
    path = hub.fetch(_REPOSITORIES[preset], revision, variant)
    return dataclasses.replace(_opened(path, variant), name=preset)


def _opened(path: pathlib.Path, variant: str | None = None, others: Sequence[pathlib.Path] = ()) -> Checkpoint:
    """A file or folder, with what its files were before they were looked at; `others` have what a folder has not."""
    stamps = FileStamps.of(path, *others)
    checkpoint = _open_folder(path, variant, others) if path.is_dir() else _open_file(path, variant)
    if FileStamps.of(path, *others) != stamps:
        raise ModelError(f"{path} is being written at the moment; open it when that is done")
    return dataclasses.replace(checkpoint, stamps=stamps)


def _report_no_variants(model: object, variant: str | None) -> None:
    if variant is not None:
        warnings.warn(f"variant={variant!r:.80} has no effect: {model} has one set of weights", stacklevel=2)


def _open_file(path: pathlib.Path, variant: str | None) -> Checkpoint:
    recognition.refuse_settings_file(path)
    _report_no_variants(path, variant)
    found = ldm.open_file(path)
    tokenizers = [*found.tokenizers.values()]
    try:
        _check_words(path, found.config, *tokenizers)
    except ModelError as error:  # the file has no tokenizer: CLIP's is only what is usual
        warnings.warn(f"{error}; only prompt_embeds can be used", stacklevel=2)
    return Checkpoint(
        path.stem,
        found.config,
        tokenizers[0],
        found.source,
        lambda network: [path],
        tokenizer_2=(*tokenizers, None)[1],
        missing=found.missing,
    )


def _open_folder(folder: pathlib.Path, variant: str | None, others: Sequence[pathlib.Path] = ()) -> Checkpoint:
    name = folder.resolve().name
    if not (folder / "unet" / "config.json").is_file():
        _report_no_variants(folder, variant)
    preset = keras_cv_h5.preset_of(folder)
    if preset is not None:
        files = keras_cv_h5.in_folder(folder, preset)
        return Checkpoint(name, _FULL_SIZE[preset], Tokenizer.clip(), keras_cv_h5.source(files), files)
    if (folder / "unet" / "config.json").is_file():
        files = diffusers_folder.files(folder, variant)
        diffusers_folder.report_variants(folder, variant)
        config = diffusers_config.read_config(folder)
        places = (folder / diffusers_folder.tokenizer_of(encoder) for encoder in config.text_encoders)
        tokenizers = [tokenizer_folder.read(place) for place in places]
        _check_words(folder, config, *tokenizers)
        source = diffusers_folder.source(files)
        return Checkpoint(name, config, tokenizers[0], source, files, tokenizer_2=(*tokenizers, None)[1])
    recognition.refuse_folder(folder)
    if (folder / "config.json").is_file():
        return _open_native(folder, *others)
    raise ModelError(
        f"{folder} is not a model folder: it has neither unet/config.json nor config.json nor KerasCV's .h5 files"
    )


def _open_native(folder: pathlib.Path, *others: pathlib.Path) -> Checkpoint:
    def find(name: str) -> pathlib.Path:
        places = (place / name for place in (folder, *others))
        return next((path for path in places if path.is_file()), folder / name)

    config = read_config(folder)
    tokenizers = [Tokenizer.load(find(name)) for name, _ in zip(TOKENIZERS, config.text_encoders, strict=False)]
    _check_words(folder, config, *tokenizers)
    files = lambda network: [find(f"{network}.safetensors")]  # noqa: E731
    source = lambda network, _: NativeSource(*files(network))  # noqa: E731
    return Checkpoint(
        folder.resolve().name,
        config,
        tokenizers[0],
        source,
        files,
        native=names_of(config),
        tokenizer_2=(*tokenizers, None)[1],
    )


def _check_words(path: pathlib.Path, config: ModelConfig, *tokenizers: Tokenizer) -> None:
    """ModelError if a text encoder does not know every word of its tokenizer; it may know more."""
    for (name, encoder), tokenizer in zip(config.text_encoders.items(), tokenizers, strict=True):
        rows, beyond = encoder.vocab_size, tokenizer.beyond(encoder.vocab_size)
        which = "second text encoder" if len(tokenizers) > 1 and name == "text_encoder_2" else "text encoder"
        if beyond:
            raise ModelError(
                f"{path}: the {which} has {rows} words, and {len(beyond)} of the tokenizer's {tokenizer.vocab_size} "
                f"are beyond: {', '.join(map(repr, beyond[:3]))}; they are of different models, or only one got new "
                "words"
            )
