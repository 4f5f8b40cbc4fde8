"""python -m kerasdiff.bench: how fast kerasdiff is here, cold and warm, beside others that do the same work."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import app, flags

from kerasdiff import checks
from kerasdiff.bench.job import Settings
from kerasdiff.bench.rows import CONFIGS, PEERS, PRECISIONS, all_names, check_names, peer_rows
from kerasdiff.command_line import parser
from kerasdiff.errors import KerasdiffError, RequestError
from kerasdiff.request import Request, make_request
from kerasdiff.weights.presets import open_model

if TYPE_CHECKING:
    from kerasdiff.bench.run import Benchmark
    from kerasdiff.models.config import ModelConfig

_DEFAULTS = Settings()
_MODEL = flags.DEFINE_string("model", _DEFAULTS.model, "As in python -m kerasdiff.")
_WEIGHTS = flags.DEFINE_string("weights", _DEFAULTS.weights, "random (no download), or pretrained.")
_CONFIGS = flags.DEFINE_list("configs", list(CONFIGS), f"Rows of kerasdiff: {', '.join(CONFIGS)}.")
_PEERS = flags.DEFINE_list("peers", list(PEERS), f"What it is compared with: {', '.join(PEERS)}; empty for none.")
_PEER_PRECISIONS = flags.DEFINE_list(
    "peer_precisions",
    None,
    f"Of the peers: {', '.join(PRECISIONS)}; float32 and the device's half precision if not given.",
)
_ROWS = flags.DEFINE_list("rows", None, "Only these of all rows, by name, such as 'kerasdiff auto,keras_cv xla'.")
_PROMPT = flags.DEFINE_string("prompt", _DEFAULTS.prompt, "What to draw.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Images in a run.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", _DEFAULTS.num_steps, "Steps of DDIM.")
_HEIGHT = flags.DEFINE_integer("height", None, "Pixels; the model's own size if not given.")
_WIDTH = flags.DEFINE_integer("width", None, "Pixels; the model's own size if not given.")
_GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", _DEFAULTS.guidance_scale, "1 switches guidance off.")
_RUNS = flags.DEFINE_integer("runs", _DEFAULTS.runs, "Warm runs in each process.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often every row's process is started; rows take turns.")
_FIRST_ROUNDS = flags.DEFINE_integer("first_rounds", 1, "Rounds in which caches are emptied before, to time that too.")
_TIMEOUT = flags.DEFINE_float("timeout", _DEFAULTS.timeout, "Seconds that one process may take.")
_OUTPUT = flags.DEFINE_string("output", "bench", "Folder of results.json, table.md, plot.png, images and logs.")
_WORK = flags.DEFINE_string(
    "work", None, "Folder of what is written for the peers once, gigabytes; OUTPUT/work if not given."
)
_RESUME = flags.DEFINE_bool("resume", False, "Whether processes that finished earlier, in results.json, are kept.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Whether to show a progress bar.")

_USAGE = "usage: python -m kerasdiff.bench [--flag=value ...]; --help lists the flags"
_parse = parser("kerasdiff.bench", _USAGE)


def main(argv: list[str]) -> int:
    """Measures; 0, 2 with one line on stderr for a wrong argument, 130 if interrupted."""
    try:
        return _bench(argv[1:])
    except KerasdiffError as error:
        print(f"kerasdiff.bench: {error}", file=sys.stderr)
        return 2


def _bench(arguments: list[str]) -> int:
    if arguments:
        raise RequestError(f"{arguments[0]!r} is not a flag; {_USAGE}")
    configs, peers = _chosen()
    for flag in (_RUNS, _ROUNDS):
        checks.integer(flag.name, flag.value, 1)
    checks.integer(_FIRST_ROUNDS.name, _FIRST_ROUNDS.value, 0)
    if checks.real(_TIMEOUT.name, _TIMEOUT.value, 0) == 0:
        raise RequestError("timeout=0 leaves no time for anything; give seconds")
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
        print("kerasdiff.bench: interrupted before anything was finished", file=sys.stderr)
        return 130
    results = benchmark.write()
    write_report(results, output)
    print(table(results))
    if interrupted:
        print(f"kerasdiff.bench: interrupted; --resume goes on from {output}", file=sys.stderr)
    return 130 if interrupted else 0


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
        with _ended_by_signal():
            gpu = benchmark.gpu
            others, benchmark.absent = peer_rows(peers, config, benchmark.settings, gpu, _PEER_PRECISIONS.value)
            rows = [*ours.rows(configs, gpu, config.unet.large), *others]
            if _ROWS.value is not None:
                rows = [row for row in rows if row.name in _ROWS.value]
            benchmark.run(rows, _ROUNDS.value, _FIRST_ROUNDS.value, _PROGRESS.value)
    except KeyboardInterrupt:
        return False
    return True


def _request(config: ModelConfig) -> Request:
    """The package's own checks of what will be asked of it."""
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


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does: nothing that was started is left behind."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
