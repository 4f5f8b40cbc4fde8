"""The commands generate and batch."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from kerasdiff import images, metadata, validation
from kerasdiff.adapters.library import try_files
from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.cli import output
from kerasdiff.cli.console import print_error
from kerasdiff.cli.options import BATCH, GENERATE, jit_compile, model_source, request_arguments
from kerasdiff.cli.program import Program
from kerasdiff.errors import RequestError
from kerasdiff.images.writer import check_output, numbered, try_output, write
from kerasdiff.request import make_request
from kerasdiff.request_arguments import APPROXIMATIONS
from kerasdiff.result import Result
from kerasdiff.runtime import backend
from kerasdiff.runtime.batch_sizer import take_back_notes
from kerasdiff.runtime.precision import check, choose_backend, is_available
from kerasdiff.runtime.tf_setup import import_tensorflow, inference_only

if TYPE_CHECKING:
    from kerasdiff.generator import Generator

_LOG = logging.getLogger("kerasdiff")
# What --replay does not take from the image.
_WITH_REPLAY = (
    *("replay", "model", "revision", "variant", "vae", "refiner", "image", "mask", "lora", "embedding", "upscale"),
    *("control", "hint", "image_prompt"),
    *("output", "grid", "metadata", "json", "progress", "verbosity"),
)
# What does not go with a folder of images.
_WITHOUT_FOLDER = ("output", "grid", "grid_columns", "replay", "plan")


def generate(prompts: list[str]) -> int:
    """Does what the options of `GENERATE` say, and returns the exit status; what is finished at a signal is saved."""
    values = GENERATE.values
    if values.list_samplers:
        output.print_samplers(GENERATE.json)
        return 0
    if values.output_dir is not None or values.prompts is not None or values.format is not None:
        _check_folder()
        return _run_job(GENERATE, prompts, values.prompts)
    _check_files()
    if values.replay is not None:
        _replay(values.replay, prompts)
        return 0
    if not prompts:
        raise RequestError(f"there is no prompt; usage: {GENERATE.usage}; --help lists the flags")
    # Whatever can be wrong is found out before TensorFlow is imported.
    check(values.precision, jit_compile(values), values.backend)
    checkpoint = open_model(values.model, **model_source(values))
    request = make_request(checkpoint.config, prompts, batch_size=values.batch_size, **request_arguments(values))
    try_files(request.loras, request.embeddings, request.upscale, None if request.hires is None else request.hires.file)
    output.try_models(request)
    _check_quotes(prompts)
    if not values.plan:
        _try_files(len(request))
        output.save_hints(request, check_output(values.output), GENERATE.json)
    generator = load_generator(GENERATE, checkpoint)
    if values.plan:
        sizes = ("height", "width", "tile", "exact", "hires", "upscale", "controls", "image_prompts", *APPROXIMATIONS)
        known = {name: getattr(request, name) for name in sizes}
        plan = generator.plan(len(request), **known, guidance=request.guided)
        plan_values = {"type": "plan", **dataclasses.asdict(plan), "peak": plan.peak}
        output.print_either(str(plan), plan_values, GENERATE.json)
        return 0
    GENERATE.signals.defer()
    results = generator.each(request, callback=lambda *_: GENERATE.signals.check(), progress=GENERATE.progress)
    _save(results, len(request))
    _LOG.debug("seconds: %s", ", ".join(f"{name} {seconds:.2f}" for name, seconds in generator.times.items()))
    return 0


def batch(files: list[str]) -> int:
    """Does what the options of `BATCH` say, and returns the exit status."""
    if len(files) != 1 or BATCH.values.output_dir is None:
        missing = "--output_dir is missing" if len(files) == 1 else "give one file of prompts"
        raise RequestError(f"{missing}; usage: {BATCH.usage}; --help lists the flags")
    return _run_job(BATCH, [], files[0])


def _run_job(program: Program, prompts: list[str], file: str | None) -> int:
    from kerasdiff.batch.job import make_job
    from kerasdiff.cli.batch_command import rows_of, run_batch
    from kerasdiff.images.writer import FORMATS

    values = program.values
    arguments = request_arguments(values)
    rows = rows_of(prompts, file, program.usage)
    if isinstance(arguments["seed"], list):
        raise RequestError("--output_dir takes one --seed, of the first image; a file of --prompts has one per row")
    check(values.precision, jit_compile(values), values.backend)
    source = model_source(values)
    job = make_job(rows, {"model": values.model, **source}, arguments, values.batch_size, values.format or FORMATS[0])
    checkpoint = open_model(values.model, **source)
    job.check(checkpoint.config)
    _check_quotes(prompts)
    load = functools.partial(load_generator, checkpoint=checkpoint, frozen=not job.changes_weights)
    return run_batch(job, values.output_dir, load, program)


def _check_quotes(prompts: list[str]) -> None:
    """Warns of what may have been one prompt, and is several because it was given without quotes, and of a file."""
    name = next(filter(os.path.isfile, prompts), None)
    if name is not None:
        flag = "prompts" if pathlib.Path(name).suffix.lower() in (".txt", ".csv", ".jsonl", ".parquet") else "image"
        warnings.warn(f"{validation.shown(name)} is taken as a prompt; the file is given as --{flag}=...", stacklevel=2)
    if len(prompts) > 1 and not any(" " in prompt for prompt in prompts):
        whole = " ".join(prompts).strip("'“”")
        warnings.warn(
            f"{len(prompts)} prompts of one word each; did you mean one prompt? It needs double quotes: "
            f'"{validation.line(whole)}"',
            stacklevel=2,
        )


def _start(program: Program, frozen: bool, name: str) -> None:
    """Imports and starts a backend unless it is there already, with weights taken to be frozen or not."""
    program.signals.before_exit(take_back_notes)
    if frozen and "tensorflow" not in sys.modules:
        inference_only()
    if name == "tensorflow":
        import_tensorflow()
    backend.of(name).devices()


def load_generator(program: Program, checkpoint: Checkpoint, frozen: bool = True) -> Generator:
    """A generator for requests that all have the same LoRAs, if weights are `frozen`."""
    values = program.values
    with program.starting():
        arguments = {"precision": values.precision, "jit_compile": jit_compile(values)}
        name = choose_backend(values.backend, **arguments)
        _start(program, frozen, name)
        from kerasdiff.generator import Generator

        generator = Generator(checkpoint, **arguments, backend=name)
    if program.progress and program.verbosity == "warning":  # with info it is logged
        print_error(f"{generator.name}: {generator.execution}")
        if generator.config.safety_checker is not None and values.safety is None:
            print_error("images that its safety filter flags are black; --safety=flag or off shows them")
    return generator


def _check_folder() -> None:
    """Checks options that go with --output_dir, or need it."""
    values = GENERATE.values
    if values.output_dir is None:
        raise RequestError(f"--{'format' if values.prompts is None else 'prompts'} needs --output_dir")
    others = [name for name in _WITHOUT_FOLDER if values[name].present]
    if others:
        raise RequestError(f"--output_dir does not go with --{others[0]}; leave one of them out")
    if values.metadata == "off":
        raise RequestError("--output_dir does not go with --metadata=off: a job knows its images by their metadata")


def _check_files() -> None:
    values = GENERATE.values
    for target in (values.output, values.grid):
        if target is not None:
            check_output(target)
    if values.grid_columns is not None:
        validation.integer("grid_columns", values.grid_columns, 1)
        if values.grid is None:
            raise RequestError("--grid_columns needs --grid")


def _try_files(count: int) -> None:
    """Finds out before the work whether so many images, and their grid, can be saved, each to a file of its own."""
    values = GENERATE.values
    try_output(values.output, count)
    if values.grid is not None:
        try_output(values.grid)
        images_too = {target.absolute() for target in numbered(check_output(values.output), count)}
        if check_output(values.grid).absolute() in images_too:
            raise RequestError(f"--grid={values.grid} is the file of an image, too; choose another name for the grid")


def _replay(path: str, prompts: list[str]) -> None:
    if prompts:
        raise RequestError("--replay takes the prompt from the image; leave the prompt out")
    given = [name for name in GENERATE.given() if name not in _WITH_REPLAY]
    if given:
        raise RequestError(f"--replay takes everything from the image; leave --{given[0]} out")
    _try_files(1)
    found = metadata.read_any(path)
    frozen = not isinstance(found, metadata.Receipt) or found.inference_only
    with GENERATE.starting():
        name = found.backend if isinstance(found, metadata.Receipt) else "auto"
        _start(GENERATE, frozen, name if is_available(name) else choose_backend("auto"))
        from kerasdiff.api import replay
    values = GENERATE.values
    model = values.model if values["model"].present else None
    names = ("image", "mask", "controls", "image_prompts", "loras", "embeddings", "upscale")
    arguments = {name: request_arguments(values)[name] for name in names}
    source = {name: values[name].value for name in ("revision", "variant", "vae", "refiner")}
    _save([replay(path, model=model, **source, **arguments, progress=GENERATE.progress)], 1)


def _save(results: Iterable[Result], count: int) -> None:
    """Saves images as they finish, and prints a line for each."""
    values = GENERATE.values
    singles = (result.only(number) for result in results for number in range(len(result)))
    sheet = []
    for path, single in zip(numbered(check_output(values.output), count), singles, strict=True):
        single.save(path, metadata=values.metadata == "on")
        with tqdm.external_write_mode(file=sys.stdout):  # clears the progress bar meanwhile
            output.print_image(path, single, GENERATE.json)
        if values.grid is not None:
            sheet.append(single.images)
        GENERATE.signals.check()
    if values.grid is not None:
        columns = values.grid_columns
        pixels = images.grid(np.concatenate(sheet), cols=None if columns is None else min(columns, count))
        grid = str(write(pixels, values.grid))
        output.print_either(grid, {"type": "grid", "path": grid}, GENERATE.json)
