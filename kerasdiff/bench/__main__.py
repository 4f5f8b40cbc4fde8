"""python -m kerasdiff.bench: how fast kerasdiff is here, cold and warm, beside others that do the same work."""

from __future__ import annotations

import pathlib
import warnings
from typing import TYPE_CHECKING

from absl import flags

from kerasdiff import validation
from kerasdiff.bench.case import Settings
from kerasdiff.bench.subjects import CONFIGS, PEERS, PRECISIONS, all_names, check_names, peer_rows
from kerasdiff.cli.program import Program, complain, printed_flags, tell, tell_json
from kerasdiff.errors import RequestError

if TYPE_CHECKING:
    from kerasdiff.bench.run import Benchmark
    from kerasdiff.models.config import ModelConfig
    from kerasdiff.request import Request

_DEFAULTS = Settings()

_WHO = flags.FlagValues()
_CONFIGS = flags.DEFINE_list(
    "configs", list(CONFIGS), "<NAME[,NAME...]>: Rows of kerasdiff; empty for none.", flag_values=_WHO
)
_PEERS = flags.DEFINE_list(
    "peers", list(PEERS), "<NAME[,NAME...]>: What it is compared with; empty for none.", flag_values=_WHO
)
_PEER_PRECISIONS = flags.DEFINE_list(
    "peer_precisions",
    None,
    f"<NAME[,NAME...]>: Of the peers: {', '.join(PRECISIONS)}; float32 and the device's half precision if not given.",
    flag_values=_WHO,
)
_ROWS = flags.DEFINE_list(
    "rows",
    None,
    "<NAME[,NAME...]>: Only these of all rows, such as 'kerasdiff auto,keras_cv xla'.",
    flag_values=_WHO,
)

_WORK_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", _DEFAULTS.model, "<MODEL>: As in python -m kerasdiff.", flag_values=_WORK_FLAGS)
_WEIGHTS = flags.DEFINE_string(
    "weights",
    _DEFAULTS.weights,
    "<random|pretrained>: The model's weights; random needs no download.",
    flag_values=_WORK_FLAGS,
)
_PROMPT = flags.DEFINE_string("prompt", _DEFAULTS.prompt, "What to draw.", flag_values=_WORK_FLAGS)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Images in a run.", flag_values=_WORK_FLAGS)
_NUM_STEPS = flags.DEFINE_integer("num_steps", _DEFAULTS.num_steps, "Steps of DDIM.", flag_values=_WORK_FLAGS)
_HEIGHT = flags.DEFINE_integer("height", None, "Pixels; the model's own height if not given.", flag_values=_WORK_FLAGS)
_WIDTH = flags.DEFINE_integer("width", None, "Pixels; the model's own width if not given.", flag_values=_WORK_FLAGS)
_GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale",
    _DEFAULTS.guidance_scale,
    "Weight of the prompt; 1 switches guidance off.",
    flag_values=_WORK_FLAGS,
)

_TURNS = flags.FlagValues()
_RUNS = flags.DEFINE_integer("runs", _DEFAULTS.runs, "Warm runs in each process.", flag_values=_TURNS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 3, "How often every row's process is started; rows take turns.", flag_values=_TURNS
)
_FIRST_ROUNDS = flags.DEFINE_integer(
    "first_rounds", 1, "Rounds in which caches are emptied before, to time that too.", flag_values=_TURNS
)
_TIMEOUT = flags.DEFINE_float("timeout", _DEFAULTS.timeout, "Seconds that one process may take.", flag_values=_TURNS)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Keep processes that finished earlier, in results.json.", flag_values=_TURNS
)

_FILES = flags.FlagValues()
_OUTPUT = flags.DEFINE_string(
    "output", "bench", "<FOLDER>: Where results.json, table.md, plot.png, images and logs go.", flag_values=_FILES
)
_WORK = flags.DEFINE_string(
    "work",
    None,
    "<FOLDER>: Where gigabytes that are written for the peers once go; work in --output if not given.",
    flag_values=_FILES,
)

