"""diffusers' networks as PyTorch modules with one call each, from which other runtimes are made; not timed."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import warnings
from typing import Any

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.task import Task
from kerasdiff.checkpoints.formats.diffusers_config import read_config
from kerasdiff.models.networks import TEXT_TO_IMAGE

NETWORKS = TEXT_TO_IMAGE


@dataclasses.dataclass(frozen=True)
class Exported:
    """A `torch.nn.Module`, and an example of each argument by name, with the shape that it will always have."""

    module: Any
    inputs: tuple[Any, ...]
    names: tuple[str, ...]


def static_folder(task: Task, name: str) -> pathlib.Path:
    """Where networks of the workload's shapes are, in one runtime's format."""
    workload = task.workload
    guided = "guided" if workload.guided else "unguided"
    return task.model_folder / f"{name}-{workload.height}x{workload.width}-{workload.batch_size}-{guided}"


def exported(task: Task, network: str) -> Exported:
    """One of `NETWORKS` in float32, of static shapes: both halves of guidance in one call."""
    import torch

    warnings.simplefilter("ignore")
    diffusers = importlib.import_module("diffusers")
    transformers = importlib.import_module("transformers")
    folder = checkpoint_files.write_diffusers_folder(task, "float32")
    config, workload = read_config(folder), task.workload
    height, width = (size // config.latent_factor for size in (workload.height, workload.width))
    rows = workload.batch_size * (2 if workload.guided else 1)
    length = config.text_encoder.max_length

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

    class TextEncoderModule(Wrapper):
        def forward(self, ids: Any) -> Any:
            return self.inner(ids, return_dict=False)[0]

    class UNetModule(Wrapper):
        def forward(self, latents: Any, sinusoids: Any, context: Any) -> Any:
            return self.inner(latents, sinusoids, context, return_dict=False)[0]

    class DecoderModule(Wrapper):
        def forward(self, latents: Any) -> Any:
            return self.inner.decode(latents / self.inner.config.scaling_factor, return_dict=False)[0]

    if network == "text_encoder":
        encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
        return Exported(TextEncoderModule(encoder).eval(), (torch.zeros(2, length, dtype=torch.int64),), ("ids",))
    latents = torch.randn(rows, config.unet.in_channels, height, width)
    if network == "unet":
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
        # Sinusoids of 999 are noise in half precision; diffusers computes them in float32, and so do we, outside.
        unet.get_time_embed = lambda sample, timestep: timestep
        context = torch.randn(rows, length, config.unet.context_width)
        inputs = (latents, torch.randn(rows, config.unet.widths[0]), context)
        return Exported(UNetModule(unet).eval(), inputs, ("latents", "sinusoids", "context"))
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False)
    return Exported(DecoderModule(vae).eval(), (latents[: workload.batch_size],), ("latents",))
