"""An autoencoder that takes the place of a model's own, from a folder, a file or the hub."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

from kerasdiff import validation
from kerasdiff.checkpoints import hub, recognition
from kerasdiff.checkpoints.file_stamps import FileStamps
from kerasdiff.checkpoints.formats import diffusers_config, diffusers_folder, ldm, taesd
from kerasdiff.checkpoints.formats.native import NativeSource, config_from, read_config
from kerasdiff.checkpoints.mapped_source import LeftOverReport, MappedSource
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SDXL_VAE, TINY_VAE
from kerasdiff.models.network_configs import AnyVAEConfig, TinyVAEConfig, VAEConfig
from kerasdiff.runtime.safetensors_map import TensorFiles

# A small one that suits the model: of Stable Diffusion and of its XL on the hub, of the embedded model in the package.
TAESD, _TAESD_ON_HUB, _TAESD_XL_ON_HUB = "taesd", "madebyollin/taesd", "madebyollin/taesdxl"
TINY_TAESD_FOLDER = pathlib.Path(__file__).parents[1] / "presets" / "taesd"
_HALVES = ("decoder", "encoder")
_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_XL_NAME = re.compile(r"sd_?-?xl|(^|[^a-z])xl[_-]?vae|vae[_-]?xl|taesdxl", re.IGNORECASE)
_FIRST_NAME = re.compile(r"vae-ft-|kl-f8|taesd(?!xl)", re.IGNORECASE)
# What made Stable Diffusion XL's stay within float16's range, by the names of files.
_FIXED = re.compile(r"fp16[ ._-]?fix", re.IGNORECASE)
_LDM = re.compile(r"((first_stage_model|vae)\.)?(encoder|decoder)\.(down|up)\.\d")
_DIFFUSERS = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.\d")
# By how many channels latents have.
_FAMILIES = {16: ", as of Stable Diffusion 3 and Flux", 32: ", as of newer families", 128: ", as of newer families"}


@dataclasses.dataclass(frozen=True)
class VAEFiles:
    """An autoencoder that was found; `source`, `files`, `stamps` and `native` are as in `Checkpoint`.

    `reference` is what was asked for, by an argument called `argument`, and `halves` which of "decoder" and "encoder"
    there are.
    """

    reference: str
    config: AnyVAEConfig
    halves: tuple[str, ...]
    source: Callable[[str, Callable[[], dict[str, tuple[int, ...]]]], Any]
    files: Callable[[str], list[pathlib.Path]]
    native: tuple[str, ...] = ()
    stamps: FileStamps | None = None
    argument: str = "vae"

    @property
    def asked(self) -> str:
        """How it was asked for, for messages."""
        return f"{self.argument}={validation.shown(self.reference)}"

    def check(self, model: str, own: AnyVAEConfig) -> None:
        """Raises ModelError if it has other latents than a model; warns if they mean other colours."""
        _check_latents(self.asked, self.config.latent_channels, model, own)
        if self.config.factor != own.factor:
            raise ModelError(
                f"{self.asked} makes {self.config.factor} pixels of a latent's side, and {model} needs {own.factor}"
            )
        name = "" if self.reference == TAESD else os.path.basename(self.reference.rstrip("/"))
        family, usual, known = (
            ("Stable Diffusion 1.x or 2.x", VAEConfig(), _FIRST_NAME)
            if _is_xl(own)
            else ("Stable Diffusion XL", SDXL_VAE, _XL_NAME)
        )
        if self.config.scaling_factor == usual.scaling_factor or known.search(name):
            warnings.warn(
                f"{self.asked} seems to be that of {family}, whose latents mean "
                f"other colours than those of {model}; images will look wrong",
                stacklevel=2,
            )


def _is_xl(own: AnyVAEConfig) -> bool:
    """Whether a model's own autoencoder is that of Stable Diffusion XL."""
    return isinstance(own, VAEConfig) and own.scaling_factor == SDXL_VAE.scaling_factor


def _check_latents(asked: str, channels: int, model: str, own: AnyVAEConfig) -> None:
    """Raises ModelError if an autoencoder's latents have other channels than a model's."""
    if channels != own.latent_channels:
        raise ModelError(
            f"{asked} has latents of {channels} channels{_FAMILIES.get(channels, '')}; "
            f"{model} has {own.latent_channels}"
        )


