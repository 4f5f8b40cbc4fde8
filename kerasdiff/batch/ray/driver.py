"""Runs a job on the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from tqdm import tqdm

from kerasdiff import validation
from kerasdiff.batch.job import Job, make_job
from kerasdiff.batch.job_state import JobState, lock, write_state
from kerasdiff.batch.progress import Summary, progress_bar
from kerasdiff.batch.ray import cluster
from kerasdiff.batch.ray.actor import TOGETHER, ActorSettings
from kerasdiff.batch.ray.cluster import Allocation
from kerasdiff.batch.ray.coordinator import ActorProxy, Coordinator
from kerasdiff.batch.row_files import read_rows
from kerasdiff.batch.rows import Row, check_columns, errors_in, make_row
from kerasdiff.batch.sinks import SHARDS, check_tar_ids, read_shard
from kerasdiff.batch.storage import Folder, Storage, open_storage, write_errors
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import RequestError
from kerasdiff.request_arguments import RequestArguments
from kerasdiff.runtime.precision import check

if TYPE_CHECKING:
    import pyarrow as pa

    from kerasdiff.batch.ray.arrow import ParquetManifest

# The most rows that a worker is given at a time, and images that it generates together.
_MAX_ROWS, _MAX_BATCH = 64, 64
# Environment variables that workers take from this process.
_VARIABLES = ("KERAS_BACKEND", "KERASDIFF_BACKEND", "KERASDIFF_CACHE_GB")
_POLL_S = 0.5
_FLUSH_S = 30.0
# How long what remains of a stopped job, which is not generated, may take to come back from the workers.
_GRACE_S = 20.0


def run(
    dataset: Any,
    output: str | os.PathLike[str],
    *,
    model: str = "tiny",
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
    shards: bool = False,
    shard_images: int = 1000,
    workers: int | None = None,
    threads: int | None = None,
    ray_address: str | None = None,
    progress: bool | None = None,
    between: Callable[[], None] | None = None,
    **arguments: Unpack[RequestArguments],
) -> Summary:
    """Generates the images of rows on all machines of a Ray cluster; called again, it resumes.

    The output contains a file per image, or tar files in WebDataset's layout; `manifest/`, Parquet files with a row per
    image; and `job.json`, which says whose it is. Called again with the same arguments, it generates what is missing.
    Workers write images themselves; only rows and entries of the manifest go through Ray. Other arguments: see
    `kerasdiff.batch.run` and `kerasdiff.Generator`.

    Args:
        dataset: the path of a file, see `kerasdiff.batch.read_rows`; a list of `kerasdiff.batch.Row` or of
            dictionaries; or a `ray.data.Dataset` with such columns, which is streamed: its rows are checked by the
            workers, and one that is wrong is a row of the manifest with its error.
        output: a folder that all machines see, or a bucket such as "s3://bucket/folder"; new, empty, or of this job.
        shards: whether images go into tar files.
        shard_images: approximate number of images per tar file.
        workers: processes; None is one per GPU, or one per machine if there are none.
        threads: per worker on a CPU; None is an even share of the cores.
        ray_address: see `ray.init`; None is `RAY_ADDRESS`, else a cluster on this machine for this job alone.
        between: called about twice a second; if it raises `KeyboardInterrupt`, the job stops cleanly.

    Raises:
        RequestError: an argument or a row is wrong, the output is another job's, Ray is not installed, or the cluster
            cannot be reached; before a model is loaded.
        KerasdiffError: workers cannot continue: the model cannot be loaded, or the output cannot be written.
        KeyboardInterrupt: it was stopped cleanly; batches in progress are finished, and the same call resumes.

    Example:
        ```python
        # Needs a cluster.
        kerasdiff.bulk.run("rows.csv", "pictures", model="sd-v1-4", workers=8, num_steps=25)
        ```
    """
    called = time.time()
    # Workers start in folders of their own.
    model = os.path.abspath(model) if os.path.exists(model) else model
    source: dict[str, Any] = {"model": model, "revision": revision, "variant": variant, "weights": weights}
    for name, beside in (("vae", vae), ("refiner", refiner)):
        if beside is not None:
            source[name] = os.path.abspath(beside) if os.path.exists(beside) else beside
    check(precision, jit_compile, backend)
    rows = _rows(dataset)
    if rows is None and arguments.get("seed") is not None:
        raise RequestError("seed: rows of a data set have no order to count up in; give them a column seed")
    job = make_job([Row("any", "")] if rows is None else rows, source, arguments, batch_size, format)
    job.check(open_model(**source).config)
    if validation.boolean("shards", shards):
        check_tar_ids(row.id for row in rows or ())
    validation.integer("shard_images", shard_images, 1)
    for name, count in (("workers", workers), ("threads", threads)):
        if count is not None:
            validation.integer(name, count, 1)
    # What tags name is in the rows that are here.
    shared = {name: value for name, value in job.arguments.items() if rows is None or name != "lora_folder"}
    settings = ActorSettings(
        dataclasses.replace(job, rows=(), arguments=shared),
        precision,
        jit_compile,
        backend,
        bool(shards),
        frozen=not job.changes_weights if rows is not None else has_one_set(dataset, arguments),
    )
    driver = Driver(job, None if rows is not None else dataset, open_storage(output), settings, shard_images)
    cluster.check_installed()
    with driver.locked():
        manifest = driver.recover()
        kept = len(manifest.done)
        if driver.is_done(manifest):
            return Summary(0, kept, 0, 0.0, 0)
        with cluster.connected(ray_address) as ray:
            allocation = cluster.allocate(cluster.nodes(ray), workers, threads, reading=rows is None)
            started = time.time()
            collector, state = driver.run(ray, allocation, manifest, progress, between)
    each = list(state["workers"].values())
    return Summary(
        collector.drawn,
        kept + collector.kept,
        collector.failed,
        time.time() - started,
        len(each),
        None if state["first"] is None else state["first"] - called,
        max((worker["memory"] / 1e9 for worker in each), default=None),
    )


class Driver:
    """The process that a job was started in: what is missing, who generates it, and what was decided.

    `job` has the rows that are here, or one row that stands for those of `dataset`.
    """

    def __init__(self, job: Job, dataset: Any, storage: Storage, settings: ActorSettings, shard_images: int) -> None:
        self._job, self._dataset, self._storage = job, dataset, storage
        self._settings, self._shard_images = settings, shard_images
        rows = {} if dataset is None else {"rows": None}
        self._description = {**job.description, **rows, "layout": "shards" if settings.shards else "files"}
        self._config = open_model(**job.model).config
        self._state = JobState(None, {})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the output for this job; see `lock`."""
        with lock(self._storage, self._description) as state:
            if isinstance(self._storage, Folder):
                self._storage.remove_temporary()
            self._state = state or dataclasses.replace(self._state, adapters=self._job.hashes)
            yield

    def recover(self) -> ParquetManifest:
        """Starts the job, or finds out how far it is; gives the manifest, which knows all tar files that exist."""
        from kerasdiff.batch.ray.arrow import ParquetManifest, entries_table

        with write_errors(self._storage.where):
            self._write_state()
            manifest = ParquetManifest(self._storage)
            # Tar files without rows: whoever wrote them, or was to add the rows, was killed.
            for name in self._storage.names(SHARDS):
                if name not in manifest.shards:
                    entries = list(read_shard(self._storage, name))
                    manifest.add(entries_table(entries))
                    manifest.done.update(entry.key for entry in entries)
            manifest.flush()
        return manifest

    def is_done(self, manifest: ParquetManifest) -> bool:
        """Whether nothing is missing; of a data set that is not known."""
        return self._dataset is None and all(target.key in manifest.done for target in self._job.targets)

    def run(
        self,
        ray: Any,
        allocation: Allocation,
        manifest: ParquetManifest,
        progress: bool | None,
        between: Callable[[], None] | None,
    ) -> tuple[Collector, Mapping[str, Any]]:
        """Generates what is missing; returns what counted the images, and the last state of the coordinator."""
        kept = len(manifest.done)
        units = None if self._dataset is not None else self._units(manifest, allocation.workers)
        name = f"kerasdiff-{uuid.uuid4().hex}"
        settled: dict[str, Any] = {f"{TOGETHER}{size}": count for size, count in self._state.batch_sizes.items()}
        if self._state.precision is not None:
            settled["precision"] = self._state.precision
        done = frozenset() if units is not None else frozenset(manifest.done)
        actor = ray.remote(num_cpus=0)(Coordinator).options(name=name).remote(settled, done)
        bar = progress_bar(None if units is None else len(self._job.targets), kept, progress, "{postfix}")
        with bar, write_errors(self._storage.where), cluster.quiet_data():
            collector = Collector(ActorProxy(actor), self._tables(allocation, name, units), manifest)
            return collector, collector.run(lambda state: self._show(bar, kept, state), between)

    def _write_state(self) -> None:
        images = None if self._dataset is not None else len(self._job.targets)
        write_state(self._storage, self._description, images, self._state)

    def _units(self, manifest: ParquetManifest, workers: int) -> list[list[Row]]:
        """Rows with missing images, grouped by what is generated together, in batches for workers."""
        missing = {target.row.id for target in self._job.targets if target.key not in manifest.done}
        first = [target for target in self._job.targets if target.number == 1 and target.row.id in missing]
        count = cluster.rows_per_call(len(first), workers, _MAX_ROWS)
        batch_sizes = dict.fromkeys(self._job.sizes(self._config), count)
        units = [[target.row for target in block] for block in self._job.blocks(self._config, batch_sizes, first)]
        if not self._settings.shards:
            return units
        # A tar file may contain the end of one group and the start of the next.
        rows = [row for unit in units for row in unit]
        count = max(1, self._shard_images // self._job.batch_size)
        return [rows[start : start + count] for start in range(0, len(rows), count)]

    def _tables(self, allocation: Allocation, name: str, units: list[list[Row]] | None) -> Iterator[Any]:
        """Tables of entries, as workers give them."""
        import ray.data

        from kerasdiff.batch.ray import arrow
        from kerasdiff.batch.ray.actor import Worker

        if units is None:
            dataset, max_batch, sizes = self._dataset, _MAX_BATCH, self._settings.sizes
            images = self._shard_images if self._settings.shards else _MAX_ROWS
            rows: int | None = max(1, images // self._job.batch_size)
        else:
            dataset, rows = ray.data.from_arrow([arrow.rows_table(unit) for unit in units]), None
            max_batch = min(_MAX_BATCH, max(map(len, units)) * self._job.batch_size)
            sizes = tuple((height, width) for height, width, _ in self._job.sizes(self._config).values())
        settings = dataclasses.replace(
            self._settings,
            max_batch=max_batch,
            sizes=sizes,
            has_images=any(row.image is not None for row in self._job.rows) or "image" in self._job.arguments,
            threads=allocation.threads,
            memory_share=allocation.memory,
        )
        tables = dataset.map_batches(
            Worker,
            fn_constructor_args=(settings, self._storage.url, name),
            batch_size=rows,
            batch_format="pyarrow",
            concurrency=allocation.workers,
            num_cpus=allocation.cpus,
            num_gpus=allocation.gpus or None,
            runtime_env={"env_vars": {name: os.environ[name] for name in _VARIABLES if name in os.environ}},
        )
        return iter(tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))

    def _show(self, bar: tqdm, kept: int, state: Mapping[str, Any]) -> None:
        """Shows how far the job is, and saves what was decided."""
        workers = state["workers"].values()
        done = kept + sum(worker["drawn"] + worker["kept"] + worker["failed"] for worker in workers)
        bar.n = done if bar.total is None else min(done, bar.total)
        bar.set_postfix_str(f"{len(workers)} worker{'s' if len(workers) > 1 else ''}", refresh=False)
        bar.refresh()
        settled = state["settled"]
        sizes = {name.removeprefix(TOGETHER): count for name, count in settled.items() if name.startswith(TOGETHER)}
        decided = dataclasses.replace(self._state, precision=settled.get("precision"), batch_sizes=sizes)
        if decided != self._state and decided.precision is not None:
            self._state = decided
            self._write_state()


class Collector:
    """Takes tables of workers' entries into the manifest until there are no more; the first may start the workers."""

    def __init__(
        self, coordinator: Coordinator | ActorProxy, tables: Iterator[pa.Table], manifest: ParquetManifest
    ) -> None:
        self._coordinator, self._tables, self._manifest = coordinator, tables, manifest
        self.drawn = self.kept = self.failed = 0
        self._taken: queue.SimpleQueue[pa.Table] = queue.SimpleQueue()
        self._flushed = time.monotonic()
        self._error: BaseException | None = None
        self._left = threading.Event()
        # In a thread: Ray's iterator must not be interrupted in the middle.
        self._thread = threading.Thread(target=self._take, name="kerasdiff-bulk", daemon=True)

    def run(
        self, show: Callable[[Mapping[str, Any]], None], between: Callable[[], None] | None = None
    ) -> Mapping[str, Any]:
        """Waits for the end, and returns the coordinator's last state.

        About twice a second `show` is called with the state, and `between`. A `KeyboardInterrupt`, of `between` or
        Python's, stops the workers after their current batches, a second one at once.
        """
        self._thread.start()
        try:
            state = self._wait(show, between)
        except KeyboardInterrupt:
            self._coordinator.stop()
            while self._thread.is_alive() and any(
                worker["busy"] for worker in self._coordinator.state()["workers"].values()
            ):
                self._thread.join(_POLL_S)
            self._thread.join(_GRACE_S)
            raise
        finally:
            self._left.set()
            self._collect()
            self._manifest.flush()
        error = state["fatal"] or self._error
        if error is not None:
            raise error
        return state

    def _wait(self, show: Callable[[Mapping[str, Any]], None], between: Callable[[], None] | None) -> Mapping[str, Any]:
        while True:
            ended = not self._thread.is_alive()
            state = self._coordinator.state()
            self._collect()
            if time.monotonic() - self._flushed >= _FLUSH_S:
                self._manifest.flush()
                self._flushed = time.monotonic()
            show(state)
            if ended or state["fatal"] is not None:
                return state
            if between is not None:
                between()
            self._thread.join(_POLL_S)

    def _collect(self) -> None:
        """Counts by entries, as each image has one; a killed worker's reports may count an image twice."""
        while not self._taken.empty():
            entries = self._taken.get()
            failed, drawn = (entries.num_rows - entries[name].null_count for name in ("error", "seconds"))
            self.failed += failed
            self.drawn += drawn
            self.kept += entries.num_rows - failed - drawn
            self._manifest.add(entries)

    def _take(self) -> None:
        try:
            for table in self._tables:
                self._taken.put(table)
                if self._left.is_set():
                    return
        except BaseException as error:
            self._error = error


def _rows(dataset: Any) -> tuple[Row, ...] | None:
    """Rows that are here; None for a data set of Ray."""
    if isinstance(dataset, str | os.PathLike):
        return read_rows(dataset)
    if isinstance(dataset, list | tuple):
        return tuple(row if isinstance(row, Row) else _row(index, row) for index, row in enumerate(dataset))
    if not hasattr(dataset, "map_batches"):
        raise RequestError(
            f"dataset must be the path of a file, a list of rows, or a ray.data.Dataset, not {validation.kind(dataset)}"
        )
    schema = dataset.schema()
    with errors_in("dataset"):
        check_columns([] if schema is None else schema.names, required=("id", "prompt"))
    return None


def has_one_set(dataset: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether the rows of a data set cannot name different LoRAs."""
    schema = dataset.schema()
    return arguments.get("lora_folder") is None and (schema is None or "loras" not in schema.names)


def _row(index: int, values: Any) -> Row:
    if not isinstance(values, Mapping):
        raise RequestError(f"dataset: row {index} must be a Row or a dictionary, not {validation.kind(values)}")
    with errors_in(f"dataset: row {index}"):
        return make_row(values)
