"""Rows become pictures on the machines of a cluster."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from kerasdiff import validation
from kerasdiff.batch import local
from kerasdiff.batch.job import make_job
from kerasdiff.batch.ray import cluster
from kerasdiff.batch.ray.actor import Settings
from kerasdiff.batch.ray.ray_job import Bulk
from kerasdiff.batch.rows import Row, check_columns, make_row, read_rows
from kerasdiff.batch.sinks import check_names
from kerasdiff.batch.storage import open_output
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import RequestError
from kerasdiff.runtime.precision import check


@dataclasses.dataclass(frozen=True)
class Summary(local.Summary):
    """What a job came to.

    Attributes:
        drawn: images that were drawn now.
        kept: images that were there before.
        failed: images that could not be drawn; the manifest says why, and the same job tries them again.
        seconds: that it took since Ray was there.
        workers: how many drew.
        first_image_s: seconds from the call to the first image; None if none was drawn.
        peak_worker_gb: the most memory that a worker held, as it told after its batches; None without a worker.

    Example:
        ```python
        # Needs a cluster.
        summary = kerasdiff.bulk.run("rows.csv", "pictures", model="tiny", workers=2)
        summary.drawn, summary.images_per_second, summary.first_image_s
        ```
    """

    workers: int
    first_image_s: float | None
    peak_worker_gb: float | None


def run(
    dataset: Any,
    output: str | os.PathLike[str],
    *,
    model: str = "tiny",
    weights: str = "pretrained",
    revision: str | None = None,
    variant: str | None = None,
    precision: str = "auto",
    jit_compile: bool | str = "auto",
    batch_size: int = 1,
    format: str = "png",  # noqa: A002
    shards: bool = False,
    shard_images: int = 1000,
    workers: int | None = None,
    threads: int | None = None,
    ray_address: str | None = None,
    progress: bool = True,
    between: Callable[[], None] | None = None,
    **arguments: Any,
) -> Summary:
    """Draws rows on as many machines as Ray has, and goes on where it was interrupted.

    The output holds a file for each image, or tar files in WebDataset's layout; `manifest/`, Parquet files with a row
    for each image; and `job.json`, which says whose it is. Called again with the same arguments, it draws what is
    missing. Workers write images themselves; only rows and lines of the manifest go through Ray.

    Args:
        dataset: the path of a file, see `kerasdiff.batch.read_rows`; a list of `kerasdiff.batch.Row` or of
            dictionaries; or a `ray.data.Dataset` with such columns, which is streamed: its rows are checked where
            they are drawn, and one that is wrong is a row of the manifest with its error.
        output: a folder that all machines see, or a bucket such as "s3://bucket/folder"; new, empty, or of this job.
        model: as in `kerasdiff.Generator`, as are `weights`, `revision`, `variant`, `precision` and `jit_compile`.
        weights: "pretrained" or "random".
        revision: of a model on the hub.
        variant: which of several sets of weights to take.
        precision: "auto", or one by name.
        jit_compile: whether XLA compiles the stages.
        batch_size: images for each row; their seeds follow one another.
        format: "png", "jpg" or "webp".
        shards: whether images go into tar files.
        shard_images: in each, about.
        workers: processes; None is one for each GPU, or for each machine if there are none.
        threads: of each on a CPU; None shares the cores out.
        ray_address: as `ray.init` takes it; None is `RAY_ADDRESS`, else Ray is started here, for this job alone.
        progress: whether to show a progress bar on stderr.
        between: called about twice a second; what it raises, if it is a `KeyboardInterrupt`, ends the job in order.
        **arguments: of `kerasdiff.Generator.generate`, but for `seed` and arrays, for rows that do not say otherwise;
            `image` and `mask` are paths.

    Returns:
        How many images were drawn, were there before, or failed.

    Raises:
        RequestError: an argument or a row is wrong, the output is another job's, Ray is not installed, or the cluster
            cannot be reached; before a model is loaded.
        KerasdiffError: workers cannot go on: the model cannot be had, or the output cannot be written.
        KeyboardInterrupt: it was ended in order; batches that were begun are finished, and the same call goes on.

    Example:
        ```python
        # Needs a cluster.
        kerasdiff.bulk.run("rows.csv", "pictures", model="sd-v1-4", workers=8, num_steps=25)
        ```
    """
    called = time.time()
    # Workers have folders of their own to start in.
    model = os.path.abspath(model) if os.path.exists(model) else model
    asked = {"model": model, "revision": revision, "variant": variant, "weights": weights}
    check(precision, jit_compile)
    rows = _rows(dataset)
    job = make_job([Row("any", "")] if rows is None else rows, asked, arguments, batch_size, format)
    job.check(open_model(model, weights, revision=revision, variant=variant).config)
    if validation.boolean("shards", shards):
        check_names(() if rows is None else job.targets)
    validation.integer("shard_images", shard_images, 1)
    for name, count in (("workers", workers), ("threads", threads)):
        if count is not None:
            validation.integer(name, count, 1)
    where = open_output(output)
    settings = Settings(asked, job.arguments, batch_size, format, precision, jit_compile)
    bulk = Bulk(job, None if rows is not None else dataset, where, settings, shard_images if shards else None)
    cluster.check_installed()
    with bulk.held():
        parts = bulk.take_up()
        kept = len(parts.done)
        if bulk.is_done(parts):
            return Summary(0, kept, 0, 0.0, 0, None, None)
        with cluster.connected(ray_address) as ray:
            shares = cluster.shares(cluster.nodes(ray), workers, threads, reading=rows is None)
            started = time.time()
            counted, state = bulk.run(ray, shares, parts, progress, between)
    each = list(state["workers"].values())
    return Summary(
        counted.drawn,
        kept + counted.kept,
        counted.failed,
        time.time() - started,
        len(each),
        None if state["first"] is None else state["first"] - called,
        max((one["memory"] / 1e9 for one in each), default=None),
    )


def _rows(dataset: Any) -> tuple[Row, ...] | None:
    """Rows that are here; None for a data set of Ray's."""
    if isinstance(dataset, str | os.PathLike):
        return read_rows(dataset)
    if isinstance(dataset, list | tuple):
        return tuple(row if isinstance(row, Row) else _row(place, row) for place, row in enumerate(dataset))
    if not hasattr(dataset, "map_batches"):
        raise RequestError(
            f"dataset must be the path of a file, a list of rows, or a ray.data.Dataset, not {validation.kind(dataset)}"
        )
    schema = dataset.schema()
    try:
        check_columns([] if schema is None else schema.names, needed=("id", "prompt"))
    except RequestError as error:
        raise RequestError(f"dataset: {error}") from None
    return None


def _row(place: int, values: Any) -> Row:
    if not isinstance(values, Mapping):
        raise RequestError(f"dataset: row {place} must be a Row or a dictionary, not {validation.kind(values)}")
    try:
        return make_row(values)
    except RequestError as error:
        raise RequestError(f"dataset: row {place}: {error}") from None
