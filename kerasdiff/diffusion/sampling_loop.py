"""The middle of a generation: a request and its texts to latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kerasdiff.diffusion.denoise_step import Denoise
from kerasdiff.diffusion.initial_state import Encoder, Start, from_noise, from_pictures
from kerasdiff.diffusion.overrides import floats
from kerasdiff.diffusion.preview import preview
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import Request
from kerasdiff.runtime import backend
from kerasdiff.samplers import Table, sampling_levels, sampling_table
from kerasdiff.samplers.batched import BatchTable, stack_tables
from kerasdiff.samplers.noise import RNGS, Noise

# (step, num_steps, preview); False stops the run.
Callback = Callable[[int, int, np.ndarray | None], Any]


class Drawn(NamedTuple):
    """What a run came to.

    Attributes:
        latents: float32 (N, h, w, C).
        seen: the same, or what a run that was stopped took for its result.
        stopped_after: the step after which it was stopped, or None.
    """

    latents: np.ndarray
    seen: np.ndarray
    stopped_after: int | None


class Drawing:
    """Takes requests through the U-Net.

    Args:
        config: the model's.
        name: the model's, for messages.
    """

    def __init__(self, config: ModelConfig, name: str) -> None:
        self._config, self._name = config, name

    @property
    def conditioned(self) -> bool:
        """Whether the U-Net has channels for a mask and a picture, as models for inpainting do."""
        return self._config.unet.in_channels == 2 * self._config.vae.latent_channels + 1

    @property
    def condition_channels(self) -> int:
        """How many these are; 0 without."""
        return self._config.vae.latent_channels + 1 if self.conditioned else 0

    def check(self, request: Request | None) -> None:
        """Refuses what the U-Net cannot do; None is a request without a picture.

        Raises:
            RequestError: it has channels that this request does not fill.
        """
        masked = request is not None and request.pictures is not None and request.pictures.masks is not None
        channels = self._config.unet.in_channels
        if channels == self._config.vae.latent_channels or (self.conditioned and masked):
            return
        if self.conditioned:
            raise RequestError(
                f"{self._name} is a model for inpainting; it draws only into a picture: give image and mask, "
                "all white to draw all of it"
            )
        raise RequestError(f"the U-Net of {self._name} reads {channels} channels, which is no model known here")

    def table(self, request: Request, first_step: int = 0) -> Table:
        """The coefficients that a request's sampler, noise levels and number of steps come to, from a step on."""
        levels = sampling_levels(
            self._config.schedule,
            request.sampler,
            request.num_steps,
            spacing=request.spacing,
            timesteps=request.timesteps,
            sigmas=request.sigmas,
        )
        return sampling_table(levels.from_step(first_step), request.sampler, dict(request.sampler_options))

    def schedule(self, request: Request) -> BatchTable:
        """What each image of a request goes through, side by side."""
        firsts = request.first_steps
        tables = {first: self.table(request, first) for first in {*firsts} if first < request.num_steps}
        return stack_tables([tables.get(first) for first in firsts], firsts)

    def noise(self, request: Request) -> Noise:
        """Where a request's noise comes from."""
        return RNGS[request.rng](request.seeds, self.shape(request))

    def __call__(
        self,
        request: Request,
        latents: np.ndarray | None,
        context: Any,
        denoise: Denoise,
        encode: Encoder,
        *,
        slices: int = 1,
        each_row: Callable[[], Any] = lambda: None,
        callback: Callback | None = None,
    ) -> Drawn:
        """Carries out a request, all of its images at once.

        Args:
            request: for this model.
            latents: unit-variance noise (N, h, w, C) instead of the seeds', or None.
            context: of both halves if the request is guided, as `Denoise` takes it.
            denoise: the compiled step.
            encode: the encoder, if the request starts from pictures.
            slices: as in `Denoise`.
            each_row: called after each row.
            callback: as in `kerasdiff.Generator.generate`.
        """
        run, noise = self.schedule(request), self.noise(request)
        start = self._start(request, run, noise, latents, encode)
        if not len(run):
            return Drawn(start.x, start.x, None)
        states = denoise(
            start.x,
            context,
            request.guidance if request.guided else None,
            run,
            lambda row: noise.fresh(run.draws[row]),
            request.guidance_rescale,
            condition=start.condition,
            hold=start.hold,
            slices=slices,
        )
        num_steps, done = request.num_steps - min(request.first_steps), 0
        for row, state in enumerate(states):
            each_row()
            if callback is None or not run.ends_step(row):
                continue
            done += 1
            answer = callback(done, num_steps, preview(self._config.vae, state.denoised))
            if answer is not None and not answer:
                break
        stopped_after = done if callback is not None and done < num_steps else None
        result = (backend.to_numpy(state.x) * run.scales[row][:, None, None, None]).astype("float32")
        if start.finish is not None and row + 1 == len(run):
            result = start.finish(result)
        return Drawn(result, result if stopped_after is None else backend.to_numpy(state.denoised), stopped_after)

    def _start(
        self, request: Request, run: BatchTable, source: Noise, latents: np.ndarray | None, encode: Encoder
    ) -> Start:
        """Where a request's run starts."""
        pictures = request.pictures
        if pictures is not None and request.rng == "torch":
            source.initial()  # which diffusers takes to draw from around what the encoder gives
        noise = source.initial() if latents is None else latents
        if pictures is None:
            return from_noise(noise, run)
        whole = np.array(request.first_steps) == 0
        return from_pictures(pictures, whole, encode, noise, run, self.conditioned)

    def shape(self, request: Request) -> tuple[int, int, int]:
        """Of one image's latents, (h, w, C)."""
        factor = self._config.latent_factor
        return request.height // factor, request.width // factor, self._config.vae.latent_channels

    def checked(self, request: Request, latents: Any) -> np.ndarray:
        """Starting noise that a user gave, float32; RequestError if it has the wrong shape."""
        latents = floats("latents", latents)
        expected = (len(request), *self.shape(request))
        if latents.shape != expected:
            raise RequestError(f"latents have shape {latents.shape}, this request needs {expected}")
        return latents
