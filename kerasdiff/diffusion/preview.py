"""What latents look like on their way: roughly without a decoder, or as another autoencoder decodes them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.diffusion.memory_model import MemoryModel
from kerasdiff.diffusion.network import Network
from kerasdiff.diffusion.vae_stage import DecodeStage
from kerasdiff.errors import NonFiniteError
from kerasdiff.models.config import SD_V1_VAE, SDXL_VAE, TINY_VAE
from kerasdiff.models.network_configs import AnyVAEConfig, VAEConfig
from kerasdiff.runtime.oom import is_out_of_memory

if TYPE_CHECKING:
    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.runtime.batch_sizer import BatchSizer
    from kerasdiff.runtime.compiled import Compiled
    from kerasdiff.runtime.precision import Execution
    from kerasdiff.runtime.program_cache import ProgramCache

# Widths and scaling factor of an autoencoder -> red, green and blue in -1 to 1 of each channel, and an offset.
_MAPS = {
    # https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204
    (SD_V1_VAE.widths, SD_V1_VAE.scaling_factor): (
        (0.298, 0.207, 0.208),
        (0.187, 0.286, 0.173),
        (-0.158, 0.189, 0.264),
        (-0.184, -0.271, -0.473),
        (0.0, 0.0, 0.0),
    ),
    # https://huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space
    (SDXL_VAE.widths, SDXL_VAE.scaling_factor): (
        (0.471, 0.471, 0.471),
        (-0.471, -0.039, 0.078),
        (0.196, 0.118, -0.039),
        (-0.549, -0.392, -0.275),
        (0.176, 0.098, 0.02),
    ),
    # Least squares over what it makes of 96 scenes; 82 % of the variance.
    (TINY_VAE.widths, TINY_VAE.scaling_factor): (
        (0.426, 0.097, 0.088),
        (-0.606, -0.379, -0.369),
        (0.15, -0.072, 0.223),
        (-0.237, 0.214, 0.299),
        (0.293, 0.02, -0.104),
    ),
}


def preview(config: AnyVAEConfig, latents: Any) -> np.ndarray | None:
    """Latents (N, h, w, 4) as small pictures uint8 (N, h, w, 3), a linear map of each cell.

    None for an autoencoder whose map is not known.
    """
    known = _MAPS.get((config.widths, config.scaling_factor)) if isinstance(config, VAEConfig) else None
    if known is None or config.latent_channels != len(known) - 1:
        return None
    *directions, offset = np.array(known, "float32")
    pictures = np.asarray(latents) @ np.stack(directions) + offset
    return np.clip(np.round((pictures + 1) * 127.5), 0, 255).astype("uint8")


class Previewer:
    """Pictures of latents that cost nothing, for an autoencoder whose latents are known."""

    def __init__(self, config: AnyVAEConfig) -> None:
        self._config = config

    def __call__(self, latents: np.ndarray) -> np.ndarray | None:
        """Latents (N, h, w, C) as pictures uint8 (N, height, width, 3), of any size; None if there are none."""
        return preview(self._config, latents)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """Its functions that were needed so far."""
        return ()

    @property
    def nbytes(self) -> int:
        """What its weights take."""
        return 0

    def release(self) -> bool:
        """Unloads weights; whether there were any."""
        return False


class DecodingPreviewer(Previewer):
    """Pictures that the decoder of `shown` makes, in full size. No image depends on them: what fails is no picture."""

    def __init__(self, shown: Checkpoint, execution: Execution, programs: ProgramCache, sizer: BatchSizer) -> None:
        super().__init__(shown.config.vae)
        self._network = Network("decoder", shown, execution, programs)
        self._decoder = DecodeStage(self._network, execution.jit_compile, programs, shown.config.latent_factor)
        self._costs, self._sizer = MemoryModel(shown.config, execution), sizer

    def __call__(self, latents: np.ndarray) -> np.ndarray | None:
        cost = dataclasses.replace(self._costs.decode(*latents.shape[1:3]), stage="decoder of previews")
        parts = self._sizer.largest(cost).parts
        try:
            return np.stack([self._decoder(each, parts) for each in latents])
        except Exception as error:
            if isinstance(error, NonFiniteError) or is_out_of_memory(error):
                return None
            raise

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        return self._decoder.compiled

    @property
    def nbytes(self) -> int:
        return self._network.nbytes

    def release(self) -> bool:
        return self._network.release()
