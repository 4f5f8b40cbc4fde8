"""`keras_cv.models.StableDiffusion` as its guide runs it: a global policy, `jit_compile`, `generate_image`."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.case import Job, Row
from kerasdiff.bench.ours import tensorflow_memory_gb
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import SD_V1, SD_V2, ModelConfig

MULTIPLE = 128


def rows(precisions: list[str], gpu: bool) -> list[Row]:
    """The four configurations of KerasCV's guide."""
    half = "float16" if gpu else "bfloat16"
    found = []
    for jit_compile in (False, True):
        for precision in precisions:
            name = {(False, False): "standard", (False, True): "mixed", (True, False): "xla"}.get(
                (jit_compile, precision != "float32"), "xla_mixed"
            )
            policy = "float32" if precision == "float32" else f"mixed_{half}"
            found.append(Row(f"keras_cv {name}", __name__, {"policy": policy, "jit_compile": jit_compile}))
    return found


def cannot(config: ModelConfig, job: Job) -> str | None:
    """Why it cannot do this work, or None."""
    if (config.unet.widths, config.vae.widths) != (SD_V1.unet.widths, SD_V1.vae.widths):
        return "KerasCV builds Stable Diffusion 1.x and 2.x at full size only"
    if config.text_encoder.width not in (SD_V1.text_encoder.width, SD_V2.text_encoder.width):
        return "KerasCV builds Stable Diffusion 1.x and 2.x only"
    if config.schedule.prediction_type != "epsilon":
        return f"KerasCV has no prediction type {config.schedule.prediction_type!r}"
    if job.settings.height % MULTIPLE or job.settings.width % MULTIPLE:
        return f"KerasCV draws multiples of {MULTIPLE} pixels only"
    return None


def folder(job: Job) -> pathlib.Path:
    return checkpoint_files.keras_cv_folder(job)


def prepare(job: Job) -> None:
    checkpoint_files.write_keras_cv_folder(job)


class KerasCVSession:
    """KerasCV's class with its networks built and loaded."""

    def __init__(self, job: Job, folder: pathlib.Path, classes: Any) -> None:
        import keras

        from kerasdiff.models.tokenizer import CLIP_MERGES

        # Its weights and vocabulary are downloads; here they come from the prepared folder.
        keras.utils.get_file = lambda fname=None, origin=None, **_: (
            str(CLIP_MERGES) if "bpe" in origin else str(folder / pathlib.PurePosixPath(origin).name)
        )
        settings, jit_compile = job.settings, job.options["jit_compile"]
        second = (folder / "diffusion_model_v2_1.h5").exists()
        make = classes.StableDiffusionV2 if second else classes.StableDiffusion
        self._model = make(settings.height, settings.width, jit_compile=jit_compile)
        for network in (self._model.text_encoder, self._model.diffusion_model, self._model.decoder):
            if not jit_compile:
                # A network that was not compiled resolves to XLA on a GPU.
                network.compile(jit_compile=False)
        self._settings = settings
        self.precision = keras.config.dtype_policy().name.removeprefix("mixed_")
        self.times: Mapping[str, float] = {}

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        settings = self._settings
        return self._model.generate_image(
            self._model.encode_text(settings.prompt),
            batch_size=settings.batch_size,
            num_steps=num_steps,
            unconditional_guidance_scale=settings.guidance_scale,
            diffusion_noise=latents,
        )

    @property
    def device_memory_gb(self) -> float | None:
        return tensorflow_memory_gb()


def start(job: Job, clock: Clock) -> KerasCVSession:
    import keras

    # Absolute: this file has the package's name.
    classes = importlib.import_module("keras_cv.models")
    keras.mixed_precision.set_global_policy(job.options["policy"])
    clock.done("import")
    session = KerasCVSession(job, checkpoint_files.keras_cv_folder(job), classes)
    clock.done("build")
    return session
