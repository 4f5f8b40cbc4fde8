"""A quick fingerprint of a model's parameters, even if they are gigabytes."""

import functools
import hashlib
import logging
import os
from typing import Any

import numpy as np

from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.formats.random_weights import RandomSource
from kerasdiff.errors import ModelError
from kerasdiff.models.networks import text_to_image

_LOG = logging.getLogger("kerasdiff")
RANDOM = "random"
PIECE = 65536
PIECES = 34


def identity(model: Checkpoint) -> str | None:
    """64 hex digits that identify a model's parameters; "random" for random ones.

    SHA-256 over the files of the networks that every image needs: of each the size and 34 evenly spaced pieces of
    64 KiB, the first at its beginning and the last at its end. A file of up to 2 MiB is read as a whole. Paths and
    names of the files do not count. None for a live KerasCV model, whose parameters may change, and with a warning for
    files that have changed since the model was opened: they are not what images were drawn with.
    """
    if model.files is None:
        return RANDOM if isinstance(model.source("unet", dict), RandomSource) else None
    try:
        for network in text_to_image(model.config):
            model.check_unchanged(network)
    except ModelError as error:
        _LOG.warning("images will be saved without the model's hash: %s", error)
        return None
    digest = hashlib.sha256()
    # Not the encoder's, as asking for its file may download it.
    for network in text_to_image(model.config):
        for path in model.files(network):
            try:
                with open(path, "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    digest.update(f"{network} {size}\n".encode())
                    for position in np.linspace(0, max(size - PIECE, 0), PIECES, dtype=int):
                        file.seek(position)
                        digest.update(file.read(PIECE))
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def vae_hash(model: Checkpoint) -> str | None:
    """SHA-256 of the file of what took the place of a model's autoencoder; None for its own, and for random values."""
    other = model.autoencoder
    if other is None or model.files is None:
        return None
    path = other.files(other.halves[0])[0]
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def identities(model: Checkpoint) -> dict[str, Any]:
    """What computes the hashes of a model, of its autoencoder and of its refiner, by what `Provenance` calls it."""
    found: dict[str, Any] = {"identity": functools.partial(identity, model)}
    found["vae_identity"] = functools.partial(vae_hash, model)
    return found | ({} if model.refiner is None else {"refiner_identity": functools.partial(identity, model.refiner)})