def open_vae(
    reference: str,
    own: AnyVAEConfig,
    model: str,
    variant: str | None = None,
    weights: bool = True,
    argument: str = "vae",
) -> VAEFiles:
    """Opens what an `argument` names, for a model whose autoencoder is `own`; without `weights` none are downloaded.

    A file that does not state a scaling factor has that of the model.
    """
    path = _located(reference, own, weights, variant)
    if path is None:  # without weights nothing is read, and this one is known
        return VAEFiles(reference, TinyVAEConfig(), _HALVES, lambda network, shapes: None, lambda network: [])
    stamps = FileStamps.of(path)
    # What a file does not state. That of Stable Diffusion XL needs float32, unless its settings say that it does not.
    usual = VAEConfig(scaling_factor=own.scaling_factor) if isinstance(own, VAEConfig) else VAEConfig()
    usual = dataclasses.replace(usual, force_upcast=_is_xl(own))
    opened = _Opener(f"{argument}={validation.shown(reference)}", reference, own, model, usual, variant).open(path)
    if FileStamps.of(path) != stamps:
        raise ModelError(f"{path} is being written at the moment; open it when that is done")
    opened = dataclasses.replace(opened, stamps=stamps, argument=argument)
    opened.check(model, own)
    return opened


def is_current(found: VAEFiles, own: AnyVAEConfig) -> bool:
    """Whether what `vae` names is still what was opened; nothing is downloaded."""
    name = _hub_name(found.reference, own)
    path = _local(found.reference, own) if name is None else hub.downloaded(name, None, hub.AUTOENCODER_SETTINGS)
    return found.stamps is None or (path is not None and FileStamps.of(path) == found.stamps)


def _local(reference: str, own: AnyVAEConfig) -> pathlib.Path | None:
    if reference == TAESD:
        return TINY_TAESD_FOLDER if _latents(own) == _latents(TINY_VAE) else None
    path = os.path.abspath(os.path.expanduser(reference))
    return pathlib.Path(os.path.realpath(path)) if os.path.exists(path) else None


def _latents(config: AnyVAEConfig) -> Any:
    """What tells the latents of one family from another's."""
    return (config.widths, config.scaling_factor) if isinstance(config, VAEConfig) else config


def _hub_name(reference: str, own: AnyVAEConfig) -> str | None:
    """The name on the hub that is meant; None for a path."""
    if _local(reference, own) is not None:
        return None
    taesd_of = _TAESD_XL_ON_HUB if _is_xl(own) else _TAESD_ON_HUB
    name = taesd_of if reference == TAESD else reference
    return name if hub.is_name(name) else None


def _located(reference: str, own: AnyVAEConfig, weights: bool, variant: str | None) -> pathlib.Path | None:
    """The file or folder that is meant, downloaded if need be; None for TAESD if only its architecture is wanted."""
    path = _local(reference, own)
    if path is not None:
        return path
    name = _hub_name(reference, own)
    if name is not None:
        return None if reference == TAESD and not weights else hub.fetch_autoencoder(name, variant, weights)
    raise ModelError(
        f"there is no autoencoder {validation.shown(reference)}: give vae='taesd', a folder, a file, or "
        "'org/name' on the Hugging Face hub"
    )


