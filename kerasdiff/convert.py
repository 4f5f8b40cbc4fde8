"""python -m kerasdiff.convert SOURCE DESTINATION: one kind of checkpoint to another."""

from __future__ import annotations

import logging
import os
import pathlib
from typing import Any

from kerasdiff import validation
from kerasdiff.adapter_files import make_loras
from kerasdiff.atomic_write import atomic_path, check_folder, check_name
from kerasdiff.cli.console import print_json, print_line
from kerasdiff.cli.options import options, request_arguments
from kerasdiff.cli.program import Option, Program, output_options
from kerasdiff.errors import ModelError, RequestError

_LOG = logging.getLogger("kerasdiff")
FORMATS = ("diffusers", "keras_cv", "kerasdiff", "single_file")
DTYPES = ("bfloat16", "float16", "float32")

PROGRAM = Program(
    name="kerasdiff.convert",
    about="writes a model in another format. SOURCE is what --model of python -m kerasdiff takes, and DESTINATION a "
    "new file or folder, which is written as a whole or not at all.",
    usage="python -m kerasdiff.convert SOURCE DESTINATION [--flag=value ...]",
    examples="""\
python -m kerasdiff.convert org/name my-model.safetensors
python -m kerasdiff.convert a.safetensors my-model --format=diffusers
python -m kerasdiff.convert org/name merged --lora=style.safetensors:0.8
python -m kerasdiff.convert tiny tiny-copy""",
    groups={
        "destination": (
            Option(
                "string",
                "format",
                None,
                f"{', '.join(FORMATS)}. Default: single_file for a name ending in .safetensors, else kerasdiff.",
                "NAME",
            ),
            Option("string", "dtype", "float16", "Type of the numbers that are written.", "|".join(DTYPES)),
        ),
        "source": options("revision", "variant", "vae", "lora"),
        "output": output_options("Print one JSON object with path, format, dtype and bytes."),
    },
    status_1="stdout cannot be written to",
)


def convert(
    source: Any,
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002
    dtype: str = "float16",
    revision: str | None = None,
    variant: str | None = None,
    vae: str | os.PathLike[str] | None = None,
    loras: Any = None,
) -> pathlib.Path:
    """Writes a model in another format and returns the destination; nothing half-done is left if it fails.

    "diffusers" and "kerasdiff" keep a safety checker, a schedule and the default sampler, all but "keras_cv" a
    tokenizer that is not CLIP's. What is left out is logged.

    Args:
        source: any `model` that `kerasdiff.Generator` takes.
        destination: a file or folder that is not there yet.
        format: "single_file" (the original layout), "diffusers" (a folder), "keras_cv" (a folder of its
            HDF5 files), "kerasdiff" (a folder of ours, the fastest to read); None goes by the destination's name.
        dtype: "float32", "float16" or "bfloat16".
        loras: LoRAs to merge into the model, as in `kerasdiff.generate`.

    Raises:
        ModelError: the source or a LoRA cannot be read, or the destination is there already.
        RequestError: an unknown format or dtype.
    """
    from kerasdiff.adapters.merged import merged
    from kerasdiff.checkpoints import export
    from kerasdiff.checkpoints.resolve import open_model
    from kerasdiff.models.tokenizer import Tokenizer

    destination = pathlib.Path(validation.path("destination", destination))
    if format is None:
        format = _format_of(destination)  # noqa: A001
    writers = {
        "single_file": export.write_single_file,
        "diffusers": export.write_diffusers,
        "keras_cv": export.write_keras_cv,
        "kerasdiff": export.write_native,
    }
    write = writers[validation.choice("format", format, FORMATS)]
    validation.choice("dtype", dtype, DTYPES)
    if format == "keras_cv" and dtype == "bfloat16":
        raise RequestError("HDF5 files hold no bfloat16; use dtype='float32' or 'float16'")
    if os.path.lexists(destination):
        raise ModelError(f"{destination} is there already; choose another name or remove it first")
    if not os.path.isdir(destination.absolute().parent):
        raise ModelError(f"there is no folder {destination.parent}; make it first")
    try:
        check_name(destination)
        check_folder(destination.parent)
    except OSError as error:
        raise ModelError(f"cannot write to {destination}: {error.strerror}; choose another name or folder") from error
    model = merged(open_model(source, revision=revision, variant=variant, vae=vae), make_loras("loras", loras))
    export.check_autoencoder(model, format)
    if model.config.safety_checker is not None and format in ("single_file", "keras_cv"):
        _LOG.warning("the safety checker of %s is left out: format=%r has none", model.name, format)
    if format == "keras_cv" and not export.has_tokenizer(model, Tokenizer.clip()):
        _LOG.warning("the tokenizer of %s is left out: format=%r has CLIP's, padded with its end", model.name, format)
    with atomic_path(destination) as partial:
        write(model, partial, dtype)
    return destination


def main(arguments: list[str]) -> int:
    """Converts what the arguments say; 0."""
    if len(arguments) != 2:
        raise RequestError(f"a source and a destination are needed; usage: {PROGRAM.usage}; --help lists the flags")
    source, destination = arguments
    values = PROGRAM.values
    with PROGRAM.starting():
        path = convert(
            source,
            destination,
            format=values.format,
            dtype=values.dtype,
            revision=values.revision,
            variant=values.variant,
            vae=values.vae,
            **request_arguments(values),
        )
    if PROGRAM.json:
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        kind = {"format": values.format or _format_of(path), "dtype": values.dtype}
        print_json({"path": str(path), **kind, "bytes": size})
    else:
        print_line(str(path))
    return 0


def _format_of(destination: pathlib.Path) -> str:
    return "single_file" if destination.suffix == ".safetensors" else "kerasdiff"


if __name__ == "__main__":
    PROGRAM.run(main)
