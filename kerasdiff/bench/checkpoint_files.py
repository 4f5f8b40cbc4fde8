"""The weights that every subject reads: one model, written in each layout and precision that is asked for."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

from kerasdiff.bench.case import Job, Settings


@contextlib.contextmanager
def made_whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A draft to write to, which becomes `folder` at the end: a folder that is there is complete."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def diffusers_folder(job: Job, precision: str) -> pathlib.Path:
    """Where the folder of diffusers in one precision is, or will be."""
    return job.model_folder / f"diffusers-{precision}"


def write_diffusers_folder(job: Job, precision: str) -> pathlib.Path:
    """Writes it if it is not there."""
    folder = diffusers_folder(job, precision)
    if not folder.exists():
        from kerasdiff.checkpoints.export import write_diffusers
        from kerasdiff.checkpoints.resolve import open_model

        with made_whole(folder) as draft:
            write_diffusers(open_model(job.settings.model, job.settings.weights), draft, precision)
    return folder


def keras_cv_folder(job: Job) -> pathlib.Path:
    """Where KerasCV's files are, or will be: always float32, as its networks keep their weights."""
    return job.model_folder / "keras_cv"


def write_keras_cv_folder(job: Job) -> pathlib.Path:
    """Writes them if they are not there."""
    folder = keras_cv_folder(job)
    if not folder.exists():
        from kerasdiff.checkpoints.export import write_keras_cv
        from kerasdiff.checkpoints.resolve import open_model

        with made_whole(folder) as draft:
            write_keras_cv(open_model(job.settings.model, job.settings.weights), draft)
    return folder


def latents_of(settings: Settings) -> np.ndarray:
    """The noise that every run starts from: unit variance, float32 (batch_size, h, w, C)."""
    from kerasdiff.checkpoints.resolve import open_model
    from kerasdiff.samplers.noise import PhiloxNoise

    config = open_model(settings.model, "random").config
    factor = config.latent_factor
    shape = (settings.height // factor, settings.width // factor, config.vae.latent_channels)
    return PhiloxNoise(tuple(range(settings.batch_size)), shape).initial()
