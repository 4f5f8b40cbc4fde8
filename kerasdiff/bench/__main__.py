"""python -m kerasdiff.bench: how fast kerasdiff is here, cold and warm, compared with others that do the same work."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kerasdiff import validation
from kerasdiff.bench.subjects import CONFIGS, PEERS, PRECISIONS, all_names, check_names, peer_subjects, with_controls
from kerasdiff.bench.task import Subject, Workload
from kerasdiff.cli.console import print_error, print_json, print_line
from kerasdiff.cli.program import Kind, Option, Program, output_options
from kerasdiff.errors import RequestError

if TYPE_CHECKING:
    from kerasdiff.bench.run import Benchmark
    from kerasdiff.models.config import ModelConfig

_FIELDS = {field.name: field for field in dataclasses.fields(Workload)}
_KINDS: dict[Any, Kind] = {"str": "string", "int": "integer", "float": "number"}
# Of Workload's fields, those whose default is the model's.
_BY_MODEL = ("height", "width")


def _field(name: str, text: str, placeholder: str = "") -> Option:
    """The option of a field of `Workload`."""
    field = _FIELDS[name]
    return Option(_KINDS[field.type], name, None if name in _BY_MODEL else field.default, text, placeholder)


def _names(name: str, default: Sequence[str] | None, text: str) -> Option:
    return Option("list", name, None if default is None else list(default), text, "NAME[,NAME...]")


PROGRAM = Program(
    name="kerasdiff.bench",
    about="measures how fast kerasdiff is here, cold and warm, compared with others that do the same work; each row of "
    "the table has processes of its own.",
    usage="python -m kerasdiff.bench [--flag=value ...]",
    examples="""\
