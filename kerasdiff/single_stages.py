"""The stages of a model on their own: text to embeddings, noise to latents, latents to images, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from kerasdiff import validation
from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.overrides import Names, Overrides, floats
from kerasdiff.diffusion.pipeline import Pipeline
from kerasdiff.diffusion.sampling_loop import Callback
from kerasdiff.diffusion.text_embedding import TextEmbedding
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.prompts.schedule import Plain
from kerasdiff.request import Request, make_request
from kerasdiff.request_arguments import ARGUMENTS, RequestArguments
from kerasdiff.samplers import Table
from kerasdiff.samplers.batched import BatchTable


class SingleStages:
    """What `Generator` does one stage at a time, with the weights that its layers have at that moment."""

    config: ModelConfig
    _pipeline: Pipeline

    def encode_text(self, texts: Sequence[str], chunks: int = 1, clip_skip: int = 0) -> np.ndarray:
        """Embeddings of texts, float32 (len(texts), chunks * 77, width); each text is encoded by itself.

        `chunks` is how often 75 tokens are read; what does not fit is cut off, with a warning. `clip_skip` is how many
        of the encoder's last layers are left out. Signs in a text mean nothing. LoRAs and embeddings are the
        generator's own.

        Raises:
            RequestError: the encoder has not so many layers.
        """
        clip_skip = validation.integer("clip_skip", clip_skip, 0, self.config.most_clip_skip)
        return np.stack([each.context for each in self._encoded(texts, chunks, clip_skip)])

    def encode_pooled(self, texts: Sequence[str]) -> np.ndarray:
        """Pooled embeddings of texts, float32 (len(texts), P), which Stable Diffusion XL reads beside the others.

        Each is of a text's first 75 tokens.

        Raises:
            RequestError: the model reads none.
        """
        if self.config.unet.pooled_width is None:
            raise RequestError("this model reads no pooled embeddings; encode_text has all that it reads")
        return np.stack([np.asarray(each.pooled) for each in self._encoded(texts)])

    def _encoded(self, texts: Sequence[str], chunks: int = 1, clip_skip: int = 0) -> list[TextEmbedding]:
        pipeline, own = self._pipeline, self.config.defaults
        encoding = pipeline.conditioner.encoding(own.embeddings).skipping(clip_skip)
        pipeline.networks.refresh()
        with pipeline.networks.applying(pipeline.adapters.stack(own.loras)):
            return [pipeline.conditioner.encode(encoding, Plain(text), chunks) for text in texts]

    def initial_latents(
        self,
        batch_size: int = 1,
        *,
        height: int | None = None,
        width: int | None = None,
        seed: int | Sequence[int] = 0,
        rng: str = "philox",
    ) -> np.ndarray:
        """Unit-variance starting noise, each image's from its seed: float32 (N, height / 8, width / 8, 4).

        Raises:
            RequestError: an argument is wrong.
        """
        request = make_request(self.config, "", batch_size=batch_size, height=height, width=width, seed=seed, rng=rng)
        return sampling_loop.noise_of(self.config, request).initial()

    def denoise(
        self,
        latents: np.ndarray,
        context: Any,
        negative_context: Any = None,
        *,
        pooled: Any = None,
        negative_pooled: Any = None,
        callback: Callback | None = None,
        progress: bool | None = None,
        **arguments: Unpack[RequestArguments],
    ) -> np.ndarray:
        """Takes starting noise to latents that `decode` makes images of: the middle stage on its own.

        Args:
            latents: unit-variance starting noise (N, h, w, 4), from `initial_latents`.
            context: (N or 1, T, C), from `encode_text`.
            negative_context: the same of the negative prompt; None is what a negative prompt of None is.
            pooled: (N or 1, P), from `encode_pooled`, if the model reads it; then it must be there with `context`.
            negative_pooled: the same with `negative_context`.
            callback: as in `generate`.
            **arguments: those of `generate` that are about steps; `seed` is of the noise that some samplers add.

        Returns:
            float32 (N, h, w, 4).

        Raises:
            RequestError: an argument is wrong.
        """
        latents = self._latents(latents)
        factor = self.config.latent_factor
        size = {"height": latents.shape[1] * factor, "width": latents.shape[2] * factor}
        arguments.setdefault("refiner_strength", 0.0)  # which reads texts
        request = make_request(self.config, "", batch_size=len(latents), **size, **arguments)
        images = self._pipeline.images(
            request,
            Overrides(latents, context, negative_context, pooled, negative_pooled),
            progress,
            callback,
            latents_only=True,
            names=Names("context", "negative_context", "pooled", "negative_pooled"),
        )
        return np.stack([image.latents for image in images])

    def decode(self, latents: np.ndarray, *, tile: str | None = None) -> np.ndarray:
        """Latents (N, h, w, 4), as a `Result` has them, to images uint8 (N, 8h, 8w, 3), one at a time.

        `tile` as in `generate`.

        Raises:
            RequestError: another shape, numbers that are not finite, or an unknown `tile`.
        """
        tile = _tile(tile)
        latents = self._latents(latents)
        self._pipeline.networks.refresh()
        return np.stack([self._pipeline.decode(image, tile) for image in latents])

    def encode_image(self, images: np.ndarray, *, tile: str | None = None) -> np.ndarray:
        """Images uint8 (N, height, width, 3) to the means of their latents, float32 (N, h, w, 4).

        `tile` as in `generate`.

        Raises:
            RequestError: not uint8 images, a side that is no multiple of 8, or an unknown `tile`.
        """
        tile = _tile(tile)
        images, factor = np.asarray(images), self.config.latent_factor
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise RequestError(f"images must be uint8 (N, height, width, 3), not {images.dtype} {images.shape}")
        if images.shape[1] % factor or images.shape[2] % factor:
            raise RequestError(f"images are {images.shape[1]} x {images.shape[2]}; both must be multiples of {factor}")
        self._pipeline.networks.refresh()
        return np.stack([self._pipeline.encode(image, tile) for image in images.astype("float32") / 127.5 - 1])

    def table(self, request: Request, first_step: int = 0) -> Table:
        """The coefficients of a request's sampler and noise levels, from a step between 0 and `num_steps` - 1 on.

        Raises:
            RequestError: the sampler's options lead to numbers that are not finite.
        """
        return sampling_loop.table(self.config, request, first_step)

    def schedule(self, request: Request) -> BatchTable:
        """What each image of a request goes through, side by side: one table per image, rows aligned at the end."""
        return sampling_loop.batch_table(self.config, request)

    def _latents(self, latents: Any) -> np.ndarray:
        latents = floats("latents", latents)
        if latents.ndim != 4 or not len(latents):
            raise RequestError(f"latents have shape {latents.shape}; they must be (N, h, w, 4)")
        return latents


def _tile(value: Any) -> str | None:
    return None if value is None else validation.choice("tile", value, ARGUMENTS["tile"].choices)
