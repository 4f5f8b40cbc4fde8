"""Traceable rows in turns, each process fresh, and keeps what is finished on disk after every one."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from kerasdiff.bench import summary
from kerasdiff.bench.case import Job, Row, Settings
from kerasdiff.bench.checkpoint_files import latents_of
from kerasdiff.bench.flops import request_work
from kerasdiff.bench.process import run_job
from kerasdiff.bench.worker import IMAGES, LATENTS
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import RequestError

RESULTS = "results.json"
_PIECE = 2**24


@dataclasses.dataclass(frozen=True)
class Turn:
    """One process: a row in a round, with an empty cache ("first"), a filled one ("primed"), or without ("only")."""

    row: Row
    round: int
    kind: str


def turns(rows: Sequence[Row], rounds: int, first_rounds: int = 1) -> Iterator[Turn]:
    """All processes in their order: all rows once, then all rows again, so that drift hits all of them alike.

    Args:
        rows: of the table.
        rounds: how often.
        first_rounds: in how many of them, from the first one on, caches are emptied before.
    """
    for number in range(1, rounds + 1):
        for row in rows:
            if row.caches and number <= first_rounds:
                yield Turn(row, number, "first")
            yield Turn(row, number, "primed" if row.caches else "only")


class Benchmark:
    """Rows under measurement; `results` is always what is finished so far.

    Args:
        settings: the work.
        output: folder of `results.json`, the images and the logs.
        work: folder of the prepared files.
    """

    def __init__(self, settings: Settings, output: pathlib.Path, work: pathlib.Path | None = None) -> None:
        self.settings, self.output = settings, output
        self.work = output / "work" if work is None else work
        self.rows: list[Row] = []
        self.absent: dict[str, str] = {}
        self._told: dict[str, list[dict[str, Any]]] = {}
        self._probed: dict[str, Any] = {}
        self._turns: dict[str, int] = {}

    def resume(self) -> None:
        """Takes over the finished processes of an earlier run into the same folder.

        Raises:
            RequestError: it measured something else.
        """
        path = self.output / RESULTS
        if not path.exists():
            return
        earlier = json.loads(path.read_text())
        mine = dataclasses.asdict(self.settings)
        for name in mine.keys() - {"timeout"}:
            if earlier["settings"].get(name) != mine[name]:
                raise RequestError(
                    f"{path} was measured with {name}={earlier['settings'].get(name)!r}, not {mine[name]!r}; "
                    "give the same flags or another --output"
                )
        self._probed = {"machine": earlier["machine"], "ceilings": earlier["ceilings"]}
        finished = {row["name"]: [told for told in row["rounds"] if told["status"] == "ok"] for row in earlier["rows"]}
        self._told = {name: rounds for name, rounds in finished.items() if rounds}

    @property
    def gpu(self) -> bool:
        """Whether TensorFlow sees a GPU; asks a process of its own once."""
        return bool(self._probe()["machine"]["gpu"])

    def _probe(self) -> dict[str, Any]:
        if not self._probed:
            told = self._run(Job("probe", self.settings, None, str(self.work)), "probe")
            if told["status"] != "ok":
                raise RequestError(f"TensorFlow cannot be started here: {told['reason']}")
            self._probed = told
        return self._probed

    def run(self, rows: Sequence[Row], rounds: int = 1, first_rounds: int = 1, progress: bool = True) -> None:
        """Measures; a row that fails is left out of the later rounds, and the others go on."""
        self.rows, self._turns = list(rows), {"rounds": rounds, "first_rounds": first_rounds}
        self._probe()
        for folder in (self.output, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        todo = list(turns(rows, rounds, first_rounds))
        with tqdm(total=len(todo), disable=not progress, desc="bench", unit="process") as bar:
            for turn in todo:
                bar.set_description(f"{turn.row.name} (round {turn.round}, {turn.kind})")
                if not self._is_done(turn):
                    self._measure(turn)
                    self.write()
                bar.update()

    def _is_done(self, turn: Turn) -> bool:
        known = self._told.get(turn.row.name, [])
        failed = any(told["status"] != "ok" for told in known)
        return failed or any((told["round"], told["turn"]) == (turn.round, turn.kind) for told in known)

    def _measure(self, turn: Turn) -> None:
        cache = self.work / "caches" / turn.row.slug
        # A file beside the cache says that a process had it: some leave nothing in it.
        used = cache.with_name(f"{cache.name}.used")
        if turn.kind == "first" or not used.exists():
            shutil.rmtree(cache, ignore_errors=True)
            used.unlink(missing_ok=True)
        cache.mkdir(parents=True, exist_ok=True)
        # A first process warms the cache; warm runs are what the others are for.
        runs = 0 if turn.kind == "first" else self.settings.runs
        # Without a first process before it, a primed one finds nothing: then it is none.
        kind = "first" if turn.row.caches and not used.exists() else turn.kind
        job = Job("measure", self.settings, turn.row, str(self.work), str(cache), runs=runs)
        told = self._prepare(job)
        if told is None:
            _settle(job)
            told = self._run(job, f"{turn.row.slug}-{turn.round}-{turn.kind}")
        if told["status"] == "ok":
            used.touch()
        self._told.setdefault(turn.row.name, []).append({"round": turn.round, "turn": turn.kind, "kind": kind, **told})

    def _prepare(self, job: Job) -> dict[str, Any] | None:
        """Writes the files that a row reads, if they are not there; how that went wrong, or None."""
        assert job.row is not None
        if _folder(job).exists():
            return None
        told = self._run(dataclasses.replace(job, task="prepare"), f"{job.row.slug}-prepare")
        if told["status"] == "ok":
            return None
        return {**told, "reason": f"its files could not be prepared: {told['reason']}"}

    def _run(self, job: Job, name: str) -> dict[str, Any]:
        folder = self.output / "processes" / name
        folder.mkdir(parents=True, exist_ok=True)
        if job.task == "measure":
            np.save(folder / LATENTS, self._latents)
        environment = job.row.environment if job.row else {}
        return run_job(
            dataclasses.replace(job, output=str(folder)),
            {key: value.replace("{cache}", job.cache) for key, value in environment.items()},
        )

    @functools.cached_property
    def _latents(self) -> np.ndarray:
        return latents_of(self.settings)

    @functools.cached_property
    def _macs(self) -> float:
        return request_work(open_model(self.settings.model, "random").config, self.settings).total

    @property
    def results(self) -> dict[str, Any]:
        """What is finished so far, as it is in `results.json`."""
        ceilings = self._probed.get("ceilings", {})
        # In the order of the rows, then those that only an earlier run had.
        names = dict.fromkeys([*(row.name for row in self.rows if row.name in self._told), *self._told])
        rows = [summary.summarise(name, self._told[name], self.settings, self._macs, ceilings) for name in names]
        summary.add_ratios(rows)
        summary.add_differences(
            rows, {row["name"]: images for row in rows if (images := self._images(row)) is not None}
        )
        absent = [
            {**summary.summarise(name, [], self.settings, self._macs, {}), "status": "absent", "reason": reason}
            for name, reason in self.absent.items()
        ]
        return {
            "rows": [*rows, *absent],
            "absent": [{"name": name, "reason": reason} for name, reason in self.absent.items()],
            "settings": {**dataclasses.asdict(self.settings), **self._turns},
            "work": {"gmac": self._macs / 1e9},
            "ceilings": ceilings,
            "machine": self._probed.get("machine", {}),
        }

    def _images(self, row: dict[str, Any]) -> np.ndarray | None:
        slug = Row(row["name"], "").slug
        for told in row["rounds"]:
            path = self.output / "processes" / f"{slug}-{told['round']}-{told['turn']}" / IMAGES
            if told["status"] == "ok" and path.exists():
                with np.load(path) as file:
                    return file["images"]
        return None

    def write(self) -> dict[str, Any]:
        """Writes `results.json` under another name, then renames it: it is whole at any moment."""
        results = self.results
        path = self.output / RESULTS
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(results, indent=2) + "\n")
        draft.replace(path)
        return results


def run_rows(
    rows: Sequence[Row],
    settings: Settings,
    rounds: int = 1,
    output: str | os.PathLike[str] | None = None,
    *,
    first_rounds: int = 1,
    work: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures rows and gives the results, which are in `results.json` in `output` too.

    Args:
        rows: from `kerasdiff.bench.subjects`, or of your own.
        settings: the work.
        rounds: how often a fresh process of each row is started.
        output: folder; a temporary one, which is removed, if None.
        first_rounds: in how many rounds the caches are emptied before.
        work: folder of what is written for the subjects once, gigabytes; below `output` if None.
        progress: whether to show a progress bar on stderr.

    Example:
        ```python
        from kerasdiff.bench import Settings, our_rows, run_rows

        settings = Settings(model="tiny", height=128, width=128, num_steps=20)
        results = run_rows(our_rows(["auto", "xla"], gpu=False), settings, rounds=3, output="out")
        results["rows"][0]["warm_s"]
        ```
    """
    with tempfile.TemporaryDirectory() as temporary:
        folders = [None if place is None else pathlib.Path(place) for place in (output, work)]
        benchmark = Benchmark(settings, folders[0] or pathlib.Path(temporary), folders[1])
        benchmark.run(rows, rounds, first_rounds, progress)
        return benchmark.write()


def _folder(job: Job) -> pathlib.Path:
    """Where the files are that a row reads."""
    assert job.row is not None
    return pathlib.Path(importlib.import_module(job.row.module).folder(job))


def _settle(job: Job) -> None:
    """The same start for all: the disk has nothing left to write, and the system has the files in its memory."""
    if hasattr(os, "sync"):
        os.sync()
    for folder in (_folder(job), pathlib.Path(job.cache)):
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    while file.read(_PIECE):
                        pass
