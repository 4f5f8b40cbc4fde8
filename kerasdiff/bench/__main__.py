"""python -m kerasdiff.bench: how fast kerasdiff is here, cold and warm, compared with others that do the same work."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from kerasdiff import validation
from kerasdiff.bench.subjects import CONFIGS, PEERS, PRECISIONS, all_names, check_names, peer_subjects
from kerasdiff.bench.task import Workload
from kerasdiff.cli.program import Program, complain, printed_flags, tell, tell_json
from kerasdiff.errors import RequestError

if TYPE_CHECKING:
    from kerasdiff.bench.run import Benchmark
    from kerasdiff.models.config import ModelConfig

_FIELDS = {field.name: field for field in dataclasses.fields(Workload)}
_DEFINE: dict[Any, Any] = {"str": flags.DEFINE_string, "int": flags.DEFINE_integer, "float": flags.DEFINE_float}
# Of Workload's fields, those whose default is the model's.
_BY_MODEL = ("height", "width")


def _workload_flags(**helps: str) -> flags.FlagValues:
    """A group of flags that are fields of `Workload`."""
    group = flags.FlagValues()
    for name, text in helps.items():
        field = _FIELDS[name]
        _DEFINE[field.type](name, None if name in _BY_MODEL else field.default, text, flag_values=group)
    return group


_SUBJECT_FLAGS = flags.FlagValues()


def _names_flag(name: str, default: list[str] | None, text: str) -> flags.FlagHolder[Any]:
    return flags.DEFINE_list(name, default, f"<NAME[,NAME...]>: {text}", flag_values=_SUBJECT_FLAGS)


_CONFIGS = _names_flag("configs", list(CONFIGS), "Configurations of kerasdiff; empty for none.")
_PEERS = _names_flag("peers", list(PEERS), "What kerasdiff is compared with; empty for none.")
_PEER_PRECISIONS = _names_flag(
    "peer_precisions",
    None,
    f"Precisions of the peers: {', '.join(PRECISIONS)}. Default: float32 and the device's half precision.",
)
_ROWS = _names_flag("rows", None, "Only these rows of the table, such as 'kerasdiff auto,keras_cv xla'.")

_WORKLOAD_FLAGS = _workload_flags(
    model="<MODEL>: As in python -m kerasdiff.",
    weights="<random|pretrained>: The model's weights; random needs no download.",
    prompt="What to draw.",
    batch_size="Images per run.",
    num_steps="DDIM steps.",
    height="Height in pixels. Default: the model's own.",
    width="Width in pixels. Default: the model's own.",
    guidance_scale="Weight of the prompt; 1 switches guidance off.",
)

_PROCESS_FLAGS = _workload_flags(runs="Warm runs per process.", timeout="Seconds that one process may take.")
_ROUNDS = flags.DEFINE_integer(
    "rounds", 3, "How often a process of each row is started; rows take turns.", flag_values=_PROCESS_FLAGS
)
_FIRST_ROUNDS = flags.DEFINE_integer(
    "first_rounds", 1, "Rounds that also time a start from an empty cache.", flag_values=_PROCESS_FLAGS
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Keep the processes in results.json that an earlier run finished.", flag_values=_PROCESS_FLAGS
)

_FILE_FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string(
    "output", "bench", "<FOLDER>: Folder of results.json, table.md, plot.png, images and logs.", flag_values=_FILE_FLAGS
)
_WORK = flags.DEFINE_string(
    "work",
    None,
    "<FOLDER>: Folder of the peers' checkpoints, gigabytes that are written once. Default: work in --output.",
    flag_values=_FILE_FLAGS,
)

PROGRAM = Program(
    name="kerasdiff.bench",
    about="measures how fast kerasdiff is here, cold and warm, compared with others that do the same work; each row of "
    "the table has processes of its own.",
    usage="python -m kerasdiff.bench [--flag=value ...]",
    examples="""\