@dataclasses.dataclass(frozen=True)
class _Opener:
    """Reads one kind or the other; one that does not state a scaling factor is as `usual`."""

    asked: str
    reference: str
    own: AnyVAEConfig
    model: str
    usual: VAEConfig
    variant: str | None

    def open(self, path: pathlib.Path) -> VAEFiles:
        return self._folder(path) if path.is_dir() else self._file(path)

    def _found(self, config: AnyVAEConfig, *arguments: Any, **more: Any) -> VAEFiles:
        return VAEFiles(self.reference, config, _HALVES, *arguments, **more)

    def _folder(self, folder: pathlib.Path) -> VAEFiles:
        inside = folder / "vae"
        if (inside / "config.json").is_file():
            folder = inside
        if (folder / "decoder.safetensors").is_file() and (folder / "config.json").is_file():
            return self._native(folder)
        names = sorted(path.name for path in folder.iterdir())
        if (folder / "config.json").is_file():
            config = self._settings(folder / "config.json")
            files = diffusers_folder.autoencoder_files(folder, self.variant)
            return self._found(config, diffusers_folder.source(files), files)
        found = [name for name in names if name.endswith(_ENDINGS)]
        found = [name for name in found if name.endswith(_ENDINGS[0])] or found
        if len(found) == 1 or [os.path.splitext(name)[0] for name in found] == ["taesd_decoder", "taesd_encoder"]:
            return self._file(*(folder / name for name in found))
        if found:
            shown = ", ".join(str(folder / name) for name in found[:3])
            raise ModelError(f"{folder} has several files: give one of them as vae, {shown}")
        raise ModelError(f"{folder} has no autoencoder: it has neither config.json nor vae/config.json nor a file")

    def _settings(self, path: pathlib.Path) -> AnyVAEConfig:
        channels = recognition.settings_of(path).get("latent_channels")
        if isinstance(channels, int):  # before anything else that is unusual then
            _check_latents(self.asked, channels, self.model, self.own)
        return diffusers_config.read_vae(path, self.usual)

    def _native(self, folder: pathlib.Path) -> VAEFiles:
        config = read_config(folder)
        if config.other_encoder is not None:
            raise ModelError(f"{folder} has two autoencoders, each with one half: give one of them as vae")
        files = lambda network: [folder / f"{network}.safetensors"]  # noqa: E731
        return self._found(config.vae, lambda network, _: NativeSource(*files(network)), files, native=_HALVES)

    def _file(self, path: pathlib.Path, *others: pathlib.Path) -> VAEFiles:
        recognition.refuse_settings_file(path)
        tensors = TensorFiles([path])
        channels = next((tensors.shape(key) for key in tensors if key.endswith("decoder.conv_in.weight")), ())
        if len(channels) == 4:
            _check_latents(self.asked, channels[1], self.model, self.own)
        if taesd.is_tiny(tensors):
            return self._tiny([path, *others])
        if any(map(_LDM.match, tensors)):
            return self._ldm(path)
        if any(map(_DIFFUSERS.match, tensors)):
            beside = path.parent / "config.json"
            config = self._settings(beside) if beside.is_file() else self._shapes(tensors)
            files = lambda network: [path]  # noqa: E731
            return self._found(config, diffusers_folder.source(files), files)
        kind = recognition.of_tensors(tensors)
        raise ModelError(f"{path} is {'no autoencoder' if kind is None else f'{kind.name}, and no autoencoder'}")

    def _tiny(self, paths: list[pathlib.Path]) -> VAEFiles:
        config: AnyVAEConfig
        config, halves = taesd.open_tiny(paths)
        beside = paths[0].parent / "config.json"
        if beside.is_file() and any(name.startswith("decoder.layers.") for name in TensorFiles(paths[:1])):
            config = self._settings(beside)
        report = LeftOverReport()

        def source(network: str, shapes: Callable[[], dict[str, tuple[int, ...]]]) -> MappedSource:
            component, tensors = diffusers_folder.COMPONENTS[network], halves[network]
            unread = (*component.unread, *taesd.UNREAD)
            found = MappedSource(tensors, shapes(), component.slices, lambda key: key.startswith(unread))
            report(tensors.where, found.left_over)
            return found

        opened = self._found(config, source, lambda network: [*halves[network].paths])
        return dataclasses.replace(opened, halves=tuple(half for half in _HALVES if half in halves))

    def _ldm(self, path: pathlib.Path) -> VAEFiles:
        def usual_name(key: str) -> str:
            bare = re.match(r"(encoder|decoder|quant_conv|post_quant_conv|loss|model_ema)\.", key)
            return ldm.usual_name(ldm.VAE + key if bare else key)

        tensors, report = TensorFiles([path], usual_name), LeftOverReport()
        own = tensors.metadata
        if ldm.CONFIG in own:
            config = config_from(own[ldm.CONFIG], path).vae
        else:
            config = self._with_numbers(ldm.read_vae(tensors))
        whole = dataclasses.replace(SD_V1, vae=config)

        def source(network: str, shapes: Callable[[], dict[str, tuple[int, ...]]]) -> MappedSource:
            ignored = lambda key: ldm.is_ignored(network, key, whole)  # noqa: E731
            found = MappedSource(tensors, shapes(), ldm.slices(network, whole), ignored)
            report(tensors.where, found.left_over)
            return found

        return self._found(config, source, lambda network: [path])

    def _shapes(self, tensors: TensorFiles) -> VAEConfig:
        """What the shapes of diffusers' tensors tell."""
        levels = {match[1] for key in tensors if (match := re.match(r"encoder\.down_blocks\.(\d+)\.", key))}
        depth = {match[1] for key in tensors if (match := re.match(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", key))}
        firsts = [f"encoder.down_blocks.{level}.resnets.0.conv1.weight" for level in range(len(levels))]
        if not all(key in tensors for key in (*firsts, "decoder.conv_in.weight")) or not levels:
            raise ModelError(f"{tensors.where} has only a part of an autoencoder")
        channels = tensors.shape("decoder.conv_in.weight")[1]
        widths = tuple(tensors.shape(key)[0] for key in firsts)
        return self._with_numbers(VAEConfig(channels, widths, len(depth), norm_epsilon=1e-6))

    def _with_numbers(self, config: VAEConfig) -> VAEConfig:
        """What the names and shapes of no file tell, but for those of a whole Stable Diffusion XL."""
        usual = SDXL_VAE if _is_xl(config) else self.usual
        upcast = usual.force_upcast and not _FIXED.search(self.reference)
        return dataclasses.replace(config, scaling_factor=usual.scaling_factor, force_upcast=upcast)
