"""The command upscale: larger pictures."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from kerasdiff import validation
from kerasdiff.adapter_files import split_upscaler
from kerasdiff.cli.console import print_error, print_json, print_line
from kerasdiff.cli.options import EXECUTION, FORMATS, jit_compile
from kerasdiff.cli.program import Option, Program, output_options
from kerasdiff.errors import RequestError
from kerasdiff.images.writer import check_output, try_output
from kerasdiff.runtime.precision import check, choose_backend

_ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

PROGRAM = Program(
    name="kerasdiff upscale",
    about="makes pictures larger with an upscaler of ESRGAN's kind: RRDBNet (ESRGAN, BSRGAN, Real-ESRGAN) or "
    "SRVGGNetCompact.",
    usage="python -m kerasdiff upscale FILE|FOLDER [...] --upscaler=FILE [--flag=X]",
    examples="""\
python -m kerasdiff upscale photo.png --upscaler=4x.pth --output=large.png
python -m kerasdiff upscale pictures --upscaler=4x.pth:2 --output=larger""",
    groups={
        "upscaler": (
            Option(
                "string",
                "upscaler",
                None,
                "A .safetensors or .pth file, or org/name/file.pth on the Hugging Face Hub. A smaller scale than its "
                "own is reached by Lanczos' filter.",
                "FILE[:SCALE]",
            ),
        ),
        "files": (
            Option(
                "string",
                "output",
                None,
                "A file for one picture, a folder for several. Default: upscaled.png, or the folder upscaled.",
                "FILE|FOLDER",
            ),
            Option("choice", "format", "png", "Of files in a folder.", choices=FORMATS),
            Option("choice", "metadata", "on", "Keep what pictures say of themselves.", choices=("on", "off")),
        ),
        "execution": EXECUTION,
        "output": output_options("Print a line of JSON per picture.", progress=True),
    },
    status_1="a picture could not be read or written, or stdout cannot be written to",
)


def main(arguments: list[str]) -> int:
    """Makes larger what the arguments say: 0, or 1 if a picture failed."""
    values = PROGRAM.values
    if not arguments or values.upscaler is None:
        what = "a picture or a folder" if not arguments else "--upscaler"
        raise RequestError(f"{what} is missing; usage: {PROGRAM.usage}; --help lists the flags")
    check(values.precision, jit_compile(values), values.backend)
    targets = _targets(arguments, values.output, values.format)
    upscaler, failed = split_upscaler(values.upscaler), False
    with PROGRAM.starting():
        backend = choose_backend(values.backend, values.precision, jit_compile(values))
        from kerasdiff.upscaling import upscale
    execution: dict[str, Any] = {
        "precision": values.precision,
        "jit_compile": jit_compile(values),
        "backend": backend,
        "progress": PROGRAM.progress,
    }
    for source, target in targets.items():
        try:
            large = upscale(source, upscaler, **execution)
            (path,) = large.save(target, metadata=values.metadata == "on")
        except RequestError as error:
            if len(targets) == 1:
                raise
            print_error(f"{PROGRAM.name}: {error}")
            failed = True
            continue
        height, width = large[0].shape[:2]
        if PROGRAM.json:
            print_json({"path": str(path), "source": str(source), "width": width, "height": height})
        else:
            print_line(f"{path} ({width} x {height})")
        PROGRAM.signals.check()
    return int(failed)


def _targets(arguments: list[str], output: str | None, form: str) -> dict[pathlib.Path, pathlib.Path]:
    """The file that each picture goes to; folders and files are tried before the work."""
    sources: list[pathlib.Path] = []
    for argument in arguments:
        path = pathlib.Path(validation.path("picture", argument)).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDINGS and file.is_file())
            if not found:
                raise RequestError(f"{path} has no pictures ({', '.join(_ENDINGS)})")
            sources += found
        elif path.exists():
            sources.append(path)
        else:
            raise RequestError(f"there is no file {path}")
    folder = output is not None and (os.path.isdir(output) or not pathlib.Path(output).suffix)
    if len(arguments) == len(sources) == 1 and not os.path.isdir(arguments[0]) and not folder:
        target = check_output("upscaled.png" if output is None else output)
        try_output(target)
        return {sources[0]: target}
    place = pathlib.Path("upscaled" if output is None else output)
    if place.exists() and not place.is_dir():
        raise RequestError(f"{place} is a file, and several pictures need a folder; give another --output")
    targets = {source: place / f"{source.stem}.{form}" for source in sources}
    for source, target in targets.items():
        other = next((other for other in targets if targets[other] == target and other != source), None)
        if other is not None:
            raise RequestError(f"{other} and {source} would both become {target}; rename one of them")
        if target.exists() and target.samefile(source):
            raise RequestError(f"{source} would be overwritten; give another folder as --output")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot make the folder {place}: {error.strerror}") from None
    for target in targets.values():
        try_output(target)
    return targets
