"""What pictures that are read beside the prompt do in a run (Ye et al. 2023, IP-Adapter, arXiv:2308.06721)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.controls import ImagePrompt
from kerasdiff.diffusion.control_network import ControlNetwork, SteeredRun
from kerasdiff.diffusion.denoise_step import ControlShapes, StepControls, StepInputs
from kerasdiff.diffusion.image_prompt_stage import ImageEncoderStage, IPAdapterStage, PictureTokens
from kerasdiff.models.blocks import cross_attentions

if TYPE_CHECKING:
    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.diffusion.stage import Overflow
    from kerasdiff.models.network_configs import UNetConfig
    from kerasdiff.runtime.precision import Execution
    from kerasdiff.runtime.program_cache import ProgramCache


class LoadedIPAdapter(ControlNetwork):
    """An IP-Adapter and its image encoder, with their compiled stages."""

    kind, networks = "IP-Adapter", ("image_encoder", "ip_adapter")
    asked_by = ImagePrompt

    def __init__(self, model: Checkpoint, execution: Execution, programs: ProgramCache, overflow: Overflow) -> None:
        super().__init__(model, execution, programs, overflow)
        run = execution.jit_compile, programs
        self.encoder = ImageEncoderStage(self._networks.network("image_encoder"), *run)
        self.adapter = IPAdapterStage(self._networks.network("ip_adapter"), *run)

    @property
    def stages(self) -> tuple[ImageEncoderStage, IPAdapterStage]:
        return self.encoder, self.adapter

    def read(self, picture: np.ndarray | None) -> PictureTokens:
        """What attentions find in a picture, uint8 (height, width, 3), or in none."""
        return self.adapter(self.encoder(picture, self.own.ip_adapter, self.own.image_encoder))

    @classmethod
    def shapes(
        cls, acting: Sequence[tuple[LoadedIPAdapter, ImagePrompt]], unet: UNetConfig, h: int, w: int
    ) -> ControlShapes:
        """Those of all tokens of each, whatever the size of latents."""
        tokens = [
            _places(prompt) * network.own.ip_adapter.tokens_of(network.own.image_encoder) for network, prompt in acting
        ]
        widths = cross_attentions(unet).values()
        return ControlShapes(
            image_tokens=tuple((count, width) for count in tokens for width in widths), adapters=len(acting)
        )

    @classmethod
    def part(cls, acting: Sequence[tuple[LoadedIPAdapter, ImagePrompt]], run: SteeredRun) -> StepControls:
        """Keys and values that stay the same in all rows, and scales."""
        return _ImagePrompts(acting, run)


class _ImagePrompts:
    """What adapters give to the steps of a run."""

    def __init__(self, acting: Sequence[tuple[LoadedIPAdapter, ImagePrompt]], run: SteeredRun) -> None:
        self._tensor = run.tensor
        # (adapters, rows, B)
        self._scales = np.stack([run.scales(prompt) for _, prompt in acting])
        each = [_tokens(network, prompt, run) for network, prompt in acting]
        # Of all adapters, keys and values: without the picture and with it, (B, tokens, width) each.
        self._without, self._with = (
            tuple([array for one in each for array in one[half][part]] for part in (0, 1)) for half in (0, 1)
        )
        self._given: dict[int, tuple[tuple[Any, ...], ...]] = {}

    def inputs(self, row: int, given: StepInputs) -> StepInputs:
        """As `StepControls` has it."""
        texts = len(given.text) // self._scales.shape[2]
        # A U-Net that edits sees them beside the prompt alone.
        keys, values = self._of(texts, texts - 1 if given.concat_per_text else min(1, texts - 1))
        scales = np.tile(self._scales[:, row], (1, texts))
        return given._replace(image_keys=keys, image_values=values, image_scales=scales)

    def _of(self, texts: int, negative: int) -> tuple[tuple[Any, ...], ...]:
        """Keys and values beside so many texts of each image, of which the first ones are negative."""
        if texts not in self._given:
            halves = zip(self._without, self._with, strict=True)
            self._given[texts] = tuple(
                tuple(
                    self._tensor(np.concatenate([without] * negative + [with_] * (texts - negative)))
                    for without, with_ in zip(*both, strict=True)
                )
                for both in halves
            )
        return self._given[texts]


def _tokens(network: LoadedIPAdapter, prompt: ImagePrompt, run: SteeredRun) -> tuple[Any, Any]:
    """Keys and values, (B, tokens, width) each, without a picture, and with those of each image."""
    places = _places(prompt)
    pictures = [picture for own in prompt.image for picture in own]
    keys = [(id(network), picture.shape, hashlib.sha256(picture.tobytes()).digest()) for picture in pictures]
    (none,) = run.hints.each([(id(network), None)], lambda _: network.read(None))
    found = run.hints.each(keys, lambda place: network.read(pictures[place]))
    images, first = [], 0
    for own in prompt.image:
        read = found[first : first + len(own)]
        # Attention to all of several tokens as often as to all others is attention to them once.
        images.append([_joined([one[part] for one in read] * (places // len(own))) for part in (0, 1)])
        first += len(own)
    empty = [_joined([none[part]] * places) for part in (0, 1)]
    stacked = [[np.stack(each) for each in zip(*(image[part] for image in images), strict=True)] for part in (0, 1)]
    return [[np.stack([array] * len(images)) for array in part] for part in empty], stacked


def _joined(read: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The tokens of several pictures in a row, for each attention."""
    return [np.concatenate(each) for each in zip(*read, strict=True)]


def _places(prompt: ImagePrompt) -> int:
    """So many pictures that each image has all of its own equally often."""
    return math.lcm(*(len(own) for own in prompt.image))
