"""Image generation as a step of any Ray Data pipeline."""

from typing import Any, Unpack

import numpy as np

from kerasdiff import validation
from kerasdiff.batch.job import make_job
from kerasdiff.batch.manifest import Entry
from kerasdiff.batch.ray.actor import Actor, ActorSettings
from kerasdiff.batch.ray.coordinator import Coordinator
from kerasdiff.batch.rows import COLUMNS, Row
from kerasdiff.batch.sinks import MemorySink
from kerasdiff.errors import RequestError
from kerasdiff.request_arguments import RequestArguments

_ENTRY_COLUMNS = ("number", "seed", "nsfw", "seconds", "error")


class Generate:
    """Generates the images of rows of a data set: a class for `ray.data.Dataset.map_batches`.

    A batch has columns named after the attributes of `kerasdiff.batch.Row`, of which "id" and "prompt" are required;
    other columns are passed through. The output has a row per image, with these columns and

    - "image": the bytes of a file with its metadata, or an array, uint8 (height, width, 3); None if there is none,
    - "number": which of its row's images it is, from 1,
    - "seed", "nsfw" (None if no safety filter ran), "seconds", and "error", which says why there is no image.

    In one worker an image is the same whatever batch its row is in: of each size, the same number is always generated
    together, smaller batches being filled up. Other arguments: see `kerasdiff.batch.run` and `kerasdiff.Generator`.

    Args:
        format: "png", "jpg" or "webp" for bytes, "array" for pixels.
        threads: on a CPU; None is TensorFlow's choice. It should be what Ray is given as `num_cpus`.
        images_at_once: the most images that are generated together; memory may allow fewer.

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
        vae: str | None = None,
        refiner: str | None = None,
        precision: str = "auto",
        jit_compile: bool | str = "auto",
        backend: str = "auto",
        batch_size: int = 1,
        format: str = "png",  # noqa: A002
        threads: int | None = None,
        images_at_once: int = 64,
        **arguments: Unpack[RequestArguments],
    ) -> None:
        if arguments.get("seed") is not None:
            raise RequestError("seed: rows of a data set have no order to count up in; give them a column seed")
        self._format = format
        source = {"model": model, "revision": revision, "variant": variant, "weights": weights}
        source |= {name: value for name, value in (("vae", vae), ("refiner", refiner)) if value is not None}
        settings = ActorSettings(
            make_job([Row("any", "")], source, arguments, batch_size, "png" if format == "array" else format),
            precision,
            jit_compile,
            backend,
            max_batch=validation.integer("images_at_once", images_at_once, 1),
            threads=None if threads is None else validation.integer("threads", threads, 1),
            frozen=arguments.get("lora_folder") is None,
        )
        self._actor = Actor(settings, Coordinator())

    def __call__(self, batch: Any) -> dict[str, Any]:
        from kerasdiff.batch.ray.arrow import records

        rows = records(batch)
        targets, invalid = self._actor.targets(
            [{name: value for name, value in row.items() if name in COLUMNS} for row in rows]
        )
        entries: list[Entry] = []
        sink = MemorySink(self._format, entries, self._actor.generator.origin)
        for _ in self._actor.generate(targets, sink):
            pass
        skipped = {index for index, _ in invalid}
        by_id = {row["id"]: row for index, row in enumerate(rows) if index not in skipped}
        by_key = {entry.key: entry for entry in entries}
        output = [(by_id[target.row.id], by_key[target.key]) for target in targets]
        output += [(rows[index], entry) for index, entry in invalid]
        images = []
        for row, entry in output:
            columns = {name: getattr(entry, name) for name in _ENTRY_COLUMNS}
            images.append({**row, **columns, "image": None if entry.error else sink.images[entry.key]})
        names = dict.fromkeys(name for row in images for name in row)
        return {name: _column([row.get(name) for row in images]) for name in names}


def _column(values: list[Any]) -> np.ndarray:
    """A column as Ray Data takes it: an array, of objects where there is None or images differ in size."""
    shapes = {getattr(value, "shape", None) for value in values}
    if len(shapes) == 1 and None not in shapes:
        return np.stack(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column
