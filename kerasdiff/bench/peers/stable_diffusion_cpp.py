"""stable-diffusion.cpp through its Python bindings: the same weights as one file, in the types that its users choose.

It draws its own noise, which a torch seed determines, and that is the noise of a benchmark. It starts from sigma times
this noise, the others from sqrt(1 + sigma^2) times: their images differ by some grey levels even in float32.
"""

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from kerasdiff.bench.checkpoint_files import new_folder, open_checkpoint
from kerasdiff.bench.ddim_loop import levels_of
from kerasdiff.bench.machine import cores
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import Clock, Session
from kerasdiff.models.config import SD_V1, SDXL, ModelConfig, ScheduleConfig
from kerasdiff.models.network_configs import VAEConfig

# Type of the weights -> what counts as its precision, and its file.
_TYPES = {
    "f32": ("float32", "model.safetensors"),
    "f16": ("float16", "model.safetensors"),
    "q8_0": ("int8", "model.gguf"),
}


def subjects(precisions: Sequence[str], gpu: bool) -> list[Subject]:
    """float32; float16 and 8 bits with a scale for every 32 weights, whichever half precision is asked for."""
    types = [*(["f32"] if "float32" in precisions else []), *(["f16", "q8_0"] if set(precisions) - {"float32"} else [])]
    return [
        Subject(f"stable_diffusion_cpp {name}", f"{__name__}:StableDiffusionCppSession", {"type": name})
        for name in types
    ]


def unsupported(config: ModelConfig, workload: Workload, gpu: bool) -> str | None:
    """Why it cannot do this work, or None."""
    if gpu:
        return "stable-diffusion.cpp is compared on processors only"
    if workload.vae:
        return "stable-diffusion.cpp is compared with the model's own autoencoder only"
    published = [(model.unet.widths, model.unet.transformer_depth) for model in (SD_V1, SDXL)]
    unet, vae = (config.unet.widths, config.unet.transformer_depth), getattr(config.vae, "widths", None)
    if unet not in published or vae != VAEConfig().widths:
        return "stable-diffusion.cpp builds published networks at full size only"
    return None


class StableDiffusionCppSession(Session):
    """A context with all networks loaded."""

    @classmethod
    def folder(cls, task: Task) -> pathlib.Path:
        return task.model_folder / f"stable_diffusion_cpp-{task.subject.options['type']}"

    @classmethod
    def prepare(cls, task: Task) -> None:
        from kerasdiff.checkpoints.export import write_single_file

        name = task.subject.options["type"]
        precision, file = _TYPES[name]
        with new_folder(cls.folder(task)) as partial:
            single = partial / "model.safetensors"
            model = open_checkpoint(task.workload)
            (partial / "schedule.json").write_text(json.dumps(dataclasses.asdict(model.config.schedule)))
            write_single_file(model, single, "float32" if precision == "float32" else "float16")
            if name == "q8_0":
                bindings = importlib.import_module("stable_diffusion_cpp")
                if not bindings.StableDiffusion(verbose=False).convert(str(single), "", str(partial / file), name):
                    raise RuntimeError(f"stable-diffusion.cpp could not convert the weights to {name}")
                single.unlink()

    def __init__(self, task: Task, clock: Clock) -> None:
        super().__init__(task, clock)
        bindings = importlib.import_module("stable_diffusion_cpp")
        clock.done("import")
        name = task.subject.options["type"]
        self.precision, file = _TYPES[name]
        self._model = bindings.StableDiffusion(
            model_path=str(self.folder(task) / file),
            wtype=name,
            n_threads=cores(),
            rng_type="cpu",  # torch's
            vae_decode_only=True,
            verbose=False,
        )
        self._schedule = ScheduleConfig(**json.loads((self.folder(task) / "schedule.json").read_text()))
        clock.done("load")

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        workload = self.workload
        images = self._model.generate_image(
            workload.prompt,
            width=workload.width,
            height=workload.height,
            cfg_scale=workload.guidance_scale,
            # Euler's method in the noise level is DDIM.
            sample_method="euler",
            sample_steps=num_steps,
            sigmas=",".join(map(repr, levels_of(self._schedule, num_steps, workload.spacing).sigmas.tolist())),
            seed=0,
            batch_count=workload.batch_size,
        )
        return np.stack([np.asarray(image.convert("RGB")) for image in images])
