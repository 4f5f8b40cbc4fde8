"""Torch modules of diffusers, one call each, that other runtimes are made from; not timed."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from typing import Any

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.case import Job
from kerasdiff.checkpoints.formats.diffusers_config import read_config
from kerasdiff.models.networks import TEXT_TO_IMAGE
from kerasdiff.models.tokenizer import Tokenizer, pad_ids

NETWORKS = TEXT_TO_IMAGE


@dataclasses.dataclass(frozen=True)
class Exported:
    """A module with everything that exporting it takes.

    Attributes:
        module: a `torch.nn.Module`.
        inputs: an example of each argument, with the shape that it will always have.
        names: of the arguments.
    """

    module: Any
    inputs: tuple[Any, ...]
    names: tuple[str, ...]


def exported(job: Job, network: str) -> Exported:
    """One of `NETWORKS` in float32, of static shapes: both halves of guidance in one call."""
    import torch

    warnings.simplefilter("ignore")
    diffusers = importlib.import_module("diffusers")
    transformers = importlib.import_module("transformers")
    folder = checkpoint_files.write_diffusers_folder(job, "float32")
    config, settings = read_config(folder), job.settings
    height, width = (size // config.latent_factor for size in (settings.height, settings.width))
    rows = settings.batch_size * (2 if settings.guided else 1)
    length = config.text_encoder.max_length

    class TextEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")

        def forward(self, ids: Any) -> Any:
            return self.inner(ids, return_dict=False)[0]

    class UNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
            # Sinusoids of 999 are noise in half precision; diffusers computes them in float32, and so do we, outside.
            self.inner.get_time_embed = lambda sample, timestep: timestep

        def forward(self, latents: Any, sinusoids: Any, context: Any) -> Any:
            return self.inner(latents, sinusoids, context, return_dict=False)[0]

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = diffusers.AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False)

        def forward(self, latents: Any) -> Any:
            return self.inner.decode(latents / self.inner.config.scaling_factor, return_dict=False)[0]

    latents = torch.randn(rows, config.unet.in_channels, height, width)
    if network == "text_encoder":
        return Exported(TextEncoder().eval(), (torch.zeros(2, length, dtype=torch.int64),), ("ids",))
    if network == "unet":
        context = torch.randn(rows, length, config.unet.context_width)
        inputs = (latents, torch.randn(rows, config.unet.widths[0]), context)
        return Exported(UNet().eval(), inputs, ("latents", "sinusoids", "context"))
    return Exported(Decoder().eval(), (latents[: settings.batch_size],), ("latents",))


def token_ids(job: Job) -> Any:
    """Ids of the empty text and of the prompt, int64 (2, length), without importing what diffusers does for them."""
    folder = checkpoint_files.diffusers_folder(job, "float32")
    tokenizer = Tokenizer.load_clip(folder / "tokenizer")
    length = read_config(folder).text_encoder.max_length
    import numpy as np

    texts = ("", job.settings.prompt)
    return np.stack([pad_ids(tokenizer.encode(text), length, tokenizer.pad_id) for text in texts]).astype("int64")
