"""diffusers' networks in another runtime: exported by PyTorch, and run as three bare networks in NCHW."""

import importlib
import json
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.ddim_loop import ddim, levels_of
from kerasdiff.bench.task import Task
from kerasdiff.bench.worker import Clock, Session
from kerasdiff.checkpoints.formats import tokenizer_folder
from kerasdiff.checkpoints.formats.diffusers_config import read_config
from kerasdiff.models.tokenizer import pad_ids

# The networks of Stable Diffusion 1.x and 2.x, in the order in which an image goes through them.
TEXT_TO_IMAGE = ("text_encoder", "unet", "decoder")


class NetworksSession(Session):
    """Text to images through the `networks` of `TEXT_TO_IMAGE`, which a subclass sets.

    They map ids (2, length) to context (2, length, width); latents (N, C, h, w), sinusoids (N, width) of the timestep
    and context to the prediction; and latents to images around [-1, 1].
    """

    networks: list[Callable[..., Any]]

    def __init__(self, task: Task, clock: Clock) -> None:
        super().__init__(task, clock)
        folder = checkpoint_files.diffusers_folder(task, "float32")
        config = read_config(folder)
        self._schedule, self._width = config.schedule, config.unet.widths[0]
        # Ours, as importing what diffusers tokenizes with takes seconds.
        tokenizer, length = tokenizer_folder.read(folder / "tokenizer"), config.main_text_encoder.max_length
        texts = ("", task.workload.prompt)
        ids = [pad_ids(tokenizer.encode(text), length, tokenizer.pad_id) for text in texts]
        self._ids = np.stack(ids).astype("int64")

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        workload = self.workload
        text_encoder, unet, decoder = self.networks
        texts = text_encoder(self._ids)
        context = np.repeat(texts if workload.guided else texts[1:], workload.batch_size, axis=0)
        final = ddim(
            lambda x, timestep: unet(x, np.repeat(sinusoids(timestep, self._width), len(x), axis=0), context),
            np.ascontiguousarray(latents.transpose(0, 3, 1, 2)),
            levels_of(self._schedule, num_steps),
            workload.guidance_scale,
        )
        images = decoder(final).transpose(0, 2, 3, 1).astype("float32")
        return np.round(np.clip((images + 1) * 127.5, 0, 255)).astype("uint8")


def sinusoids(timestep: float, width: int) -> np.ndarray:
    """A timestep as the U-Net reads it, cosines first: float32 (1, width)."""
    half = width // 2
    angles = timestep * np.exp(-np.log(10000) * np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles)])[None].astype("float32")


def static_folder(task: Task, name: str) -> pathlib.Path:
    """Where networks of the workload's shapes are, in one runtime's format."""
    workload = task.workload
    guided = "guided" if workload.guided else "unguided"
    return task.model_folder / f"{name}-{workload.height}x{workload.width}-{workload.batch_size}-{guided}"


def exported(task: Task, network: str) -> tuple[Any, dict[str, Any]]:
    """A `torch.nn.Module` in float32, and an example of each argument by name; not timed.

    Shapes are static: both halves of guidance are in one call.
    """
    import torch

    warnings.simplefilter("ignore")
    diffusers = importlib.import_module("diffusers")
    transformers = importlib.import_module("transformers")
    folder = checkpoint_files.write_diffusers_folder(task, "float32")
    config, workload = read_config(folder), task.workload
    height, width = (size // config.latent_factor for size in (workload.height, workload.width))
    rows = workload.batch_size * (2 if workload.guided else 1)
    length = config.main_text_encoder.max_length

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
        return TextEncoderModule(encoder).eval(), {"ids": torch.zeros(2, length, dtype=torch.int64)}
    latents = torch.randn(rows, config.unet.in_channels, height, width)
    if network == "unet":
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
        # Sinusoids of 999 are noise in half precision; diffusers computes them in float32, and so do we, outside.
        unet.get_time_embed = lambda sample, timestep: timestep
        context = torch.randn(rows, length, config.unet.context_width)
        timesteps = torch.randn(rows, config.unet.widths[0])
        return UNetModule(unet).eval(), {"latents": latents, "sinusoids": timesteps, "context": context}
    # AutoencoderKL, or AutoencoderTiny.
    vae_class = getattr(diffusers, json.loads((folder / "vae" / "config.json").read_text())["_class_name"])
    vae = vae_class.from_pretrained(folder / "vae", low_cpu_mem_usage=False)
    return DecoderModule(vae).eval(), {"latents": latents[: workload.batch_size]}