PROGRAM = Program(
    name="kerasdiff.bench",
    about="measures how fast kerasdiff is here, cold and warm, beside others that do the same work; each row of the "
    "table is a process of its own.",
    usage="python -m kerasdiff.bench [--flag=value ...]",
    examples="""\
python -m kerasdiff.bench --height=256 --width=256 --num_steps=10 --output=out/bench
python -m kerasdiff.bench --model=tiny --weights=pretrained --peers= --output=out/bench""",
    groups={
        "what is measured": _WHO,
        "the work": _WORK_FLAGS,
        "processes": _TURNS,
        "files": _FILES,
        "what is printed": printed_flags("Print the results, as results.json has them, instead of a table.", True),
    },
    status_1="stdout cannot be written to",
)


def main(arguments: list[str]) -> int:
    """Measures; 0, or 130 and 143 if it was ended."""
    if arguments:
        raise RequestError(f"{arguments[0]!r} is not a flag; usage: {PROGRAM.usage}; --help lists the flags")
    configs, peers = _chosen()
    for flag in (_RUNS, _ROUNDS):
        validation.integer(flag.name, flag.value, 1)
    validation.integer(_FIRST_ROUNDS.name, _FIRST_ROUNDS.value, 0)
    if validation.real(_TIMEOUT.name, _TIMEOUT.value, 0) == 0:
        raise RequestError("timeout=0 leaves no time for anything; give seconds")
    from kerasdiff.checkpoints.resolve import open_model

    config = open_model(_MODEL.value, _WEIGHTS.value).config
    settings = _settings(_request(config))
    output = _folder("output", _OUTPUT.value)
    work = output / "work" if _WORK.value is None else _folder("work", _WORK.value)

    from kerasdiff.bench.report import table, write_report
    from kerasdiff.bench.run import Benchmark

    benchmark = Benchmark(settings, output, work)
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
        complain(f"kerasdiff.bench: interrupted; --resume goes on from {output}")
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
    """Whether it came to its end; what was finished is in the benchmark in any case."""
    from kerasdiff.bench import ours

    try:
        gpu = benchmark.gpu
        others, benchmark.absent = peer_rows(peers, config, benchmark.settings, gpu, _PEER_PRECISIONS.value)
        rows = [*ours.rows(configs, gpu, config.unet.large), *others]
        if _ROWS.value is not None:
            rows = [row for row in rows if row.name in _ROWS.value]
        benchmark.run(rows, _ROUNDS.value, _FIRST_ROUNDS.value, PROGRAM.progress)
    except KeyboardInterrupt:
        return False
    return True


def _request(config: ModelConfig) -> Request:
    """The package's own checks of what will be asked of it."""
    from kerasdiff.request import make_request

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sampler is the one that all can do, not the best for few steps
        return make_request(
            config,
            _PROMPT.value,
            batch_size=_BATCH_SIZE.value,
            height=_HEIGHT.value,
            width=_WIDTH.value,
            num_steps=_NUM_STEPS.value,
            guidance_scale=_GUIDANCE_SCALE.value,
            sampler="ddim",
            spacing="keras_cv",
            seed=0,
        )


def _settings(request: Request) -> Settings:
    return Settings(
        model=_MODEL.value,
        weights=_WEIGHTS.value,
        prompt=_PROMPT.value,
        batch_size=_BATCH_SIZE.value,
        num_steps=request.num_steps,
        height=request.height,
        width=request.width,
        guidance_scale=_GUIDANCE_SCALE.value,
        runs=_RUNS.value,
        timeout=_TIMEOUT.value,
    )


def _folder(name: str, value: str) -> pathlib.Path:
    folder = pathlib.Path(value).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{name}={value}: {error.strerror or error}") from None
    return folder


if __name__ == "__main__":
    PROGRAM.run(main)
