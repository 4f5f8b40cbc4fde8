"""Files of upscalers: RRDBNet as ESRGAN, BSRGAN and Real-ESRGAN name its tensors, and SRVGGNetCompact.

What a network looks like follows from the shapes of its tensors alone, whatever the file is called.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator

from kerasdiff.checkpoints.checkpoint import Checkpoint, Shapes
from kerasdiff.checkpoints.file_stamps import FileStamps
from kerasdiff.checkpoints.mapped_source import LEAVES, LeftOverReport, MappedSource, TensorSlice
from kerasdiff.checkpoints.recognition import of_tensors
from kerasdiff.errors import ModelError
from kerasdiff.models.upscaler_config import CompactConfig, RRDBConfig, UpscalerConfig, UpscalerModel
from kerasdiff.runtime.safetensors_map import TensorFiles

# What trainers put around the tensors of a network; of two networks in one file the first is meant.
_WRAPPERS = ("params_ema.", "params-ema.", "params.", "state_dict.", "model_state_dict.", "model.", "net.", "")
_PREFIXES = ("module.", "netG.", "generator.", "")
_OTHERS = "kerasdiff reads upscalers of ESRGAN's kind: RRDBNet (ESRGAN, BSRGAN, Real-ESRGAN) and SRVGGNetCompact"
_CHANNELS = {1: "grey pictures", 2: "grey pictures with transparency", 4: "pictures with transparency"}
# A tensor by which each layout of an upscaler is known.
_FIRST = {"conv_first.weight": "body.0.rdb1", "model.0.weight": "model.1.sub.0.RDB1", "body.0.weight": "body.1.weight"}


def open_upscaler(path: pathlib.Path) -> Checkpoint:
    """An upscaler as a model of one network, "upscaler"; its `config` is an `UpscalerModel`.

    Raises:
        ModelError: it cannot be read, or is none that can be built.
    """
    stamps, tensors = FileStamps.of(path), TensorFiles([path])
    prefix = _prefix(tensors)
    config = _config(path, tensors, prefix)
    names, report = _names(config, tensors, prefix), LeftOverReport()

    def source(network: str, shapes: Callable[[], Shapes]) -> MappedSource:
        found = MappedSource(TensorFiles([path]), shapes(), names, lambda key: not key.startswith(prefix))
        report(str(path), found.left_over)
        return found

    model = UpscalerModel(config)
    return Checkpoint(path.stem, model, None, source, lambda network: [path], stamps=stamps)  # type: ignore[arg-type]


def _prefix(tensors: TensorFiles) -> str:
    """What the names of the network's tensors begin with."""
    for wrapper in _WRAPPERS:
        for prefix in _PREFIXES:
            if any(f"{wrapper}{prefix}{key}" in tensors for key in _FIRST):
                return wrapper + prefix
    return ""


