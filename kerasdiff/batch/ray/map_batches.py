"""Drawing as a step of anybody's pipeline of Ray Data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff import validation
from kerasdiff.batch.job import Target, make_job
from kerasdiff.batch.manifest import Entry, drawn, failure
from kerasdiff.batch.ray.actor import Drawer, Settings, failed
from kerasdiff.batch.ray.batches import listed
from kerasdiff.batch.ray.coordinator import Coordinator
from kerasdiff.batch.rows import COLUMNS, Row

if TYPE_CHECKING:
    from kerasdiff.errors import KerasdiffError
    from kerasdiff.metadata import Provenance
    from kerasdiff.result import Result

_ARRAY = "array"
_TOLD = ("number", "seed", "nsfw", "seconds", "error")


class Generate:
    """Draws rows of a data set: a class for `ray.data.Dataset.map_batches`, which makes one in each worker.

    A batch has columns named after the attributes of `kerasdiff.batch.Row`, of which "id" and "prompt" must be there;
    other columns go through. What comes out has a row for each image, with these columns and

    - "image": the bytes of a file with its receipt, or an array, uint8 (height, width, 3); None if there is none,
    - "number": which of its row's images it is, from 1,
    - "seed", "nsfw" (None if no safety filter ran), "seconds", and "error", which says why there is no image.

    In one worker an image is the same whatever batch its row is in: of each size, always as many are drawn together, a
    smaller number being filled up.

    Args:
        model: as in `kerasdiff.Generator`, as are `weights`, `revision`, `variant`, `precision` and `jit_compile`.
        weights: "pretrained" or "random".
        revision: of a model on the hub.
        variant: which of several sets of weights to take.
        precision: "auto", or one by name.
        jit_compile: whether XLA compiles the stages.
        batch_size: images for each row; their seeds follow one another.
        format: "png", "jpg" or "webp" for bytes, "array" for pixels.
        threads: on a CPU; None is TensorFlow's choice. It should be what Ray is told as `num_cpus`.
        images_at_once: that are drawn together at most; memory may make it fewer.
        **arguments: of `kerasdiff.Generator.generate`, but for `seed` and arrays, for rows that do not say otherwise.

    Raises:
        RequestError: an argument is wrong.
        ModelError: the model cannot be had.

    Example:
        ```python
        # Needs a cluster.
        import ray

        rows = ray.data.from_items([{"id": "cat", "prompt": "a photograph of a cat"}])
        drawn = rows.map_batches(
            kerasdiff.bulk.Generate,
            fn_constructor_kwargs={"model": "sd-v1-4", "num_steps": 20},
            batch_size=16,
            num_gpus=1,
            concurrency=4,
        )
        drawn.write_parquet("s3://bucket/pictures")
        ```
    """

    def __init__(
        self,
        model: str = "tiny",
        *,
        weights: str = "pretrained",
        revision: str | None = None,
        variant: str | None = None,
        precision: str = "auto",
        jit_compile: bool | str = "auto",
        batch_size: int = 1,
        format: str = "png",  # noqa: A002
        threads: int | None = None,
        images_at_once: int = 64,
        **arguments: Any,
    ) -> None:
        asked = {"model": model, "revision": revision, "variant": variant, "weights": weights}
        self._format = format
        kind = "png" if format == _ARRAY else format
        checked = make_job([Row("checked", "")], asked, arguments, batch_size, kind)
        settings = Settings(
            model=asked,
            arguments=checked.arguments,
            batch_size=checked.batch_size,
            format=kind,
            precision=precision,
            jit_compile=jit_compile,
            most=validation.integer("images_at_once", images_at_once, 1),
            threads=None if threads is None else validation.integer("threads", threads, 1),
        )
        self._drawer = Drawer(settings, Coordinator())

    def __call__(self, batch: Any) -> dict[str, Any]:
        """Draws a batch.

        Args:
            batch: a `pyarrow.Table`, a `pandas.DataFrame`, or a dictionary of arrays.
        """
        given = listed(batch)
        asked = [{name: value for name, value in values.items() if name in COLUMNS} for values in given]
        rows, bad = self._drawer.rows(asked)
        images = _Images(self._format, self._drawer.generator.origin)
        targets = self._drawer.targets(rows)
        self._drawer.draw(targets, images)
        unfit = {place for place, _ in bad}
        by_id = {values["id"]: values for place, values in enumerate(given) if place not in unfit}
        came: list[dict[str, Any]] = []
        for target in targets:
            image, entry = images.of[target.key]
            told = {name: getattr(entry, name) for name in _TOLD}
            came.append({**by_id[target.row.id], **told, "image": image})
        for place, why in bad:
            told = {name: failed(given[place], why)[name] for name in _TOLD}
            came.append({**given[place], **told, "image": None})
        return _columns(came)


class _Images:
    """An album in memory: an image and its line of a manifest, by (id, number)."""

    def __init__(self, format: str, origin: Provenance) -> None:  # noqa: A002
        self._format, self._origin = format, origin
        self.of: dict[tuple[str, int], tuple[Any, Entry]] = {}

    def has(self, target: Target) -> bool:
        return target.key in self.of

    def take(self, target: Target, result: Result, seconds: float) -> None:
        image = result.images[0] if self._format == _ARRAY else result.encode(self._format)[0]
        self.of[target.key] = image, drawn(target, result, target.file, seconds)

    def fail(self, target: Target, error: KerasdiffError) -> None:
        self.of[target.key] = None, failure(target, error, self._origin)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns as Ray Data takes them: arrays, of objects where there is None or images differ in size."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: list[Any]) -> np.ndarray:
    shapes = {getattr(value, "shape", None) for value in values}
    if len(shapes) == 1 and None not in shapes:
        return np.stack(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column
