"""T2I-Adapters: diffusers' folders, and single files in its layout or in that of the adapters' authors (TencentARC).

What the network of a single file looks like follows from the names and shapes of its tensors.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator

from kerasdiff.checkpoints.checkpoint import Checkpoint, Shapes
from kerasdiff.checkpoints.formats.diffusers_controlnet import WEIGHTS
from kerasdiff.checkpoints.formats.diffusers_folder import renamed, weight_files
from kerasdiff.checkpoints.formats.json_settings import JsonSettings
from kerasdiff.checkpoints.mapped_source import LeftOverReport, MappedSource, TensorSlice
from kerasdiff.errors import ModelError
from kerasdiff.models.blocks import feature_shapes
from kerasdiff.models.config import FAMILIES, ModelConfig
from kerasdiff.models.control_configs import ControlModel, T2IAdapterConfig
from kerasdiff.runtime.safetensors_map import TensorFiles

# A residual block: in diffusers' layout, in that of a full adapter's authors, and of a light one's.
_BLOCKS = (
    re.compile(r"(?:adapter\.)?body\.(\d+)\.resnets\.(\d+)\.block1\.weight"),
    re.compile(r"(?:adapter\.)?body\.(\d+)\.block1\.weight"),
    re.compile(r"(?:adapter\.)?body\.(\d+)\.body\.(\d+)\.block1\.weight"),
)
# What only experiments had, and adapters for style, which read what a CLIP sees in a picture.
_OTHER_LAYERS = re.compile(r".*\.(skep|down_opt)\.|style_embedding$")
# Channels that the first layer reads -> downscale_factor and channels of a hint.
_FIRST = {64: (8, 1), 192: (8, 3), 256: (16, 1), 768: (16, 3)}
_USUAL_DEPTH = 2
_XL_FACTOR = 16


def open_t2i_adapter(path: pathlib.Path, model: ModelConfig) -> Checkpoint | None:
    """A folder or file as a model of one network, "t2i_adapter"; None if it is something else.

    Raises:
        ModelError: it cannot be read, or was made for another family of models than `model`.
    """
    settings = path / "config.json"
    if path.is_dir():
        if not settings.is_file() or JsonSettings(settings).get("_class_name", "", str) != "T2IAdapter":
            return None
        config, files = _of_settings(JsonSettings(settings)), weight_files(path, WEIGHTS, None)
        slices = _diffusers_slices("adapter.")
    else:
        tensors = TensorFiles([path])
        layout = next((number for number, block in enumerate(_BLOCKS) if any(map(block.fullmatch, tensors))), None)
        other = next(filter(_OTHER_LAYERS.match, tensors), None)
        if other is not None:
            raise ModelError(f"{path} is a T2I-Adapter of a kind that is not supported (it has {other:.80})")
        if layout is None:
            return None
        config, slices = _of_tensors(tensors, layout)
        files = [path]
    check_fits(str(path), config, model)
    report = LeftOverReport()

    def source(network: str, shapes: Callable[[], Shapes]) -> MappedSource:
        made = MappedSource(TensorFiles(files), shapes(), slices, lambda key: False)
        report(str(path), made.left_over)
        return made

    name, found = path.name if path.is_dir() else path.stem, ControlModel(t2i_adapter=config)
    return Checkpoint(name, found, None, source, lambda network: files)  # type: ignore[arg-type]


def check_fits(where: str, config: T2IAdapterConfig, model: ModelConfig) -> None:
    """Raises ModelError if a model's U-Net has no place for an adapter's features."""
    side = 2 ** len(model.unet.widths)
    shapes = feature_shapes(model.unet, side, side)
    places = tuple((channels, model.latent_factor * side // height) for height, _, channels in shapes)
    if config.features != places[: len(config.features)]:
        made_for = FAMILIES["sdxl" if config.downscale_factor == _XL_FACTOR else "sd1"]
        theirs, ours = (
            ", ".join(f"{width} at 1/{pixels}" for width, pixels in each) for each in (config.features, places)
        )
        raise ModelError(
            f"{where} is a T2I-Adapter for {made_for}, and this model is {FAMILIES[model.family]}: its features have "
            f"channels {theirs}, and the U-Net {ours}"
        )


def _of_settings(settings: JsonSettings) -> T2IAdapterConfig:
    return settings.made(
        T2IAdapterConfig,
        adapter_type=settings.get("adapter_type", "full_adapter", str),
        channels=settings.numbers("channels", [320, 640, 1280, 1280]),
        num_res_blocks=settings.get("num_res_blocks", 2, int),
        downscale_factor=settings.get("downscale_factor", 8, int),
        in_channels=settings.get("in_channels", 3, int),
    )


def _of_tensors(tensors: TensorFiles, layout: int) -> tuple[T2IAdapterConfig, Callable[[str], Iterator[TensorSlice]]]:
    """What a file's tensors tell, and where each of ours is."""
    prefix = "adapter." if any(key.startswith("adapter.body.") for key in tensors) else ""
    shape = lambda name: tensors.shape(prefix + name) if prefix + name in tensors else ()  # noqa: E731
    found = [match for match in map(_BLOCKS[layout].fullmatch, tensors) if match]
    numbers = sorted({int(match[1]) for match in found})
    light = len(shape("body.0.out_conv.weight")) > 1
    if layout == 1:
        # One block after another; the first with other channels is the first of the second feature.
        widths = [(*tensors.shape(f"{prefix}body.{number}.block1.weight"), 0)[0] for number in numbers]
        depth = next((number for number, width in enumerate(widths) if width != widths[0]), _USUAL_DEPTH)
        widths = widths[::depth]
    else:
        depth = 1 + max(int(match[2]) for match in found)
        last = "out_conv" if light else "resnets.0.block1"
        widths = [(*shape(f"body.{number}.{last}.weight"), 0)[0] for number in numbers]
    first = (*shape("body.0.in_conv.weight" if light else "conv_in.weight"), 0, 0)[1]
    if first not in _FIRST or (light and widths[-2:-1] != widths[-1:]):
        raise ModelError(
            f"{tensors.where} is a T2I-Adapter of a kind that is not supported (channels {first} and {widths})"
        )
    factor, channels = _FIRST[first]
    kind = "light_adapter" if light else "full_adapter_xl" if factor == _XL_FACTOR else "full_adapter"
    try:
        config = T2IAdapterConfig(kind, tuple(widths[:-1] if light else widths), depth, factor, channels)  # type: ignore[arg-type]
    except ModelError as error:
        raise ModelError(f"{tensors.where}: {error}") from None
    return config, _diffusers_slices(prefix) if layout == 0 else _original_slices(prefix, depth)


def _diffusers_slices(prefix: str) -> Callable[[str], Iterator[TensorSlice]]:
    def slices(name: str) -> Iterator[TensorSlice]:
        yield TensorSlice(prefix + ".".join(renamed(name)).removeprefix("adapter."))

    return slices


def _original_slices(prefix: str, depth: int) -> Callable[[str], Iterator[TensorSlice]]:
    """Full adapters have one list of blocks, light ones a list in each."""

    def slices(name: str) -> Iterator[TensorSlice]:
        path, leaf = renamed(name)
        inside = path.removeprefix("adapter.")
        block = re.fullmatch(r"body\.(\d+)\.(?:resnets\.(\d+)\.)?(\w+)", inside)
        if block is None:
            yield TensorSlice(f"{prefix}{inside}.{leaf}")
            return
        number, index, layer = int(block[1]), int(block[2] or 0), block[3]
        yield TensorSlice(f"{prefix}body.{depth * number + index}.{layer}.{leaf}")
        yield TensorSlice(f"{prefix}body.{number}.{f'body.{index}.' if block[2] else ''}{layer}.{leaf}")

    return slices