def _config(path: pathlib.Path, tensors: TensorFiles, prefix: str) -> UpscalerConfig:
    names = {key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
    shape = lambda name: tensors.shape(prefix + name) if name in names else ()  # noqa: E731
    if {"body.0.weight", "body.1.weight"} <= names and len(shape("body.0.weight")) == 4:
        return _compact(path, names, shape)
    # Blocks are counted, and their growth is seen, at the first layer of each.
    dense = re.compile(r"(?:body|RRDB_trunk|model\.1\.sub)\.(\d+)\.(?:rdb|RDB)1\.conv1\.(?:0\.)?weight")
    blocks = {int(match[1]): match[0] for match in map(dense.fullmatch, names) if match}
    old = "model.0.weight" in names
    first, last = shape("model.0.weight" if old else "conv_first.weight"), _last(names)
    if not blocks or len(first) != 4 or len(shape(last)) != 4 or len(shape(blocks[min(blocks)])) != 4:
        kind = of_tensors(tensors)
        what = "no upscaler that is known here" if kind is None or "upscaler" in kind.name else kind.name
        raise ModelError(f"{path} is {what}: {_OTHERS}")
    given = shape(last)[0]
    unshuffle = {1: 1, 4: 2, 16: 4}.get(first[1] // max(given, 1)) if first[1] % max(given, 1) == 0 else None
    if unshuffle is None:
        raise ModelError(f"{path} is an upscaler that takes {first[1]} channels and gives {given}; {_OTHERS}")
    _check_channels(path, given)
    if old:
        doublings = (int(last.split(".")[1]) - 4) // 3
    else:
        doublings = sum(re.fullmatch(r"(conv_up|upconv)\d\.weight", name) is not None for name in names)
    if 2**doublings < unshuffle:
        raise ModelError(f"{path} is an upscaler that makes pictures smaller; {_OTHERS}")
    plus = any(".conv1x1." in name for name in names)
    growth = shape(blocks[min(blocks)])[0]
    return RRDBConfig(first[0], max(blocks) + 1, growth, 2**doublings // unshuffle, unshuffle, plus)


def _last(names: set[str]) -> str:
    """The name of the last convolution."""
    numbers = [int(match[1]) for match in map(re.compile(r"model\.(\d+)\.weight").fullmatch, names) if match]
    return f"model.{max(numbers)}.weight" if "model.0.weight" in names else "conv_last.weight"


def _compact(path: pathlib.Path, names: set[str], shape: Callable[[str], tuple[int, ...]]) -> CompactConfig:
    last = max(int(match[1]) for match in map(re.compile(r"body\.(\d+)\.weight").fullmatch, names) if match)
    features, channels = shape("body.0.weight")[:2]
    _check_channels(path, channels)
    outputs = (*shape(f"body.{last}.weight"), 0)[0]
    scale = round((outputs / channels) ** 0.5)
    if last % 2 or last < 4 or channels * scale**2 != outputs or shape("body.1.weight") != (features,):
        raise ModelError(f"{path} is no upscaler that is known here: {_OTHERS}")
    return CompactConfig(features, last // 2 - 1, scale)


def _check_channels(path: pathlib.Path, channels: int) -> None:
    if channels != 3:
        what = _CHANNELS.get(channels, f"{channels} channels")
        raise ModelError(f"{path} is an upscaler of {what}; kerasdiff reads those of colours, of three channels")


def _names(config: UpscalerConfig, tensors: TensorFiles, prefix: str) -> Callable[[str], Iterator[TensorSlice]]:
    """From one of our names, such as "upscaler.body.0.rdb1.conv1.kernel", to what it may be called."""

    def names(name: str) -> Iterator[TensorSlice]:
        module, _, leaf = name.partition(".")[2].rpartition(".")
        module = re.sub(r"^(conv_up\d)\.conv$", r"\1", module)
        spellings = [module] if isinstance(config, CompactConfig) else _spellings(config, module)
        for spelling in spellings:
            yield TensorSlice(f"{prefix}{spelling}.{'weight' if leaf == 'alpha' else LEAVES[leaf]}")

    return names


def _spellings(config: RRDBConfig, module: str) -> list[str]:
    """What Real-ESRGAN, BSRGAN and the first ESRGAN call a module of ours."""
    up, last = 3 * config.doublings, {"conv_first": "0", "conv_body": f"1.sub.{config.blocks}"}
    last |= {"conv_hr": str(up + 2), "conv_last": str(up + 4)}
    block = re.fullmatch(r"body\.(\d+)\.rdb(\d)\.(conv\w+)", module)
    if block is not None:
        index, number, conv = block.groups()
        inner = conv if conv == "conv1x1" else f"{conv}.0"
        return [module, f"RRDB_trunk.{index}.RDB{number}.{conv}", f"model.1.sub.{index}.RDB{number}.{inner}"]
    bsrgan = {"conv_body": "trunk_conv", "conv_hr": "HRconv"}.get(module, module.replace("conv_up", "upconv"))
    old = last[module] if module in last else str(3 * int(module.removeprefix("conv_up")))
    return [module, bsrgan, f"model.{old}"]
