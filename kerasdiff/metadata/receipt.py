"""A receipt: how one image was generated, as a frozen value and as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kerasdiff._version import __version__
from kerasdiff.adapter_files import EmbeddingFile, Lora, UpscalerFile
from kerasdiff.controls import STEERING
from kerasdiff.errors import RequestError
from kerasdiff.guidance import GuidanceScale
from kerasdiff.metadata import control_fields
from kerasdiff.metadata.schema import read_fields
from kerasdiff.request import Request
from kerasdiff.request_arguments import APPROXIMATIONS, PER_IMAGE
from kerasdiff.run_bounds import RunBounds
from kerasdiff.size_conditioning import SizeConditioning

FORMAT = 1
# Fields of a request that hold arrays; a receipt has their digests instead.
ARRAYS = ("pictures",)
# Fields of a request that are left out where they are off, as files from before there was one have them.
SWITCHES = (
    *("invert_mask", *APPROXIMATIONS),
    *("prompt_syntax", "emphasis", "clip_skip", "loras", "embeddings", "recipe", "all_steps", "tile", "towards"),
    *("hires", "upscale", "controls", "image_prompts", "image_guidance_scale"),
    *(field.name for sort in (SizeConditioning, RunBounds) for field in dataclasses.fields(sort)),
)
# Fields of a receipt that are left out where they are None, as files from before there was one have them.
_OPTIONAL = ("vae", "vae_hash", "refiner", "refiner_hash")
# Characters of JSON, a thousand times as many as one image needs.
LARGEST = 2**20
_VERSION = re.compile(r"[\w.+!-]{1,40}")
# What neither UTF-8 nor XML can hold: halves of surrogate pairs, and two codes that are no characters.
_NO_CHARACTER = re.compile("[\ud800-\udfff\ufffe\uffff]")


@dataclasses.dataclass(frozen=True)
class Receipt:
    """How one image was generated. Equal runs have equal receipts: they have no date and no path of the file.

    `request` is that of the whole batch, without the fields in `ARRAYS`; the image is its `index`-th. `precision` is
    never "auto". `given` has name and SHA-256 of each array that replaced a prompt or a seed, such as "latents", and
    `pictures` SHA-256 of the "image" that it was made from, of the "mask", and of the pictures of each control and
    image prompt ("controls[0]", "image_prompts[0]"); None if it was made from text. `nsfw` is
    the verdict of the safety checker; None if there was none. `vae` is what took the place of the model's autoencoder,
    and `vae_hash` the SHA-256 of its file; None if that was the model's own. `refiner` is the model that was opened to
    finish images, and `refiner_hash` that one's `model_hash`; None if there was none.
    """

    request: Request
    index: int
    model: str
    revision: str | None
    variant: str | None
    weights: str
    model_hash: str | None
    precision: str
    jit_compile: bool
    inference_only: bool  # as `kerasdiff.inference_only` changes the last digits
    backend: str
    device: str
    versions: Mapping[str, str]
    given: Mapping[str, str]
    pictures: Mapping[str, str] | None
    nsfw: bool | None
    vae: str | None = None
    vae_hash: str | None = None
    refiner: str | None = None
    refiner_hash: str | None = None

    def __post_init__(self) -> None:
        images = len(self.request)
        if not 0 <= self.index < images:
            raise RequestError(f"index={self.index} is out of range; the request has {images} images")
        for name in PER_IMAGE:
            values = getattr(self.request, name)
            if isinstance(values, GuidanceScale) and values.per_image:
                values = values.weights
            if isinstance(values, tuple) and len(values) != images:
                raise RequestError(f"the request's {name} has {len(values)} entries for {images} images")

    @property
    def version(self) -> str:
        """Of the kerasdiff that made the image."""
        return self.versions["kerasdiff"]

    def alone(self) -> Receipt:
        """The receipt of this image as the only one of its batch."""
        without = control_fields.without_pictures(self.request)
        return dataclasses.replace(self, request=without.only([self.index]), index=0)

    def to_json(self) -> str:
        """JSON on one line; equal receipts give equal texts."""
        request = {name: value for name, value in vars(self.request).items() if name not in ARRAYS}
        values = {
            name: dict(sorted(value.items())) if isinstance(value, Mapping) else value
            for name, value in vars(self).items()
        }
        values = {name: value for name, value in values.items() if name not in _OPTIONAL or value is not None}
        packages = {name: version for name, version in values["versions"].items() if name != "kerasdiff"}
        request["guidance_scale"] = self.request.guidance_scale.plain()
        off = {field.name: field.default for field in dataclasses.fields(Request) if field.name in SWITCHES}
        request = {name: value for name, value in request.items() if name not in off or value != off[name]}
        request |= {
            name: [_named(each) for each in request[name]] for name in ("loras", "embeddings") if name in request
        }
        if "towards" in request:
            request["towards"] = [vars(waypoint) for waypoint in request["towards"]]
        if self.request.hires is not None:
            hires = self.request.hires
            request["hires"] = hires.given | ({} if hires.file is None else {"upscaler": _named(hires.file)})
        if "upscale" in request:
            request["upscale"] = _named(request["upscale"])
        for name in STEERING:
            request.pop(name, None)
            if entries := control_fields.plain(self.request, name):
                request[name] = entries
        document = {"format": FORMAT, "kerasdiff": self.version} | values | {"request": request, "versions": packages}
        try:
            text = json.dumps(document, ensure_ascii=False, allow_nan=False, default=_number)
        except (TypeError, ValueError) as error:
            raise RequestError(f"the request cannot be written as metadata: {error}") from None
        return _NO_CHARACTER.sub(lambda found: f"\\u{ord(found[0]):04x}", text)

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """The receipt that `to_json` wrote. `make_request` must check the request before it is used again."""
        document = _document(text)
        version = document.pop("kerasdiff", None)
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise RequestError("this is not metadata of kerasdiff: it does not say of which version it is")
        if document.pop("format", None) != FORMAT:
            raise RequestError(
                f"the metadata was written by kerasdiff {version} in another format than kerasdiff "
                f"{__version__} reads; use kerasdiff {version}"
            )
        found = document.pop("request", None)
        steering = {} if not isinstance(found, dict) else {name: found.pop(name, None) for name in STEERING}
        request = read_fields(Request, found, version, without=(*ARRAYS, *STEERING), optional=SWITCHES)
        images = len(request["prompts"])
        request |= {name: control_fields.restored(name, one, version, images) for name, one in steering.items()}
        values = read_fields(cls, document, version, without=("request",), optional=_OPTIONAL)
        values["versions"] = {**values["versions"], "kerasdiff": version}
        try:
            return cls(request=Request(**request), **values)
        except RequestError as error:
            raise RequestError(f"the metadata is damaged: {error}") from None


def differences(receipt: Receipt, now: Receipt) -> list[str]:
    """What has changed since an image was made, in a line for each difference."""
    packages = sorted({*receipt.versions, *now.versions})
    before, after = _circumstances(receipt, packages), _circumstances(now, packages)
    return [
        f"{_shown(name)} {_shown(before[name])} then, {_shown(after[name])} now"
        for name in before
        if before[name] != after[name]
    ]


def _circumstances(receipt: Receipt, packages: list[str]) -> dict[str, Any]:
    names = ("backend", "device", "precision", "jit_compile", "inference_only")
    versions = {name: receipt.versions.get(name) for name in packages}
    return (
        versions
        | {name: getattr(receipt, name) for name in names}
        | {
            "model hash": receipt.model_hash,
            "VAE": receipt.vae_hash,
            "refiner's hash": receipt.refiner_hash,
        }
    )


def _shown(value: Any) -> str:
    """A value from a file, safe to print on one line."""
    text = "none" if value is None else str(value)
    return (text if text.isprintable() else repr(text))[:200]


def _named(adapter: Lora | EmbeddingFile | UpscalerFile) -> dict[str, Any]:
    """An adapter as a file has it: with the name of its file, which leads nowhere, unless it is on the hub."""
    return vars(adapter) | {"file": control_fields.named(adapter.file)}


def _number(value: Any) -> Any:
    """For JSON: a NumPy number among the options of a sampler."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"it holds a {type(value).__name__}")


def _document(text: str) -> dict[str, Any]:
    if len(text) > LARGEST:
        raise RequestError(f"the metadata is too long: {len(text)} characters, {LARGEST} at most")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("the metadata is damaged: it is not JSON") from None
    if not isinstance(document, dict):
        raise RequestError("this is not metadata of kerasdiff: it is not a JSON object")
    return document
