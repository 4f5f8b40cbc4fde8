"""The weights that every subject reads: one model, written in each layout and precision that is needed."""

import contextlib
import pathlib
from collections.abc import Iterator

from kerasdiff.atomic_write import atomic_path
from kerasdiff.bench.task import Task


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to, which becomes `path` when the block ends: a folder that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.mkdir()
        yield partial


def diffusers_folder(task: Task, precision: str) -> pathlib.Path:
    """Where the model is in diffusers' layout, or will be."""
    return task.model_folder / f"diffusers-{precision}"


def write_diffusers_folder(task: Task, precision: str) -> pathlib.Path:
    """Writes it unless it exists."""
    folder = diffusers_folder(task, precision)
    if not folder.exists():
        # Here, as processes that are timed import this file.
        from kerasdiff.checkpoints.export import write_diffusers
        from kerasdiff.checkpoints.resolve import open_model

        with new_folder(folder) as partial:
            write_diffusers(open_model(task.workload.model, task.workload.weights), partial, precision)
    return folder
