"""python -m kerasdiff.verify --model=...: does a model give the numbers that were published for it?"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from kerasdiff.errors import KerasdiffError, ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import make_request
from kerasdiff.weights.presets import open_model

_REFERENCES = pathlib.Path(__file__).parent / "presets" / "references.json"

# Flags of their own: those of `python -m kerasdiff` have the same names.
_FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "model", "tiny", "As in python -m kerasdiff; published numbers are of Stable Diffusion 1.4.", flag_values=_FLAGS
)
flags.DEFINE_string("revision", None, "Of a model on the hub: a branch, tag or commit.", flag_values=_FLAGS)
flags.DEFINE_string("variant", None, "Which of several sets of weights to read, such as fp16.", flag_values=_FLAGS)
_USAGE = "usage: python -m kerasdiff.verify [--model=...] [--revision=...] [--variant=...]"


@dataclasses.dataclass(frozen=True)
class Check:
    """One published reference beside what was computed.

    Attributes:
        name: what it is of.
        source: who published it.
        difference: the largest.
        tolerance: how large it may be.
    """

    name: str
    source: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; never if it is not a number."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.name}: differs by {self.difference:.1e}, {self.tolerance:.0e} allowed ({self.source})"


def verify(model: Any = "tiny", *, revision: str | None = None, variant: str | None = None) -> Iterator[Check]:
    """Computes, in float32, everything that was published for a model's architecture.

    Token ids and text encodings hold for every model that kept Stable Diffusion 1.x's text encoder; the images are
    of version 1.4 and of no fine-tuned one.

    Args:
        model: as in `kerasdiff.Generator`.
        revision: the same.
        variant: the same.

    Yields:
        Each check when it is done: an image of Stable Diffusion takes minutes on a CPU.

    Raises:
        ModelError: the model cannot be read, or nothing is known about its architecture.

    Example:
        ```python
        all(check.passed for check in kerasdiff.verify.verify("tiny"))
        ```
    """
    opened = open_model(model, revision=revision, variant=variant)
    references = references_for(opened.config)
    from kerasdiff.generator import Generator

    generator = Generator(opened, precision="float32")
    for reference in references:
        found, expected = compute(generator, reference), np.array(reference["expected"])
        if found.shape != expected.shape:
            raise ModelError(f"{reference['name']} has shape {found.shape}, {expected.shape} was published")
        difference = float(np.abs(found - expected).max())
        yield Check(reference["name"], reference["source"], difference, reference["tolerance"])


def references_for(config: ModelConfig) -> list[dict[str, Any]]:
    """What is known about an architecture.

    Raises:
        ModelError: nothing.
    """
    known = json.loads(_REFERENCES.read_text("utf-8"))
    text, unet = config.text_encoder, config.unet
    kind = [text.vocab_size, text.width, text.num_layers, *unet.widths, unet.in_channels, unet.context_width]
    found = next((one["references"] for one in known if one["architecture"] == kind), None)
    if found is None:
        raise ModelError(
            "no numbers are known for this architecture; they are for Stable Diffusion 1.4 and for the embedded model"
        )
    return found


def compute(generator: Any, reference: dict[str, Any]) -> np.ndarray:
    """The numbers that a reference is compared with.

    "tokens" are the first ids; "text" is a part of the second token's encoding; "image" is the last 3 x 3 pixels'
    blue, 0 to 1, of an image from `RandomState(0)` latents in torch's order of axes.
    """
    if reference["kind"] == "tokens":
        return np.array(generator.tokenizer.encode(reference["prompt"])[: len(reference["expected"])])
    if reference["kind"] == "text":
        encoded = np.asarray(generator.encode_text([reference["prompt"]]), "float32")
        return encoded[0, 1, : len(reference["expected"])]
    size = generator.config.latent_factor
    shape = (1, generator.config.vae.latent_channels, reference["height"] // size, reference["width"] // size)
    noise = np.random.RandomState(0).standard_normal(shape).transpose(0, 2, 3, 1).astype("float32")
    names = ("height", "width", "num_steps", "guidance_scale", "sampler")
    request = make_request(generator.config, reference["prompt"], seed=0, **{name: reference[name] for name in names})
    latents = generator.run(request, latents=noise, progress=False).latents
    picture = np.asarray(generator.networks["decoder"](latents), "float32")
    return (picture / 2 + 0.5).clip(0, 1)[0, -3:, -3:, -1].reshape(-1)


def main(argv: list[str]) -> int:
    """Prints each check; 0 if all passed, 1 if one did not, 2 with one line on stderr if none could be made."""
    if {"--help", "-h"} & set(argv):
        print(f"{__doc__}\n\n{_USAGE}\n{_FLAGS.get_help()}")
        return 0
    try:
        if _FLAGS(argv)[1:]:
            raise ModelError(_USAGE)
        model = _FLAGS["model"].value
        passed = True
        for check in verify(model, revision=_FLAGS["revision"].value, variant=_FLAGS["variant"].value):
            print(check, flush=True)
            passed = passed and check.passed
    except (KerasdiffError, flags.Error) as error:
        print(f"kerasdiff: {error}", file=sys.stderr)
        return 2
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
