"""What python -m kerasdiff does."""

from __future__ import annotations

import logging
import pathlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from kerasdiff import images, metadata, validation
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.cli import arguments as asked
from kerasdiff.cli import options as flags
from kerasdiff.cli import output
from kerasdiff.cli.options import PROGRAM
from kerasdiff.cli.program import complain
from kerasdiff.errors import RequestError
from kerasdiff.images.writer import check_output, numbered, write
from kerasdiff.request import make_request
from kerasdiff.result import Result
from kerasdiff.runtime import backend
from kerasdiff.runtime.precision import check
from kerasdiff.runtime.tf_setup import import_tensorflow, inference_only

if TYPE_CHECKING:
    from kerasdiff.generator import Generator

_LOG = logging.getLogger("kerasdiff")
# What --replay does not take from the picture.
_WITH_REPLAY = ("replay", "image", "mask", "output", "grid", "metadata", "json", "progress", "verbosity")


def draw(prompts: list[str]) -> int:
    """Does what the flags say, and gives the exit status.

    Raises:
        KerasdiffError: it cannot be done.
        KeyboardInterrupt: it was ended; what is finished is saved.
    """
    if flags.LIST_SAMPLERS.value:
        output.tell_samplers(PROGRAM.json)
        return 0
    if flags.PROMPTS.value is not None or flags.OUTPUT_DIR.value is not None or flags.FORMAT.value is not None:
        return _carry_out(prompts)
    _check_targets()
    if flags.REPLAY.value is not None:
        _replay(flags.REPLAY.value, prompts)
        return 0
    if not prompts:
        raise RequestError(f"there is no prompt; usage: {PROGRAM.usage}; --help lists the flags")
    # All that can be wrong is found out before TensorFlow is imported.
    check(flags.PRECISION.value, asked.jit_compile())
    model = open_model(flags.MODEL.value, **asked.source())
    arguments = {"seed": asked.seed(), **asked.arguments()}
    request = make_request(model.config, prompts, batch_size=flags.BATCH_SIZE.value, **arguments)
    generator = _load()
    if flags.PLAN.value:
        size = {"height": request.height, "width": request.width}
        plan = generator.plan(len(request), **size, guidance=request.guided, exact=request.exact)
        output.tell_plan(plan, PROGRAM.json)
        return 0
    PROGRAM.ending.wait()
    results = generator.each(request, callback=lambda *_: PROGRAM.ending.check(), progress=PROGRAM.progress)
    _save(results, len(request))
    _LOG.debug("seconds: %s", ", ".join(f"{name} {seconds:.2f}" for name, seconds in generator.times.items()))
    return 0


def _start(frozen: bool) -> None:
    """Imports and starts TensorFlow for a process that only draws, unless it is there already.

    Args:
        frozen: whether weights are taken to be frozen.
    """
    if frozen and "tensorflow" not in sys.modules:
        inference_only()
    import_tensorflow()
    backend.devices()


def _load() -> Generator:
    with PROGRAM.starting():
        _start(frozen=True)
        from kerasdiff.generator import Generator

        generator = Generator(
            flags.MODEL.value, **asked.source(), precision=flags.PRECISION.value, jit_compile=asked.jit_compile()
        )
    if PROGRAM.progress and PROGRAM.verbosity == "warning":  # with info it is logged
        complain(f"{generator.name}: {generator.execution}")
        if generator.config.safety_checker is not None and flags.SAFETY.value is None:
            complain("images that its safety filter flags are black; --safety=flag or off shows them")
    return generator


def _carry_out(prompts: list[str]) -> int:
    from kerasdiff.batch.job import make_job
    from kerasdiff.cli.batch_command import rows_of, run_batch
    from kerasdiff.images.writer import FORMATS

    if flags.OUTPUT_DIR.value is None:
        given = "prompts" if flags.PROMPTS.value is not None else "format"
        raise RequestError(f"--{given} is about a folder of images; give --output_dir as well")
    alone = (flags.OUTPUT, flags.GRID, flags.GRID_COLUMNS, flags.REPLAY, flags.PLAN)
    others = [flag.name for flag in alone if flag.present]
    if others:
        raise RequestError(f"--output_dir does not go with --{others[0]}; leave one of them out")
    if flags.METADATA.value == "off":
        raise RequestError("--output_dir does not go with --metadata=off: a job knows its images by what they say")
    rows = rows_of(prompts, flags.PROMPTS.value, asked.seed(), flags.BATCH_SIZE.value, PROGRAM.usage)
    check(flags.PRECISION.value, asked.jit_compile())
    model = {"model": flags.MODEL.value, **asked.source()}
    job = make_job(rows, model, asked.arguments(), flags.BATCH_SIZE.value, flags.FORMAT.value or FORMATS[0])
    job.check(open_model(flags.MODEL.value, **asked.source()).config)
    return run_batch(job, flags.OUTPUT_DIR.value, _load, PROGRAM)


def _check_targets() -> None:
    for target in (flags.OUTPUT.value, flags.GRID.value):
        if target is not None:
            check_output(target)
    if flags.GRID_COLUMNS.value is not None:
        validation.integer("grid_columns", flags.GRID_COLUMNS.value, 1)
        if flags.GRID.value is None:
            raise RequestError("--grid_columns is about the sheet of all images; give --grid as well")


def _replay(path: str, prompts: list[str]) -> None:
    if prompts:
        raise RequestError("--replay takes the prompt from the picture; leave the prompt out")
    given = [name for name in PROGRAM.values if PROGRAM.values[name].present and name not in _WITH_REPLAY]
    if given:
        raise RequestError(f"--replay takes everything from the picture; leave --{given[0]} out")
    frozen = metadata.read(path).inference_only
    with PROGRAM.starting():
        _start(frozen)
        from kerasdiff.api import replay
    _save([replay(path, **asked.pictures(), progress=PROGRAM.progress)], 1)


def _save(results: Iterable[Result], count: int) -> None:
    """Saves images as they are finished, and tells of each."""
    ones = (result.only(number) for result in results for number in range(len(result)))
    drawn = []
    for path, one in zip(numbered(pathlib.Path(flags.OUTPUT.value), count), ones, strict=True):
        one.save(path, metadata=flags.METADATA.value == "on")
        with tqdm.external_write_mode(file=sys.stdout):  # clears the progress bar meanwhile
            output.tell_image(path, one, PROGRAM.json)
        if flags.GRID.value is not None:
            drawn.append(one.images)
        PROGRAM.ending.check()
    if flags.GRID.value is not None:
        columns = flags.GRID_COLUMNS.value
        sheet = images.grid(np.concatenate(drawn), cols=None if columns is None else min(columns, count))
        output.tell_grid(write(sheet, flags.GRID.value), PROGRAM.json)
