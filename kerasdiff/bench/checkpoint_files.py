"""The weights that every subject reads: one model, written in each layout and precision that is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kerasdiff.atomic_write import atomic_path
from kerasdiff.bench.task import Task, Workload

if TYPE_CHECKING:
    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.models.config import ModelConfig


def open_checkpoint(workload: Workload, weights: str | None = None) -> Checkpoint:
    """The model of a workload, with its weights or with these."""
    # Here, as processes that are timed import this file.
    from kerasdiff.checkpoints.resolve import open_model

    return open_model(workload.model, weights or workload.weights, vae=workload.vae or None)


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to, which becomes `path` when the block ends: a folder that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.mkdir()
        yield partial


def diffusers_folder(task: Task, precision: str) -> pathlib.Path:
    """Where the model is in diffusers' layout, or will be."""
    return task.model_folder / f"diffusers-{precision}"


def write_diffusers_folder(task: Task, precision: str) -> pathlib.Path:
    """Writes it unless it exists."""
    folder = diffusers_folder(task, precision)
    if not folder.exists():
        from kerasdiff.checkpoints.export import write_diffusers

        with new_folder(folder) as partial:
            write_diffusers(open_checkpoint(task.workload), partial, precision)
    return folder


def control_folder(task: Task, precision: str) -> pathlib.Path:
    """Where a ControlNet of the model is, or will be."""
    return task.model_folder / f"controlnet-{precision}"


def write_control_folder(task: Task, precision: str) -> pathlib.Path:
    """Writes one with random weights unless it exists."""
    folder = control_folder(task, precision)
    if not folder.exists():
        from kerasdiff.checkpoints.export import write_controlnet

        model = open_checkpoint(task.workload).config
        with new_folder(folder) as partial:
            write_controlnet(random_controlnet(model), model, partial, precision)
    return folder


def folders_of(task: Task, model: pathlib.Path) -> list[pathlib.Path]:
    """What a subject reads: the folder of its `model`, and that of a ControlNet if it has one."""
    options = task.subject.options
    return [model, *([control_folder(task, options["files"])] if "control" in options else [])]


def hint_of(workload: Workload) -> np.ndarray:
    """What the ControlNet reads, uint8 (height, width, 3)."""
    return np.random.default_rng(0).integers(0, 256, (workload.height, workload.width, 3), "uint8")


def random_controlnet(model: ModelConfig) -> Checkpoint:
    """A ControlNet of a model, with random weights."""
    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.checkpoints.formats.random_weights import RandomSource
    from kerasdiff.models.control_configs import ControlModel, ControlNetConfig

    unet, random = dataclasses.replace(model.unet, in_channels=model.vae.latent_channels), RandomSource(1)
    config = ControlModel(controlnet=ControlNetConfig(unet=unet))
    return Checkpoint("random ControlNet", config, None, lambda network, _: random)  # type: ignore[arg-type]
