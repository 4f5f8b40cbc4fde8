"""The safety check: images to whether they are near concepts that are not to be shown, one at a time."""

import operator

import numpy as np
from PIL import Image

from kerasdiff.diffusion.stage import Stage
from kerasdiff.errors import ModelError, RequestError
from kerasdiff.models.network_configs import CLIPVisionConfig, SafetyCheckerConfig
from kerasdiff.runtime.compiled import Traceable
from kerasdiff.runtime.program_cache import ProgramCache


class SafetyStage(Stage):
    """Images uint8 (N, height, width, 3) to bool (N,): whether the model's safety checker flags them.

    The network takes what `prepare` gives, (1, size, size, 3), to scores and flags. ModelError if scores are not
    finite, which no threshold can judge.
    """

    name = "safety checker"

    def __init__(
        self, network: Traceable, jit_compile: bool, programs: ProgramCache | None, config: SafetyCheckerConfig
    ) -> None:
        super().__init__(network, jit_compile, programs)
        self._config = config

    def load(self) -> None:
        """Loads the checker: what is wrong with its file (ModelError) is said before anything is generated."""
        _ = self._network.values

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
            raise RequestError(f"images must be uint8 (N, height, width, 3), not {images.dtype} {images.shape}")
        return np.array([self._flag(image) for image in images], bool)

    def _flag(self, image: np.ndarray) -> bool:
        scores, flags = self.function("check", operator.call)(prepare(image, self._config)[None])
        if not np.isfinite(np.asarray(scores)).all():
            raise ModelError(
                "the safety checker gives numbers that are not finite; use precision='float32', or its file is damaged"
            )
        return bool(np.asarray(flags)[0])


def prepare(image: np.ndarray, config: CLIPVisionConfig) -> np.ndarray:
    """An image uint8 (height, width, 3) as CLIP sees it, float32 (image_size, image_size, 3).

    Resized, cut to its middle (with black around what is too small) and normalised as transformers'
    CLIPImageProcessor does it with Pillow.
    """
    height, width = _resized(image.shape[0], image.shape[1], config.resize)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - config.image_size) // 2, (width - config.image_size) // 2
    picture = picture.crop((left, top, left + config.image_size, top + config.image_size))
    levels = (np.asarray(picture) * (1 / 255)).astype("float32")
    mean, std = (np.array(values, "float32") for values in (config.mean, config.std))
    return (levels - mean) / std


def _resized(height: int, width: int, size: int | tuple[int, ...]) -> tuple[int, int]:
    """Height and width after resizing; the longer side is rounded down, as there."""
    if not isinstance(size, int):
        return size[0], size[1]
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)
