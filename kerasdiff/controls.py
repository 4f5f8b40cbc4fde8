"""What steers a request besides its texts: hints for ControlNets and T2I-Adapters, and pictures as prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

MODES = ("balanced", "prompt", "control")


@dataclasses.dataclass(frozen=True)
class Control:
    """A network that steers the image by a hint: a ControlNet or a T2I-Adapter.

    Shares are of the steps of an image's own run, which with `strength` are fewer, and in a second pass its own;
    diffusers counts evaluations, of which some samplers have two in a step.

    Attributes:
        model: a folder or file, or "org/name" or "org/name/file.safetensors" on the Hugging Face hub.
        image: the hint, as `image` of a request is given: one, or one per prompt or per image. None is the request's
            own image; what its mask covers is marked, as ControlNets for inpainting read it.
        scale: what the network adds is multiplied by it: a number, or one per prompt or per image. 0 is without.
        start: the share of the run before which the network does not act, 0 to 1.
        end: the share of the run after which it does not.
        mode: "balanced", "prompt" (less in the outer layers) or "control" (so, and only beside the prompt, not the
            negative one; "guess mode"). ControlNets that average over the picture act beside the prompt in any mode.
        hint: a name from `kerasdiff.hints.HINTS`: how the hint is made of the image. None takes the image as it is.
        sha256: of the model's file; None before it is opened.
    """

    model: str
    image: Any = None
    scale: Any = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    hint: str | None = None
    sha256: str | None = None

    def only(self, indices: Sequence[int]) -> Control:
        """That of some images of a request, whose `image` are `Pictures`, and `scale` one number per image."""
        image = None if self.image is None else self.image.only(indices)
        return dataclasses.replace(self, image=image, scale=tuple(self.scale[index] for index in indices))


@dataclasses.dataclass(frozen=True)
class ImagePrompt:
    """A picture that is read beside the prompt by an IP-Adapter.

    Attributes:
        model: as of a `Control`.
        image: a picture, or a list of several that are read together; a list of lists is one per prompt or per image.
        scale: how much it counts: a number, or one per prompt or per image. 0 is without.
        start: the share of the run before which it does not count, 0 to 1.
        end: the share of the run after which it does not.
        encoder: the folder of the image encoder; None looks beside the model.
        sha256: of the model's file; None before it is opened.
    """

    model: str
    image: Any
    scale: Any = 1.0
    start: float = 0.0
    end: float = 1.0
    encoder: str | None = None
    sha256: str | None = None

    def only(self, indices: Sequence[int]) -> ImagePrompt:
        """That of some images of a request, whose `image` are `PictureSets`, and `scale` one number per image."""
        scale = tuple(self.scale[index] for index in indices)
        return dataclasses.replace(self, image=self.image.only(indices), scale=scale)


@dataclasses.dataclass(frozen=True)
class Controls:
    """What steers a request: in a request `controls` and `image_prompts` are of this kind, or None."""

    entries: tuple[Any, ...]

    def only(self, indices: Sequence[int]) -> Controls:
        """Those of some images of the request."""
        return Controls(tuple(entry.only(indices) for entry in self.entries))

    @property
    def acting(self) -> tuple[Any, ...]:
        """Those that act."""
        return tuple(filter(acts, self.entries))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def acts(entry: Control | ImagePrompt) -> bool:
    """Whether an entry of a request acts in any step of any image; what does not is not opened."""
    return any(entry.scale) and entry.start < entry.end


# The fields of a request that are `Controls`, which are arguments too, and what each is a list of.
STEERING: dict[str, type[Any]] = {"controls": Control, "image_prompts": ImagePrompt}
