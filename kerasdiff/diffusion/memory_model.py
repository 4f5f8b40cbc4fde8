"""What each stage of a model takes of memory, and how many images at once are worth it."""

from __future__ import annotations

from collections.abc import Callable

from kerasdiff.models.blocks import unet_blocks
from kerasdiff.models.config import ModelConfig, UNetConfig, VAEConfig
from kerasdiff.request import Request
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import MOST_PARTS, MicroBatch, StageCost
from kerasdiff.runtime.precision import Execution

# (device, large model) -> images beyond which time for each no longer falls (benchmarks/results/batch_sizes_*.json).
MOST = {("CPU", True): 1, ("CPU", False): 32, ("GPU", True): 16, ("GPU", False): 128}
# What is alive at once where a network is at its widest, as multiples of (pixels x channels of the finest level);
# measured, see docs/reliability.md. In a small network what surrounds the arithmetic weighs more.
UNET_MAPS = {True: 24, False: 90}
DECODER_MAPS = 12
# A text of 77 tokens, or a picture of 224 x 224, through a network of CLIP's size.
_CLIP_BYTES = 10**8
# A tile of the decoder is not smaller than this many latents along a side.
_LEAST_TILE = 8


class MemoryModel:
    """The stages of a model as `kerasdiff.runtime.batch_sizer` sees them.

    Args:
        config: the model's.
        execution: device and precision.
    """

    def __init__(self, config: ModelConfig, execution: Execution) -> None:
        self._config = config
        self._itemsize = 4 if execution.precision == "float32" else 2
        self._most = MOST[execution.device, config.unet.large]
        self.context_width = config.unet.context_width

    def text(self) -> StageCost:
        """A text."""
        return StageCost("text encoder", 0, 0, lambda portion: _CLIP_BYTES, network="text_encoder")

    def safety(self) -> StageCost:
        """A look at an image."""
        return StageCost("safety checker", 0, 0, lambda portion: _CLIP_BYTES, network="safety_checker")

    def denoise(self, request: Request, tokens: int, first: Callable[[MicroBatch], int]) -> StageCost:
        """The steps of a request.

        Args:
            request: whose.
            tokens: of its texts.
            first: bytes that a portion's program takes when it runs for the first time; 0 afterwards.
        """
        factor, rows = self._config.latent_factor, 2 if request.guided else 1
        h, w = request.height // factor, request.width // factor

        def need(portion: MicroBatch) -> int:
            taken = unet_bytes(self._config.unet, h, w, rows * portion.images, self._itemsize, portion.parts)
            texts = rows * portion.images * tokens * self._config.unet.context_width * 4
            return memory.HEADROOM + taken + texts + first(portion)

        kind = "U-Net" if request.guided else "U-Net without guidance"
        return StageCost(kind, request.height, request.width, need, self._most, MOST_PARTS, "unet")

    def decode(self, h: int, w: int) -> StageCost:
        """Latents (h, w, C) to an image."""
        return self._autoencoder("decoder", h, w)

    def encode(self, height: int, width: int) -> StageCost:
        """A picture to latents."""
        factor = self._config.latent_factor
        return self._autoencoder("encoder", height // factor, width // factor)

    def _autoencoder(self, stage: str, h: int, w: int) -> StageCost:
        factor, most_parts = self._config.latent_factor, 1
        while min(h, w) // (2 * most_parts) >= _LEAST_TILE and most_parts < MOST_PARTS:
            most_parts *= 2

        def need(portion: MicroBatch) -> int:
            # Tiles overlap by a quarter of their side on both.
            side = 1 if portion.parts == 1 else 1.5 / portion.parts
            return memory.HEADROOM + decoder_bytes(self._config.vae, int(side * h), int(side * w), self._itemsize)

        return StageCost(stage, factor * h, factor * w, need, 1, most_parts, stage)


def unet_bytes(config: UNetConfig, h: int, w: int, rows: int, itemsize: int, slices: int = 1) -> int:
    """What a step of the U-Net takes besides weights, for latents (rows, h, w, C); both halves of guidance count."""
    maps = UNET_MAPS[config.large] * h * w * config.widths[0] * itemsize
    # The scores, and what softmax makes of them, in float32 where halves would overflow.
    scores = max(
        2 * block.num_heads * ((h >> block.level) * (w >> block.level)) ** 2 * itemsize for block in unet_blocks(config)
    )
    return rows * (maps + scores // slices)


def decoder_bytes(config: VAEConfig, h: int, w: int, itemsize: int) -> int:
    """What decoding one latent (h, w, C) takes besides weights; encoding takes about the same."""
    factor = 2 ** (len(config.widths) - 1)
    maps = DECODER_MAPS * (factor * h) * (factor * w) * config.widths[0] * itemsize
    return max(maps, 2 * (h * w) ** 2 * itemsize)