python -m kerasdiff.bench --height=256 --width=256 --num_steps=10 --output=out/bench
python -m kerasdiff.bench --model=tiny --weights=pretrained --peers= --output=out/bench""",
    groups={
        "what is measured": _SUBJECT_FLAGS,
        "workload": _WORKLOAD_FLAGS,
        "processes": _PROCESS_FLAGS,
        "files": _FILE_FLAGS,
        "what is printed": printed_flags("Print the contents of results.json instead of a table.", True),
    },
    status_1="stdout cannot be written to",
)


def main(arguments: list[str]) -> int:
    """Measures; returns 0, or 130 or 143 if it was interrupted."""
    if arguments:
        raise RequestError(f"{arguments[0]!r} is not a flag; usage: {PROGRAM.usage}; --help lists the flags")
    configs, peers = _chosen()
    for name, lowest in (("runs", 1), ("rounds", 1), ("first_rounds", 0)):
        validation.integer(name, PROGRAM.values[name].value, lowest)
    values: dict[str, Any] = {name: PROGRAM.values[name].value for name in _FIELDS}
    workload = Workload(**values)
    if validation.real("timeout", workload.timeout, 0) == 0:
        raise RequestError("timeout=0 leaves no time for anything; give seconds")
    from kerasdiff.bench.ours import request_of
    from kerasdiff.checkpoints.resolve import open_model

    config = open_model(workload.model, workload.weights).config
    request = request_of(config, workload, workload.num_steps)
    workload = dataclasses.replace(workload, height=request.height, width=request.width)
    output = _folder("output", _OUTPUT.value)
    work = output / "work" if _WORK.value is None else _folder("work", _WORK.value)

    from kerasdiff.bench.report import table, write_report
    from kerasdiff.bench.run import Benchmark

    benchmark = Benchmark(workload, output, work)
    if _RESUME.value:
        benchmark.resume()
    interrupted = not _measured(benchmark, configs, peers, config)
    if interrupted and not benchmark.results["rows"]:
        complain("kerasdiff.bench: interrupted before anything was finished")
        return PROGRAM.ending.exit_code
    results = benchmark.write()
    write_report(results, output)
    if PROGRAM.json:
        tell_json(results)
    else:
        tell(table(results))
    if interrupted:
        complain(f"kerasdiff.bench: interrupted; rerun with --resume to continue in {output}")
    return PROGRAM.ending.exit_code if interrupted else 0


def _chosen() -> tuple[list[str], list[str]]:
    """Configurations and peers that have a row."""
    configs, peers = _CONFIGS.value, _PEERS.value
    check_names("configs", configs, CONFIGS)
    check_names("peers", peers, tuple(PEERS))
    if _PEER_PRECISIONS.value is not None:
        check_names("peer_precisions", _PEER_PRECISIONS.value, PRECISIONS)
    if _ROWS.value is not None:
        check_names("rows", _ROWS.value, [*(f"kerasdiff {config}" for config in CONFIGS), *all_names(PEERS)])
        configs = [config for config in configs if f"kerasdiff {config}" in _ROWS.value]
        peers = [peer for peer in peers if set(all_names([peer])) & set(_ROWS.value)]
    if not configs and not peers:
        raise RequestError("no row is left of configs, peers and rows: there is nothing to measure")
    return configs, peers


def _measured(benchmark: Benchmark, configs: list[str], peers: list[str], config: ModelConfig) -> bool:
    """Returns whether it came to its end; what was finished is in the benchmark in any case."""
    from kerasdiff.bench.ours import our_subjects

    try:
        gpu = benchmark.gpu
        others, benchmark.absent = peer_subjects(peers, config, benchmark.workload, gpu, _PEER_PRECISIONS.value)
        subjects = [*our_subjects(configs, gpu, config.unet.large), *others]
        if _ROWS.value is not None:
            subjects = [subject for subject in subjects if subject.name in _ROWS.value]
        benchmark.run(subjects, _ROUNDS.value, _FIRST_ROUNDS.value, PROGRAM.progress)
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
