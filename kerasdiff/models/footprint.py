"""What a run of a network takes of memory besides its weights, from its configuration alone."""

from kerasdiff.models.blocks import deep_features, halved, unet_blocks
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.network_configs import AnyVAEConfig, TinyVAEConfig, UNetConfig
from kerasdiff.models.upscaler_config import CompactConfig, UpscalerConfig

# What is alive at once where a network is at its widest, as multiples of (pixels x channels of the finest level);
# measured, see docs/reliability.md. In a small network what surrounds the arithmetic weighs more.
UNET_MAPS = {True: 24, False: 90}
DECODER_MAPS = 12
TINY_DECODER_MAPS = 5


def unet_bytes(config: UNetConfig, h: int, w: int, rows: int, itemsize: int, slices: int = 1) -> int:
    """What a step of the U-Net takes besides weights, for latents (rows, h, w, C); both halves of guidance count."""
    maps = UNET_MAPS[config.large] * h * w * config.widths[0] * itemsize
    # The scores, and what softmax makes of them, in float32 where halves would overflow.
    scores = max(
        2 * block.num_heads * (halved(h, block.level) * halved(w, block.level)) ** 2 * itemsize
        for block in unet_blocks(config)
    )
    return rows * (maps + scores // slices)


def controlnet_bytes(config: UNetConfig, h: int, w: int, rows: int, itemsize: int, slices: int = 1) -> int:
    """What a ControlNet of a U-Net takes besides weights: it is the half of that."""
    return unet_bytes(config, h, w, rows, itemsize, slices) // 2


def deep_feature_bytes(config: UNetConfig, h: int, w: int, rows: int, branch: int) -> int:
    """What deep features of latents (rows, h, w, C) take in float32: those that are kept, and the next ones."""
    level, channels = deep_features(config, branch)
    return 2 * rows * halved(h, level) * halved(w, level) * channels * 4


def decoder_bytes(config: AnyVAEConfig, h: int, w: int, itemsize: int) -> int:
    """What decoding one latent (h, w, C) takes besides weights; encoding takes about the same."""
    pixels = (config.factor * h) * (config.factor * w)
    if isinstance(config, TinyVAEConfig):
        return TINY_DECODER_MAPS * pixels * max(config.encoder_width, config.decoder_width) * itemsize
    return max(DECODER_MAPS * pixels * config.widths[0] * itemsize, 2 * (h * w) ** 2 * itemsize)


def upscaler_bytes(config: UpscalerConfig, height: int, width: int, itemsize: int) -> int:
    """What enlarging a picture of a size in pixels takes besides weights."""
    pixels, larger = height * width, height * width * config.scale**2
    if isinstance(config, CompactConfig):
        return 4 * pixels * config.features * itemsize + 6 * larger * 3 * 4
    maps = 4 * config.features + 12 * config.growth
    return (pixels // config.unshuffle**2 * maps + 4 * larger * config.features) * itemsize


def least_bytes(config: ModelConfig, height: int, width: int, slices: int) -> int:
    """What the U-Net takes at least for one guided image of a size in pixels, in float32."""
    factor = config.latent_factor
    return unet_bytes(config.unet, height // factor, width // factor, 2, 4, slices)
