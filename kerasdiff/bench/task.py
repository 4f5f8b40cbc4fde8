"""What is measured, as plain frozen values: they travel to another process as JSON."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Workload:
    """What every subject does: DDIM over timesteps of any spacing, which all of them can do.

    Height and width are in pixels; a `guidance_scale` of 1 switches guidance off. `vae` stands in for the model's
    autoencoder, if it is not empty. With `control`, rows with a ControlNet stand beside those without. `runs` warm runs
    are timed per process, which may take `timeout` seconds.
    """

    model: str = "sd-v1-4"
    weights: str = "random"
    prompt: str = "a photograph of an astronaut riding a horse"
    batch_size: int = 1
    num_steps: int = 25
    height: int = 512
    width: int = 512
    guidance_scale: float = 7.5
    spacing: str = "keras_cv"
    vae: str = ""
    control: bool = False
    runs: int = 3
    timeout: float = 3600.0

    @property
    def guided(self) -> bool:
        """Whether the U-Net runs twice per image."""
        return self.guidance_scale != 1


# Behind the name of a subject: the same with a ControlNet.
CONTROL = " control"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A row of the table: an implementation with one choice of precision and compiler.

    `session` is "module:class" of a `kerasdiff.bench.worker.Session`, and `options` are for that class. If it `caches`
    what it compiled for the next process, a process may start with an empty cache ("first") or with a filled one
    ("primed"). In the `environment` of its processes, "{cache}" is the subject's cache folder.
    """

    name: str
    session: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    caches: bool = False
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def with_control(self) -> Subject:
        """The same with a ControlNet."""
        return dataclasses.replace(self, name=self.name + CONTROL, options={**self.options, "control": True})

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"\W+", "_", self.name)


@dataclasses.dataclass(frozen=True)
class Task:
    """What one process is to do: "measure", "prepare" or "probe".

    `work` is the folder of the prepared files, `cache` that of the subject's own cache, and `output` that of the answer
    and of the first run's images.
    """

    action: str
    workload: Workload
    subject: Subject
    work: str
    cache: str = ""
    output: str = ""
    runs: int = 0

    def to_json(self) -> str:
        """The task as `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """The inverse of `to_json`."""
        values = json.loads(text)
        workload, subject = Workload(**values.pop("workload")), Subject(**values.pop("subject"))
        return cls(workload=workload, subject=subject, **values)

    @property
    def model_folder(self) -> pathlib.Path:
        """Where this model's prepared files are."""
        name = "-".join(filter(None, (self.workload.model, self.workload.vae, self.workload.weights)))
        return pathlib.Path(self.work) / re.sub(r"[^\w.-]+", "_", name)
