"""Measures subjects in turns, each time in a fresh process, and saves what is finished after every one."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from kerasdiff.atomic_write import atomic_write
from kerasdiff.bench import summary
from kerasdiff.bench.checkpoint_files import folders_of, open_checkpoint
from kerasdiff.bench.flops import request_macs
from kerasdiff.bench.process import run_task
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import IMAGES, LATENTS, session_class
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.runtime.backend import of_keras
from kerasdiff.samplers.noise import TorchNoise

RESULTS = "results.json"
_CHUNK = 2**24


@dataclasses.dataclass(frozen=True)
class Turn:
    """One process of a subject, with an empty cache ("first"), a filled one ("primed"), or without a cache ("only")."""

    subject: Subject
    round: int
    kind: str

    @property
    def folder(self) -> str:
        """Name of the folder of its answer, images and log."""
        return f"{self.subject.slug}-{self.round}-{self.kind}"


def turns(subjects: Sequence[Subject], rounds: int, first_rounds: int = 1) -> Iterator[Turn]:
    """All processes in their order: each subject once, then all of them again, so that drift hits all of them alike.

    In the first `first_rounds` rounds caches are emptied before.
    """
    for number in range(1, rounds + 1):
        for subject in subjects:
            if subject.caches and number <= first_rounds:
                yield Turn(subject, number, "first")
            yield Turn(subject, number, "primed" if subject.caches else "only")


class Benchmark:
    """Subjects under measurement; `results` is always what is finished so far.

    `output` is the folder of `results.json`, the images and the logs, and `work` that of the prepared files. `probed`
    has "machine" and "ceilings" where they are known.
    """

    def __init__(
        self,
        workload: Workload,
        output: pathlib.Path,
        work: pathlib.Path | None = None,
        probed: dict[str, Any] | None = None,
    ) -> None:
        self.workload, self.output = workload, output
        self.work = output / "work" if work is None else work
        self.subjects: list[Subject] = []
        self.absent: dict[str, str] = {}
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self._rounds: dict[str, int] = {}
        if probed is not None:
            self.probed = probed

    def resume(self) -> None:
        """Takes over the finished processes of an earlier run into the same folder; raises if it measured otherwise."""
        path = self.output / RESULTS
        if not path.exists():
            return
        earlier = json.loads(path.read_text())
        for name, value in dataclasses.asdict(self.workload).items():
            measured = earlier["settings"].get(name, getattr(Workload, name))
            if name != "timeout" and measured != value:
                raise RequestError(
                    f"{path} was measured with {name}={measured!r}, not {value!r}; give the same flags or another "
                    "--output"
                )
        self.probed = {"machine": earlier["machine"], "ceilings": earlier["ceilings"]}
        for row in earlier["rows"]:
            if finished := [answer for answer in row["rounds"] if answer["status"] == "ok"]:
                self.answers[row["name"]] = finished

    @functools.cached_property
    def probed(self) -> dict[str, Any]:
        """What the device is and can do; a process of its own finds it out."""
        subject = Subject("probe", environment={"TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1"})
        answer = self._run(Task("probe", self.workload, subject, str(self.work)), "probe")
        if answer["status"] != "ok":
            raise RequestError(f"{of_keras()} cannot be started here: {answer['reason']}")
        return answer

    @property
    def gpu(self) -> bool:
        """Whether the backend sees a GPU."""
        return bool(self.probed["machine"]["gpu"])

    def run(self, subjects: Sequence[Subject], rounds: int = 1, first_rounds: int = 1, progress: bool = True) -> None:
        """Measures; a subject that fails is left out of the later rounds, and the others go on."""
        self.subjects, self._rounds = list(subjects), {"rounds": rounds, "first_rounds": first_rounds}
        _ = self.probed  # which raises where the backend cannot be started
        for folder in (self.output, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        todo = list(turns(subjects, rounds, first_rounds))
        with tqdm(total=len(todo), disable=not progress, desc="bench", unit="process") as bar:
            for turn in todo:
                bar.set_description(f"{turn.subject.name} (round {turn.round}, {turn.kind})")
                if not self._is_done(turn):
                    self._measure(turn)
                    self.write()
                bar.update()

    def prepare(self, subjects: Sequence[Subject], progress: bool = True) -> dict[str, str]:
        """Writes the files that subjects read and measures nothing; returns why some could not be written, by name."""
        failed = {}
        for subject in tqdm(subjects, disable=not progress, desc="bench", unit="row"):
            answer = self._prepare(Task("measure", self.workload, subject, str(self.work)))
            if answer["status"] != "ok":
                failed[subject.name] = str(answer["reason"])
        return failed

    def _is_done(self, turn: Turn) -> bool:
        return any(
            answer["status"] != "ok" or (answer["round"], answer["turn"]) == (turn.round, turn.kind)
            for answer in self.answers.get(turn.subject.name, [])
        )

    def _measure(self, turn: Turn) -> None:
        cache = self.work / "caches" / turn.subject.slug
        # A file beside the cache says that a process had it: some leave nothing in it.
        used = cache.with_name(f"{cache.name}.used")
        if turn.kind == "first" or not used.exists():
            shutil.rmtree(cache, ignore_errors=True)
            used.unlink(missing_ok=True)
        cache.mkdir(parents=True, exist_ok=True)
        # A first process fills the cache; warm runs are what the others are for.
        runs = 0 if turn.kind == "first" else self.workload.runs
        # Without a first process before it, a primed one finds an empty cache: then it is a first one.
        kind = "first" if turn.subject.caches and not used.exists() else turn.kind
        task = Task("measure", self.workload, turn.subject, str(self.work), str(cache), runs=runs)
        answer = self._prepare(task)
        if answer["status"] == "ok":
            _settle(task)
            answer = self._run(task, turn.folder)
        if answer["status"] == "ok":
            used.touch()
        answers = self.answers.setdefault(turn.subject.name, [])
        answers.append({"round": turn.round, "turn": turn.kind, "kind": kind, **answer})

    def _prepare(self, task: Task) -> dict[str, Any]:
        """Writes the files that a subject reads, unless they exist."""
        if all(folder.exists() for folder in folders_of(task, session_class(task.subject).folder(task))):
            return {"status": "ok"}
        answer = self._run(dataclasses.replace(task, action="prepare"), f"{task.subject.slug}-prepare")
        if answer["status"] != "ok":
            answer["reason"] = f"its files could not be prepared: {answer['reason']}"
        return answer

    def _run(self, task: Task, name: str) -> dict[str, Any]:
        folder = self.output / "processes" / name
        folder.mkdir(parents=True, exist_ok=True)
        if task.action == "measure":
            np.save(folder / LATENTS, self._latents)
        return run_task(
            dataclasses.replace(task, output=str(folder)),
            {key: value.replace("{cache}", task.cache) for key, value in task.subject.environment.items()},
        )

    @functools.cached_property
    def _config(self) -> ModelConfig:
        return open_checkpoint(self.workload, "random").config

    @functools.cached_property
    def _latents(self) -> np.ndarray:
        """The noise that every run starts from: unit variance, float32 (batch_size, h, w, C).

        It is torch's, as there are peers that cannot be given any and draw the same from its seeds.
        """
        factor, channels = self._config.latent_factor, self._config.vae.latent_channels
        shape = (self.workload.height // factor, self.workload.width // factor, channels)
        return TorchNoise(range(self.workload.batch_size), shape).initial()

    @property
    def results(self) -> dict[str, Any]:
        """What is finished so far, as in `results.json`."""
        ceilings, macs = self.probed["ceilings"], request_macs(self._config, self.workload).total
        # In the order of the subjects, then those that only an earlier run had.
        measured = [subject.name for subject in self.subjects if subject.name in self.answers]
        rows = [
            summary.summarise(name, self.answers[name], self.workload, ceilings)
            for name in dict.fromkeys([*measured, *self.answers])
        ]
        summary.add_ratios(rows)
        images = {row["name"]: self._images(row) for row in rows}
        summary.add_differences(rows, {name: value for name, value in images.items() if value is not None})
        absent = [{"name": name, "reason": reason} for name, reason in self.absent.items()]
        rows += [{**summary.summarise(row["name"], [], self.workload, {}), "status": "absent", **row} for row in absent]
        return {
            "rows": rows,
            "absent": absent,
            "settings": {**dataclasses.asdict(self.workload), **self._rounds},
            "work": {"gmac": macs / 1e9},
            "ceilings": ceilings,
            "machine": self.probed["machine"],
        }

    def _images(self, row: dict[str, Any]) -> np.ndarray | None:
        for answer in row["rounds"]:
            turn = Turn(Subject(row["name"]), answer["round"], answer["turn"])
            path = self.output / "processes" / turn.folder / IMAGES
            if answer["status"] == "ok" and path.exists():
                with np.load(path) as file:
                    return file["images"]
        return None

    def write(self) -> dict[str, Any]:
        """Writes `results.json`, which is whole at any moment."""
        results = self.results
        self.output.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.output / RESULTS, sync=False) as file:
            file.write(json.dumps(results, indent=2).encode() + b"\n")
        return results


def run_benchmark(
    subjects: Sequence[Subject],
    workload: Workload,
    rounds: int = 1,
    output: str | os.PathLike[str] | None = None,
    *,
    first_rounds: int = 1,
    work: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures subjects and returns the results, which are in `results.json` in `output` too.

    A fresh process of each subject is started `rounds` times, the first `first_rounds` times with empty caches before.
    `output` is a temporary folder, which is removed, if None. `work` is for the files that are written for the subjects
    once, gigabytes; it is below `output` if None.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary if output is None else output)
        benchmark = Benchmark(workload, folder, None if work is None else pathlib.Path(work))
        benchmark.run(subjects, rounds, first_rounds, progress)
        return benchmark.write()


def _settle(task: Task) -> None:
    """The same start for all: the disk has nothing left to write, and the system has the files in its memory."""
    if hasattr(os, "sync"):
        os.sync()
    for folder in (*folders_of(task, session_class(task.subject).folder(task)), pathlib.Path(task.cache)):
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    while file.read(_CHUNK):
                        pass
