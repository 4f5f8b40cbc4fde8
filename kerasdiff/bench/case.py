"""What is measured, as plain frozen values: they travel to another process as JSON."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Settings:
    """The work, the same for every row.

    Attributes:
        model: as in `kerasdiff.Generator`.
        weights: "random" or "pretrained".
        prompt: one text.
        batch_size: images in a run.
        num_steps: of DDIM over KerasCV's timesteps, which every subject can do.
        height, width: pixels.
        guidance_scale: weight of the prompt; 1 switches guidance off.
        runs: warm runs in a process.
        timeout: seconds that a process may take.
    """

    model: str = "sd-v1-4"
    weights: str = "random"
    prompt: str = "a photograph of an astronaut riding a horse"
    batch_size: int = 1
    num_steps: int = 25
    height: int = 512
    width: int = 512
    guidance_scale: float = 7.5
    runs: int = 3
    timeout: float = 3600.0

    @property
    def guided(self) -> bool:
        """Whether the U-Net runs twice for an image."""
        return self.guidance_scale != 1


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: a subject with one choice of precision and compiler.

    Attributes:
        name: in the table.
        module: where the subject is, see `kerasdiff.bench.worker`.
        options: what the subject is told.
        caches: whether it keeps what it compiled for the next process, so that a process may start
            with an empty cache ("first") or with a filled one ("primed").
        environment: variables of its processes; "{cache}" is the row's cache folder.
    """

    name: str
    module: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    caches: bool = False
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as a part of a file's name."""
        return re.sub(r"\W+", "_", self.name)


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process is to do.

    Attributes:
        task: "measure", "prepare" or "probe".
        settings: the work.
        row: what does it; None for "probe".
        work: folder of the prepared files.
        cache: folder of the row's own cache.
        output: folder where `answer`, and the images of the first run, go.
        runs: warm runs.
    """

    task: str
    settings: Settings
    row: Row | None
    work: str
    cache: str = ""
    output: str = ""
    runs: int = 0

    def to_json(self) -> str:
        """As `from_json` takes it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse of `to_json`."""
        values = json.loads(text)
        row = None if values["row"] is None else Row(**values.pop("row"))
        return cls(**{**values, "settings": Settings(**values["settings"]), "row": row})

    @property
    def model_folder(self) -> pathlib.Path:
        """Where this model's prepared files are."""
        name = re.sub(r"[^\w.-]+", "_", self.settings.model)
        return pathlib.Path(self.work) / f"{name}-{self.settings.weights}"

    @property
    def options(self) -> dict[str, Any]:
        """Of the row."""
        return {} if self.row is None else self.row.options
