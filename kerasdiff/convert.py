"""python -m kerasdiff.convert SOURCE DESTINATION: one kind of checkpoint to another."""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

from absl import flags

from kerasdiff import checks
from kerasdiff.errors import KerasdiffError, ModelError, RequestError
from kerasdiff.weights.presets import open_model

_LOG = logging.getLogger("kerasdiff")
FORMATS = ("diffusers", "keras_cv", "kerasdiff", "single_file")
DTYPES = ("bfloat16", "float16", "float32")

# Flags of their own: those of `python -m kerasdiff` have the same names.
_FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "format",
    None,
    f"{', '.join(FORMATS)}; not given: single_file for a name ending in .safetensors, else kerasdiff.",
    flag_values=_FLAGS,
)
flags.DEFINE_string("dtype", "float16", f"Of the numbers that are written: {', '.join(DTYPES)}.", flag_values=_FLAGS)
flags.DEFINE_string("revision", None, "Of a model on the hub: a branch, tag or commit.", flag_values=_FLAGS)
flags.DEFINE_string("variant", None, "Which of several sets of weights to read, such as fp16.", flag_values=_FLAGS)
_USAGE = "usage: python -m kerasdiff.convert SOURCE DESTINATION [--format=...] [--dtype=...]; --help lists the flags"


def convert(
    source: Any,
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002
    dtype: str = "float16",
    revision: str | None = None,
    variant: str | None = None,
) -> pathlib.Path:
    """Writes a model in another format; nothing half-done is left if it fails.

    A safety checker is kept by "diffusers" and "kerasdiff"; the other formats have none, which is logged.

    Args:
        source: any `model` that `kerasdiff.Generator` takes.
        destination: a file or folder that is not there yet.
        format: "single_file" (the original layout), "diffusers" (a folder), "keras_cv" (a folder of its
            HDF5 files), "kerasdiff" (a folder of ours, the fastest to read); None goes by the destination's name.
        dtype: "float32", "float16" or "bfloat16".
        revision: of a source on the Hugging Face hub.
        variant: which of several sets of weights to read.

    Returns:
        The destination.

    Raises:
        ModelError: the source cannot be read, or the destination is there already.
        RequestError: an unknown format or dtype.

    Example:
        ```python
        from kerasdiff.convert import convert

        convert("tiny", "tiny-diffusers", format="diffusers", dtype="float32")
        ```
    """
    from kerasdiff.weights import export

    destination = pathlib.Path(destination)
    if format is None:
        format = "single_file" if destination.suffix == ".safetensors" else "kerasdiff"  # noqa: A001
    writers = {
        "single_file": export.write_single_file,
        "diffusers": export.write_diffusers,
        "keras_cv": export.write_keras_cv,
        "kerasdiff": export.write_native,
    }
    write = writers[checks.choice("format", format, FORMATS)]
    checks.choice("dtype", dtype, DTYPES)
    if format == "keras_cv" and dtype == "bfloat16":
        raise RequestError("HDF5 files hold no bfloat16; use dtype='float32' or 'float16'")
    if destination.exists():
        raise ModelError(f"{destination} is there already; choose another name or remove it first")
    if not destination.absolute().parent.is_dir():
        raise ModelError(f"there is no folder {destination.parent}; make it first")
    model = open_model(source, revision=revision, variant=variant)
    if model.config.safety_checker is not None and format in ("single_file", "keras_cv"):
        _LOG.warning("the safety checker of %s is left out: format=%r has none", model.name, format)
    with tempfile.TemporaryDirectory(dir=destination.absolute().parent, prefix=".converting-") as temporary:
        made = pathlib.Path(temporary) / destination.name
        write(model, made, dtype)
        shutil.move(made, destination)
    return destination


def main(argv: list[str]) -> int:
    """Converts what the arguments say; 0, or 2 with one line on stderr."""
    if {"--help", "-h"} & set(argv):
        print(f"{__doc__}\n\n{_USAGE}\n{_FLAGS.get_help()}")
        return 0
    try:
        arguments = _FLAGS(argv)[1:]
        if len(arguments) != 2:
            raise ModelError(f"a source and a destination are needed; {_USAGE}")
        settings: dict[str, Any] = {name: _FLAGS[name].value for name in ("format", "dtype", "revision", "variant")}
        path = convert(arguments[0], arguments[1], **settings)
    except (KerasdiffError, flags.Error) as error:
        print(f"kerasdiff: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
