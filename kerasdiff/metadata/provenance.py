"""What generated some images, which is the same for all of them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from kerasdiff.metadata import control_fields
from kerasdiff.metadata.receipt import Receipt
from kerasdiff.request import Request

# Attributes that compute others.
_COMPUTING = ("identity", "vae_identity", "refiner_identity")


@dataclasses.dataclass(frozen=True, eq=False)
class Provenance:
    """A model and what ran it.

    The attributes are those of `Receipt`, and what computes `model_hash`, `vae_hash` and `refiner_hash`.
    """

    model: str
    revision: str | None
    variant: str | None
    weights: str
    precision: str
    jit_compile: bool
    inference_only: bool
    backend: str
    device: str
    versions: Mapping[str, str]
    identity: Callable[[], str | None]
    vae: str | None = None
    vae_identity: Callable[[], str | None] | None = None
    refiner: str | None = None
    refiner_identity: Callable[[], str | None] | None = None

    @functools.cached_property
    def model_hash(self) -> str | None:
        """SHA-256 of the model, or None."""
        return self.identity()

    @functools.cached_property
    def vae_hash(self) -> str | None:
        """SHA-256 of the file of another autoencoder than the model's own, or None."""
        return None if self.vae_identity is None else self.vae_identity()

    @functools.cached_property
    def refiner_hash(self) -> str | None:
        """The same as `model_hash`, of the refiner."""
        return None if self.refiner_identity is None else self.refiner_identity()

    def __getstate__(self) -> dict[str, Any]:
        """Has the hash instead of the model, so that a result can be sent to another process."""
        hashes = {f"{name}_hash": getattr(self, f"{name}_hash") for name in ("model", "vae", "refiner")}
        return {**vars(self), **hashes, **dict.fromkeys(_COMPUTING)}

    def receipt(self, request: Request, index: int, given: Mapping[str, str], nsfw: bool | None) -> Receipt:
        """The receipt of one image of a request."""
        shared = (field.name for field in dataclasses.fields(self) if field.name not in _COMPUTING)
        return Receipt(
            request=request,
            index=index,
            model_hash=self.model_hash,
            vae_hash=self.vae_hash,
            refiner_hash=self.refiner_hash,
            given=given,
            pictures=control_fields.digests(request, index),
            nsfw=nsfw,
            **{name: getattr(self, name) for name in shared},
        )
