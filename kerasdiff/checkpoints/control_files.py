"""Opens what steers a model: ControlNets, and what is like them, from any format."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable

from kerasdiff.checkpoints.checkpoint import Checkpoint, Shapes
from kerasdiff.checkpoints.file_stamps import FileStamp, FileStamps
from kerasdiff.checkpoints.formats.diffusers_controlnet import controlnet_config, controlnet_files, controlnet_slices
from kerasdiff.checkpoints.mapped_source import LeftOverReport, MappedSource
from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.control_configs import ControlModel
from kerasdiff.runtime.safetensors_map import TensorFiles


def find_control(reference: str) -> pathlib.Path:
    """Where a path or a name on the hub leads; ModelError if it leads nowhere."""
    folder = pathlib.Path(os.path.abspath(os.path.expanduser(reference)))
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no ControlNet {reference!r}; give a folder of diffusers")
    return folder


def control_hash(path: pathlib.Path) -> str:
    """SHA-256 of the weights of what `find_control` found."""
    hashes = [_sha256(file, FileStamp.of(file)) for file in controlnet_files(path)("controlnet")]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@functools.lru_cache(64)
def _sha256(file: pathlib.Path, stamp: FileStamp | None) -> str:
    """Of a file that has a stamp."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None


def open_control(reference: str, config: ModelConfig) -> Checkpoint:
    """What a path or a name on the hub leads to, as a model of one network; `config` is that of the model it steers.

    Raises:
        ModelError: it cannot be had, cannot be read, or was made for another family of models.
    """
    folder = find_control(reference)
    found, files, report = controlnet_config(folder / "config.json", config), controlnet_files(folder), LeftOverReport()

    def source(network: str, shapes: Callable[[], Shapes]) -> MappedSource:
        made = MappedSource(TensorFiles(files(network)), shapes(), controlnet_slices, lambda key: False)
        report(str(folder), made.left_over)
        return made

    stamps = FileStamps.of(folder)
    return Checkpoint(folder.name, ControlModel(controlnet=found), None, source, files, stamps=stamps)  # type: ignore[arg-type]
