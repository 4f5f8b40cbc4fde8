"""Models of the Hugging Face hub, downloaded once into its cache by its own library.

`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE` and `HF_ENDPOINT` work as everywhere else.
"""

from __future__ import annotations

import hashlib
import pathlib
import re

from kerasdiff.errors import ModelError
from kerasdiff.weights.diffusers import FILES

_NAME = re.compile(r"(?:hf://)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[\w./-]+\.(?:safetensors|h5)))?")
_SETTINGS = ["model_index.json", "*/config.json", "scheduler/*.json", "tokenizer/*.json", "tokenizer/*.txt"]


def is_name(model: str) -> bool:
    """Whether a text names a repository, "hf://org/name" or "org/name", or a file in one."""
    return _NAME.fullmatch(model) is not None


def fetch_file(repository: str, name: str, sha256: str) -> pathlib.Path:
    """One file of a repository, whose content is known.

    Raises:
        ModelError: it is not to be had, or its content is another.
    """
    path = fetch(f"{repository}/{name}")
    # The cache calls large files by their hash, which it checked; others are hashed here.
    if path.resolve().name != sha256:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ModelError(f"{path} is not the published {name} (its SHA-256 is {found}); remove it to load it anew")
    return path


def fetch(model: str, revision: str | None = None, variant: str | None = None) -> pathlib.Path:
    """The local folder of a repository in diffusers' layout, or a single file of one.

    Only settings and the networks' safetensors files are downloaded; pickles and the rest are not.

    Args:
        model: "hf://org/name", "org/name", or either with "/file.safetensors" behind it.
        revision: a branch, tag or commit.
        variant: which of several sets of weights, such as "fp16".

    Raises:
        ModelError: it is not to be had; one line says what was looked for, where, and why it failed.
    """
    match = _NAME.fullmatch(model)
    if match is None:
        raise ModelError(f"model={model!r} is no name on the Hugging Face hub; it must look like 'org/name'")
    repository, file = match["repository"], match["file"]
    import huggingface_hub
    from huggingface_hub import errors

    stems = {stem if variant is None else f"{stem}.{variant}" for _, stem in FILES.values()}
    folders = {folder for folder, _ in FILES.values()}
    weights = [
        f"{folder}/{stem}{end}" for folder in folders for stem in stems for end in (".safetensors", "-*.safetensors")
    ]
    indices = [f"{folder}/*.safetensors.index*.json" for folder in folders]
    try:
        if file is not None:
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
        patterns = [*_SETTINGS, *weights, *indices]
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=patterns, ignore_patterns=["safety_checker/*"]
            )
        )
    except errors.GatedRepoError:
        raise ModelError(
            f"{repository} is gated: accept its licence on its page on the hub and log in (or set HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{repository} has no revision {revision!r} on the Hugging Face hub") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"there is no {repository} on the Hugging Face hub, or it is private and needs a login (or HF_TOKEN)"
        ) from None
    except errors.RemoteEntryNotFoundError:
        raise ModelError(f"{repository} has no file {file} on the Hugging Face hub") from None
    except Exception as error:  # whatever the library's transport raises, which differs by version
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{model} is not in the cache ({huggingface_hub.constants.HF_HUB_CACHE}) and cannot be downloaded from "
            f"{huggingface_hub.constants.ENDPOINT}: {reason}; model='tiny' needs no download"
        ) from None
