"""diffusers' networks in another runtime: exported by PyTorch, and run as bare networks in NCHW."""

import importlib
import importlib.util
import json
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.ddim_loop import ddim, levels_of
from kerasdiff.bench.task import Task, Workload
from kerasdiff.bench.worker import Clock, Session
from kerasdiff.checkpoints.formats import tokenizer_folder
from kerasdiff.checkpoints.formats.diffusers_config import read_config
from kerasdiff.checkpoints.formats.diffusers_folder import tokenizer_of
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.networks import text_to_image
from kerasdiff.models.tokenizer import pad_ids


class NetworksSession(Session):
    """Text to images through `networks`, which a subclass sets: name -> a function from arrays to a list of arrays.

    Text encoders map ids (N, length) to context (N, length, width) and, if the U-Net reads one, a pooled embedding;
    the U-Net maps latents (N, C, h, w), sinusoids (N, width) of the timestep, context and, if it reads them, a pooled
    embedding and the sinusoids of sizes to the prediction; the decoder maps latents to images around [-1, 1].
    """

    networks: dict[str, Callable[..., Any]]

    @classmethod
    def files(cls, task: Task) -> str:
        """The precision of the model's files that are exported."""
        return "float32"

    @classmethod
    def networks_of(cls, task: Task) -> tuple[str, ...]:
        """The networks that every image needs, in the order in which it goes through them."""
        return text_to_image(read_config(checkpoint_files.write_diffusers_folder(task, cls.files(task))))

    def __init__(self, task: Task, clock: Clock) -> None:
        super().__init__(task, clock)
        folder = checkpoint_files.diffusers_folder(task, self.files(task))
        self._config = read_config(folder)
        self._ids = {}
        for network, encoder in self._config.text_encoders.items():
            # Ours, as importing what diffusers tokenizes with takes seconds.
            tokenizer = tokenizer_folder.read(folder / tokenizer_of(network))
            texts = ("", task.workload.prompt)[-texts_of(self._config, task.workload) :]
            ids = [pad_ids(tokenizer.encode(text), encoder.max_length, tokenizer.pad_id) for text in texts]
            self._ids[network] = np.stack(ids).astype("int64")

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        workload, unet, config = self.workload, self.networks["unet"], self._config
        found = [self.networks[network](ids) for network, ids in self._ids.items()]
        pooled = [self._of_each_row(one) for _, *more in found for one in more]
        context = self._of_each_row(np.concatenate([first for first, *_ in found], axis=-1))
        added = [*pooled, sizes(config, workload, len(context))] if pooled else []

        def predicted(x: np.ndarray, timestep: float) -> np.ndarray:
            time = np.repeat(sinusoids(timestep, config.unet.widths[0]), len(x), axis=0)
            return unet(x, time, context, *added)[0]

        final = ddim(
            predicted,
            np.ascontiguousarray(latents.transpose(0, 3, 1, 2)),
            levels_of(config.schedule, num_steps, workload.spacing),
            workload.guidance_scale,
        )
        images = self.networks["decoder"](final)[0].transpose(0, 2, 3, 1).astype("float32")
        return np.round(np.clip((images + 1) * 127.5, 0, 255)).astype("uint8")

    def _of_each_row(self, of_texts: np.ndarray) -> np.ndarray:
        """What the U-Net's rows read: a negative prompt that no text stands for is zeros."""
        if self.workload.guided and len(of_texts) == 1:
            of_texts = np.concatenate([np.zeros_like(of_texts), of_texts])
        return np.repeat(of_texts, self.workload.batch_size, axis=0)


def texts_of(config: ModelConfig, workload: Workload) -> int:
    """How many texts are encoded."""
    return 2 if workload.guided and not config.force_zeros_for_empty_prompt else 1


def sinusoids(timestep: float, width: int) -> np.ndarray:
    """A timestep as the U-Net reads it, cosines first: float32 (1, width)."""
    half = width // 2
    angles = timestep * np.exp(-np.log(10000) * np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles)])[None].astype("float32")


