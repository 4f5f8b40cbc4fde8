"""Makes the graphs for OpenVINO that ship with the package: `python -m kerasdiff.training.graphs`.

They are of the embedded models, and of Stable Diffusion 1.x, 2.x and XL in their usual sizes, as diffusers' folders
have them. With them the first process after an installation needs neither TensorFlow nor Keras. They are used as long
as the files that they were traced from stay the same; `tests/runtime/test_openvino.py` says when they must be made
anew.
"""

import dataclasses
import os
import pathlib
import shutil
import sys
import tempfile
import zlib
from typing import Literal

from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.formats.random_weights import RandomSource
from kerasdiff.diffusion.denoise_step import StepInputs
from kerasdiff.diffusion.pipeline import Pipeline
from kerasdiff.models.config import SD_V1, SD_V1_VAE, SD_V2, SDXL, ModelConfig
from kerasdiff.models.network_configs import TinyVAEConfig
from kerasdiff.models.tokenizer import Tokenizer
from kerasdiff.runtime import program_cache

FOLDER = pathlib.Path(__file__).parents[1] / "graphs"
BACKEND = "openvino"
# How many images of the embedded model at once.
BATCH_SIZES = (1, 2, 4, 16)
PRECISIONS = ("bfloat16", "float32")
# Where models of few steps of 1.x and 2.x draw, without guidance and with a small autoencoder.
FEW_STEPS_SIDE = 512


def _original(config: ModelConfig, activation: Literal["quick_gelu", "gelu"]) -> ModelConfig:
    """The configuration with what the original does otherwise than KerasCV."""
    text = dataclasses.replace(
        config.main_text_encoder, activation=activation, mlp_width=4 * config.main_text_encoder.width
    )
    unet = dataclasses.replace(config.unet, gelu="erf", transformer_epsilon=1e-6)
    return dataclasses.replace(
        config, text_encoder=text, unet=unet, vae=dataclasses.replace(SD_V1_VAE, norm_epsilon=1e-6)
    )


# Configuration, sides of square images, and which of them without guidance, too.
FULL_SIZE = (
    (_original(SD_V1, "quick_gelu"), (512, 256), FEW_STEPS_SIDE),
    (_original(SD_V2, "gelu"), (768, 512), FEW_STEPS_SIDE),
    (SDXL, (1024,), 1024),
)


def make(folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Traces and writes them; what was there before goes."""
    from kerasdiff.generator import Generator

    target = folder / BACKEND
    shutil.rmtree(target, ignore_errors=True)
    generator = Generator("tiny", backend=BACKEND)
    for size in BATCH_SIZES:
        generator.warm_up(size, guidance="both" if size == 1 else True, image=size == 1)
    Generator("tiny", backend=BACKEND, vae="taesd").warm_up()
    Generator("tiny-xl", backend=BACKEND).warm_up()
    for config, sides, unguided in FULL_SIZE:
        for precision in PRECISIONS:
            _trace_full_size(config, sides, unguided, precision)
    for precision in PRECISIONS:
        small = dataclasses.replace(FULL_SIZE[0][0], vae=TinyVAEConfig())
        pipeline = _pipeline(small, precision)
        pipeline.decoder.expected(_latents(small, FEW_STEPS_SIDE)).keep()
    target.mkdir(parents=True)
    for path in (pathlib.Path(os.environ["KERASDIFF_CACHE"]) / "programs").glob("*/*"):
        (target / path.name).write_bytes(zlib.compress(program_cache.payload_of(path), 9))
    (target / program_cache.SOURCES).write_text(program_cache.shipped_digest(BACKEND) + "\n")
    return target


def _trace_full_size(config: ModelConfig, sides: tuple[int, ...], unguided: int, precision: str) -> None:
    """One image at a time, guided, and without guidance where distilled models draw."""
    pipeline, unet = _pipeline(config, precision), config.unet
    for stage in pipeline.conditioner.stages.values():
        stage.expected().keep()
    pooled = None if unet.pooled_width is None else (unet.pooled_width, unet.num_time_ids)
    for side in sides:
        shape = _latents(config, side)
        for guided in (True, False) if side == unguided else (True,):
            sizes = pipeline.conditioner.main.length, unet.context_width
            shapes = StepInputs.shapes((1, *shape), *sizes, guided=guided, pooled=pooled)
            pipeline.denoise.expected(shapes).keep()
        pipeline.decoder.expected(shape).keep()


def _pipeline(config: ModelConfig, precision: str) -> Pipeline:
    from kerasdiff.generator import Generator

    random = RandomSource()
    checkpoint = Checkpoint("full size", config, Tokenizer.clip(), lambda network, _: random)
    return Generator(checkpoint, backend=BACKEND, precision=precision)._pipeline


def _latents(config: ModelConfig, side: int) -> tuple[int, int, int]:
    return side // config.latent_factor, side // config.latent_factor, config.vae.latent_channels


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["KERASDIFF_CACHE"] = cache
        sys.stdout.write(f"{make()}\n")
