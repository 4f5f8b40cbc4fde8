"""python -m kerasdiff.verify --model=...: does a model give the numbers that were published for it?"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.cli.console import print_json, print_line
from kerasdiff.cli.options import options
from kerasdiff.cli.program import Program, output_options
from kerasdiff.errors import ModelError

if TYPE_CHECKING:
    from kerasdiff.models.config import ModelConfig

_REFERENCES = pathlib.Path(__file__).parent / "presets" / "references.json"

PROGRAM = Program(
    name="kerasdiff.verify",
    about="compares a model with published numbers: token ids, text encodings and images, computed in float32.",
    usage="python -m kerasdiff.verify [--flag=value ...]",
    examples="""\
python -m kerasdiff.verify
python -m kerasdiff.verify --model=sd-v1-4   # minutes on a CPU""",
    groups={
        "model": options("model", "revision", "variant"),
        "output": output_options("Print a line of JSON per check."),
    },
    positional=False,
    status_1="a check failed, or stdout cannot be written to",
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One published reference beside what was computed; `difference` is the largest one of its numbers."""

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
    of version 1.4 and of no fine-tuned one. Arguments are those of `kerasdiff.Generator`.
    A check comes when it is done: an image of Stable Diffusion takes minutes on a CPU. A ModelError says that nothing
    is known about the architecture.
    """
    from kerasdiff.checkpoints.resolve import open_model
    from kerasdiff.generator import Generator

    opened = open_model(model, revision=revision, variant=variant)
    references = references_for(opened.config)
    generator = Generator(opened, precision="float32")
    for reference in references:
        found, expected = compute(generator, reference), np.array(reference["expected"])
        if found.shape != expected.shape:
            raise ModelError(f"{reference['name']} has shape {found.shape}, {expected.shape} was published")
        difference = float(np.abs(found - expected).max())
        yield Check(reference["name"], reference["source"], difference, reference["tolerance"])


def references_for(config: ModelConfig) -> list[dict[str, Any]]:
    """What is known about an architecture; a ModelError if nothing is."""
    known = json.loads(_REFERENCES.read_text("utf-8"))
    text, unet = config.main_text_encoder, config.unet
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
    from kerasdiff.request import make_request

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


def main(_: list[str]) -> int:
    """Prints each check; 0 if all passed, 1 if one did not."""
    from kerasdiff.checkpoints.resolve import open_model
    from kerasdiff.runtime import backend
    from kerasdiff.runtime.precision import choose_backend

    values = PROGRAM.values
    model = open_model(values.model, revision=values.revision, variant=values.variant)
    with PROGRAM.starting():
        backend.of(choose_backend("auto")).devices()
    passed = True
    for check in verify(model):
        _print(check)
        passed = passed and check.passed
        PROGRAM.signals.check()
    return 0 if passed else 1


def _print(check: Check) -> None:
    if PROGRAM.json:
        difference = check.difference if math.isfinite(check.difference) else None
        print_json({**dataclasses.asdict(check), "difference": difference, "passed": check.passed})
    else:
        print_line(str(check))


if __name__ == "__main__":
    PROGRAM.run(main)