def sizes(config: ModelConfig, workload: Workload, rows: int) -> np.ndarray:
    """The sinusoids of a picture's size, its crop (none) and again its size."""
    numbers = (*(workload.height, workload.width), 0, 0, *(workload.height, workload.width))
    row = np.concatenate([sinusoids(number, config.unet.time_id_width) for number in numbers], axis=1)
    return np.repeat(row, rows, axis=0)


def static_folder(task: Task, name: str) -> pathlib.Path:
    """Where networks of the workload's shapes are, in one runtime's format."""
    workload = task.workload
    guided = "guided" if workload.guided else "unguided"
    return task.model_folder / f"{name}-{workload.height}x{workload.width}-{workload.batch_size}-{guided}"


def exported(task: Task, network: str, files: str = "float32") -> tuple[Any, dict[str, Any]]:
    """A `torch.nn.Module`, and an example of each argument by name; not timed.

    Weights have the type of the `files`, or float16 where that is bfloat16. Shapes are static: both halves of guidance
    are in one call.
    """
    import torch

    warnings.simplefilter("ignore")
    diffusers, transformers = (importlib.import_module(name) for name in ("diffusers", "transformers"))
    folder = checkpoint_files.write_diffusers_folder(task, files)
    config, workload = read_config(folder), task.workload
    dtype = {"torch_dtype": torch.float32 if files == "float32" else torch.float16}
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

    class HiddenTextModule(Wrapper):
        def forward(self, ids: Any) -> Any:
            found = self.inner(ids, output_hidden_states=True)
            context = found.hidden_states[-2]
            return (context, found.text_embeds) if hasattr(found, "text_embeds") else context

    class UNetModule(Wrapper):
        def forward(self, latents: Any, sinusoids: Any, context: Any) -> Any:
            return self.inner(latents, sinusoids, context, return_dict=False)[0]

    class SizedUNetModule(Wrapper):
        def forward(self, latents: Any, sinusoids: Any, context: Any, pooled: Any, sizes: Any) -> Any:
            added = {"text_embeds": pooled, "time_ids": sizes}
            return self.inner(latents, sinusoids, context, added_cond_kwargs=added, return_dict=False)[0]

    class DecoderModule(Wrapper):
        def forward(self, latents: Any) -> Any:
            return self.inner.decode(latents / self.inner.config.scaling_factor, return_dict=False)[0]

    if network in config.text_encoders:
        encoder = config.text_encoders[network]
        made = HiddenTextModule if encoder.skipped_layers else TextEncoderModule
        name = "CLIPTextModel" if encoder.projection is None else "CLIPTextModelWithProjection"
        inner = getattr(transformers, name).from_pretrained(folder / network, **dtype)
        return made(inner).eval(), {"ids": torch.zeros(texts_of(config, workload), length, dtype=torch.int64)}
    low = importlib.util.find_spec("accelerate") is not None
    latents = torch.randn(rows, config.unet.in_channels, height, width)
    if network == "unet":
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=low, **dtype)
        # Sinusoids of 999 are noise in half precision; diffusers computes them in float32, and so do we, outside.
        unet.get_time_embed = lambda sample, timestep: timestep
        inputs = {
            "latents": latents,
            "sinusoids": torch.randn(rows, config.unet.widths[0]),
            "context": torch.randn(rows, length, config.unet.context_width),
        }
        if config.unet.pooled_width is None:
            return UNetModule(unet).eval(), inputs
        unet.add_time_proj = torch.nn.Identity()
        inputs["pooled"] = torch.randn(rows, config.unet.pooled_width)
        inputs["sizes"] = torch.randn(rows, config.unet.num_time_ids * config.unet.time_id_width)
        return SizedUNetModule(unet).eval(), inputs
    # AutoencoderKL, or AutoencoderTiny.
    vae_class = getattr(diffusers, json.loads((folder / "vae" / "config.json").read_text())["_class_name"])
    vae = vae_class.from_pretrained(folder / "vae", low_cpu_mem_usage=low, **dtype)
    return DecoderModule(vae).eval(), {"latents": latents[: workload.batch_size]}
