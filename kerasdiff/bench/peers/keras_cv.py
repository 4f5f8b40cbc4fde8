"""`keras_cv.models.StableDiffusion` as its guide runs it: a global policy, `jit_compile`, `generate_image`."""

import importlib
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from kerasdiff.bench.checkpoint_files import new_folder, open_checkpoint
from kerasdiff.bench.ours import TensorFlowSession
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import SD_V1, SD_V2, ModelConfig
from kerasdiff.models.network_configs import VAEConfig

MULTIPLE = 128


def subjects(precisions: Sequence[str], gpu: bool) -> list[Subject]:
    """The four configurations of KerasCV's guide."""
    half = "float16" if gpu else "bfloat16"
    found = []
    for jit_compile, precision in itertools.product((False, True), precisions):
        mixed = precision != "float32"
        name = "_".join(["xla"] * jit_compile + ["mixed"] * mixed) or "standard"
        options = {"policy": f"mixed_{half}" if mixed else "float32", "jit_compile": jit_compile}
        found.append(Subject(f"keras_cv {name}", f"{__name__}:KerasCVSession", options))
    return found


def unsupported(config: ModelConfig, workload: Workload, gpu: bool) -> str | None:
    """Why it cannot do this work, or None."""
    if workload.vae:
        return "KerasCV has no other autoencoder than the model's own"
    if config.unet.widths != SD_V1.unet.widths or getattr(config.vae, "widths", None) != VAEConfig().widths:
        return "KerasCV builds Stable Diffusion 1.x and 2.x at full size only"
    if config.main_text_encoder.width not in (SD_V1.main_text_encoder.width, SD_V2.main_text_encoder.width):
        return "KerasCV builds Stable Diffusion 1.x and 2.x only"
    if config.schedule.prediction_type != "epsilon":
        return f"KerasCV has no prediction type {config.schedule.prediction_type!r}"
    if workload.height % MULTIPLE or workload.width % MULTIPLE:
        return f"KerasCV draws multiples of {MULTIPLE} pixels only"
    return None


class KerasCVSession(TensorFlowSession):
    """KerasCV's class with its networks built and loaded."""

    @classmethod
    def folder(cls, task: Task) -> pathlib.Path:
        """Always float32, as its networks keep their weights."""
        return task.model_folder / "keras_cv"

    @classmethod
    def prepare(cls, task: Task) -> None:
        from kerasdiff.checkpoints.export import write_keras_cv

        with new_folder(cls.folder(task)) as partial:
            write_keras_cv(open_checkpoint(task.workload), partial)

    def __init__(self, task: Task, clock: Clock) -> None:
        super().__init__(task, clock)
        import keras

        # Absolute: this file has the package's name.
        classes = importlib.import_module("keras_cv.models")
        keras.mixed_precision.set_global_policy(task.subject.options["policy"])
        clock.done("import")

        from kerasdiff.models.tokenizer import CLIP_MERGES

        source = self.folder(task)
        # Its weights and vocabulary are downloads; here they come from the prepared folder.
        keras.utils.get_file = lambda fname=None, origin=None, **_: (
            str(CLIP_MERGES) if "bpe" in origin else str(source / pathlib.PurePosixPath(origin).name)
        )
        workload, jit_compile = task.workload, task.subject.options["jit_compile"]
        second = (source / "diffusion_model_v2_1.h5").exists()
        make = classes.StableDiffusionV2 if second else classes.StableDiffusion
        self._model = make(workload.height, workload.width, jit_compile=jit_compile)
        for network in (self._model.text_encoder, self._model.diffusion_model, self._model.decoder):
            if not jit_compile:
                # A network that was not compiled resolves to XLA on a GPU.
                network.compile(jit_compile=False)
        self.precision = keras.config.dtype_policy().name.removeprefix("mixed_")
        clock.done("build")

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        workload = self.workload
        return self._model.generate_image(
            self._model.encode_text(workload.prompt),
            batch_size=workload.batch_size,
            num_steps=num_steps,
            unconditional_guidance_scale=workload.guidance_scale,
            diffusion_noise=latents,
        )