python -m kerasdiff.bench --height=256 --width=256 --num_steps=10
python -m kerasdiff.bench --model=tiny --weights=pretrained --peers=""",
    groups={
        "what is measured": (
            _names("configs", CONFIGS, "Configurations of kerasdiff; empty for none."),
            _names("peers", tuple(PEERS), "What kerasdiff is compared with; empty for none."),
            _names(
                "peer_precisions",
                None,
                f"Precisions of the peers: {', '.join(PRECISIONS)}. Default: float32 and the device's half precision.",
            ),
            _names("rows", None, "Only these rows of the table, such as 'kerasdiff auto,keras_cv xla'."),
        ),
        "workload": (
            _field("model", "As in python -m kerasdiff.", "MODEL"),
            _field("weights", "The model's weights; random needs no download.", "random|pretrained"),
            _field("prompt", "What to draw."),
            _field("batch_size", "Images per run."),
            _field("num_steps", "DDIM steps."),
            _field("height", "Height in pixels. Default: the model's own."),
            _field("width", "Width in pixels. Default: the model's own."),
            _field("guidance_scale", "Weight of the prompt; 1 switches guidance off."),
            _field("spacing", "Which noise levels the steps visit; distilled models have trailing.", "SPACING"),
            Option("switch", "control", False, "Rows with a ControlNet, of random weights, beside those without."),
            _field("vae", "Autoencoder in place of the model's own, such as taesd.", "VAE"),
        ),
        "processes": (
            _field("runs", "Warm runs per process."),
            _field("timeout", "Seconds that one process may take."),
            Option("integer", "rounds", 3, "How often a process of each row is started; rows take turns."),
            Option("integer", "first_rounds", 1, "Rounds that also time a start from an empty cache."),
            Option("switch", "prepare", False, "Write the files that rows read, and measure nothing."),
            Option("switch", "resume", False, "Keep the processes in results.json that an earlier run finished."),
        ),
        "files": (
            Option(
                "string", "output", "bench", "Folder of results.json, table.md, plot.png, images and logs.", "FOLDER"
            ),
            Option(
                "string",
                "work",
                None,
                "Folder of the peers' checkpoints, gigabytes that are written once. Default: work in --output.",
                "FOLDER",
            ),
        ),
        "output": output_options("Print the contents of results.json instead of a table.", True),
    },
    status_1="stdout cannot be written to, or files could not be prepared",
    positional=False,
)


def main(_: list[str]) -> int:
    """Measures; returns 0, or 130 or 143 if it was interrupted."""
    configs, peers = _chosen()
    for name, lowest in (("runs", 1), ("rounds", 1), ("first_rounds", 0)):
        validation.integer(name, PROGRAM.values[name].value, lowest)
    values: dict[str, Any] = {name: PROGRAM.values[name].value for name in _FIELDS}
    workload = Workload(**values)
    if validation.real("timeout", workload.timeout, 0) == 0:
        raise RequestError("timeout=0 leaves no time for anything; give seconds")
    from kerasdiff.bench.checkpoint_files import open_checkpoint
    from kerasdiff.bench.ours import request_of

    config = open_checkpoint(workload).config
    if config.family == "sdxl_refiner":
        raise RequestError(f"model={workload.model} refines pictures, and what is measured is text to image; use sdxl")
    request = request_of(config, workload, workload.num_steps)
    workload = dataclasses.replace(workload, height=request.height, width=request.width)
    output = _folder("output", PROGRAM.values.output)
    work = output / "work" if PROGRAM.values.work is None else _folder("work", PROGRAM.values.work)

    from kerasdiff.bench.report import table, write_report
    from kerasdiff.bench.run import Benchmark

    benchmark = Benchmark(workload, output, work)
    if PROGRAM.values.prepare:
        return _prepared(benchmark, configs, peers, config)
    if PROGRAM.values.resume:
        benchmark.resume()
    interrupted = not _measured(benchmark, configs, peers, config)
    if interrupted and not benchmark.answers:
        print_error("kerasdiff.bench: interrupted before anything was finished")
        return PROGRAM.signals.exit_code
    results = benchmark.write()
    write_report(results, output)
    if PROGRAM.json:
        print_json(results)
    else:
        print_line(table(results))
    if interrupted:
        print_error(f"kerasdiff.bench: interrupted; rerun with --resume to continue in {output}")
    return PROGRAM.signals.exit_code if interrupted else 0


def _chosen() -> tuple[list[str], list[str]]:
    """Configurations and peers that have a row."""
    configs, peers = PROGRAM.values.configs, PROGRAM.values.peers
    check_names("configs", configs, CONFIGS)
    check_names("peers", peers, tuple(PEERS))
    if PROGRAM.values.peer_precisions is not None:
        check_names("peer_precisions", PROGRAM.values.peer_precisions, PRECISIONS)
    if PROGRAM.values.rows is not None:
        check_names("rows", PROGRAM.values.rows, [*(f"kerasdiff {config}" for config in CONFIGS), *all_names(PEERS)])
        configs = [config for config in configs if f"kerasdiff {config}" in PROGRAM.values.rows]
        peers = [peer for peer in peers if set(all_names([peer])) & set(PROGRAM.values.rows)]
    if not configs and not peers:
        raise RequestError("no row is left of configs, peers and rows: there is nothing to measure")
    return configs, peers


def _prepared(benchmark: Benchmark, configs: list[str], peers: list[str], config: ModelConfig) -> int:
    """Writes the files of all rows; returns 1 if some could not be written."""
    from kerasdiff.runtime import backend

    subjects = _subjects(benchmark, configs, peers, config, gpu=bool(backend.devices()))
    failed = benchmark.prepare(subjects, PROGRAM.progress)
    for name, reason in (benchmark.absent | failed).items():
        print_error(f"kerasdiff.bench: {name}: {reason}")
    return 1 if failed else 0


def _subjects(
    benchmark: Benchmark, configs: list[str], peers: list[str], config: ModelConfig, gpu: bool
) -> list[Subject]:
    """What has a row; the benchmark is told what has none."""
    from kerasdiff.bench.ours import our_subjects

    others, benchmark.absent = peer_subjects(peers, config, benchmark.workload, gpu, PROGRAM.values.peer_precisions)
    subjects = [*our_subjects(configs, gpu, config.unet.large), *others]
    rows = PROGRAM.values.rows
    chosen = [subject for subject in subjects if rows is None or subject.name in rows]
    return with_controls(chosen, benchmark.workload.control)


def _measured(benchmark: Benchmark, configs: list[str], peers: list[str], config: ModelConfig) -> bool:
    """Returns whether it came to its end; what was finished is in the benchmark in any case."""
    try:
        subjects = _subjects(benchmark, configs, peers, config, benchmark.gpu)
        benchmark.run(subjects, PROGRAM.values.rounds, PROGRAM.values.first_rounds, PROGRAM.progress)
    except KeyboardInterrupt:
        return False
    return True


def _folder(name: str, value: str) -> pathlib.Path:
    folder = pathlib.Path(value).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{name}={value}: {error.strerror or error}") from None
    return folder


if __name__ == "__main__":
    PROGRAM.run(main)
