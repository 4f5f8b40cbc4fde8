"""A job on the workers of a cluster: what is missing, who draws it, and what was settled."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from kerasdiff import validation
from kerasdiff.batch.job import Job
from kerasdiff.batch.job_state import JOB, Begun, hold, job_file, whose
from kerasdiff.batch.local import writing
from kerasdiff.batch.ray import cluster
from kerasdiff.batch.ray.actor import TOGETHER, Settings
from kerasdiff.batch.ray.cluster import Shares
from kerasdiff.batch.ray.coordinator import Coordinator
from kerasdiff.batch.rows import Row
from kerasdiff.batch.sinks import SHARDS, read_shard
from kerasdiff.batch.storage import Folder, Output
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import RequestError

if TYPE_CHECKING:
    from kerasdiff.batch.ray.monitor import Following
    from kerasdiff.batch.ray.parquet_manifest import Parts

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
# Rows that a worker is given at a time, and images that it is asked to draw at once, at most.
_MOST_ROWS, _MOST_IMAGES = 64, 64


class Bulk:
    """A job and its output.

    Args:
        job: of the rows that are here, or of one that stands for those of `dataset`.
        dataset: of Ray's, or None.
        output: where to.
        settings: what to draw with.
        shard_images: in a tar file; None is a file each.
    """

    def __init__(self, job: Job, dataset: Any, output: Output, settings: Settings, shard_images: int | None) -> None:
        self._job, self._dataset, self._output = job, dataset, output
        self._settings, self._shard_images = settings, shard_images
        rows = {} if dataset is None else {"rows": None}
        layout = {"layout": "files" if shard_images is None else "shards"}
        self._description = {**job.description, **rows, **layout}
        self._config = open_model(**settings.model).config
        self._begun = Begun(None, {})

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The output is this job's meanwhile; in a folder no other process of this machine works.

        Raises:
            RequestError: it is another job's, in use, or cannot be read or written.
        """
        if isinstance(self._output, Folder):
            with hold(pathlib.Path(self._output.where), self._description) as begun:
                self._output.clear()
                self._begun = begun or self._begun
                yield
            return
        try:
            names = self._output.names()
            begun = whose(self._output.where, names, lambda: self._output.read(JOB), self._description)
        except OSError as error:
            raise RequestError(f"cannot read {self._output.where}: {validation.reason(error)}") from None
        self._begun = begun or self._begun
        yield

    def take_up(self) -> Parts:
        """Begins the job, or reads how far it is.

        Returns:
            The manifest, which knows of all tar files that are there.

        Raises:
            RequestError: a part of it is damaged.
            CannotWriteError: the output cannot be written.
        """
        from kerasdiff.batch.ray.parquet_manifest import Parts

        with writing(self._output.where):
            self._settle()
            parts = Parts(self._output)
            self._adopt(parts)
        return parts

    def is_done(self, parts: Parts) -> bool:
        """Whether nothing is missing; of a data set of Ray's that is not known."""
        return self._dataset is None and all(target.key in parts.done for target in self._job.targets)

    def run(
        self, ray: Any, shares: Shares, parts: Parts, progress: bool, between: Callable[[], None] | None
    ) -> tuple[Following, Mapping[str, Any]]:
        """Draws what is missing.

        Args:
            ray: the module.
            shares: how workers share the cluster.
            parts: the manifest.
            progress: whether to show a progress bar.
            between: as in `Following.all`.

        Returns:
            What counted the images, and the last state of the coordinator.

        Raises:
            KerasdiffError: workers cannot go on, or the output cannot be written.
            KeyboardInterrupt: it was ended.
        """
        from kerasdiff.batch.ray.monitor import Following

        kept = len(parts.done)
        units = None if self._dataset is not None else self._units(parts, shares.workers)
        name = f"kerasdiff-{uuid.uuid4().hex}"
        known: dict[str, Any] = {f"{TOGETHER}{size}": count for size, count in self._begun.together.items()}
        if self._begun.precision is not None:
            known["precision"] = self._begun.precision
        done = frozenset() if units is not None else frozenset(parts.done)
        coordinator = ray.remote(num_cpus=0)(Coordinator).options(name=name).remote(known, done)
        total = None if units is None else len(self._job.targets)
        bar = tqdm(total=total, initial=kept, disable=not progress, unit="image", bar_format=_BAR)
        with bar, writing(self._output.where), cluster.quiet_data():
            lines = self._lines(shares, name, units)
            following = Following(coordinator, ray.get, lines, parts)
            return following, following.all(lambda state: self._show(bar, kept, state), between)

    def _settle(self) -> None:
        images = None if self._dataset is not None else len(self._job.targets)
        self._output.write(JOB, job_file(self._description, images, self._begun))

    def _adopt(self, parts: Parts) -> None:
        """Tells the manifest of tar files that it does not know, as what wrote them or told of them was killed."""
        from kerasdiff.batch.ray.arrow import of_lines

        for name in self._output.names(SHARDS):
            if name not in parts.shards:
                entries = list(read_shard(self._output, name))
                parts.add(of_lines([{**dataclasses.asdict(entry), "worker": None} for entry in entries]))
                parts.done.update(entry.key for entry in entries)
        parts.flush()

    def _units(self, parts: Parts, workers: int) -> list[list[Row]]:
        """The rows of which images are missing, grouped by what is drawn together, in batches for workers."""
        missing = {target.row.id for target in self._job.targets if target.key not in parts.done}
        first = [target for target in self._job.targets if target.number == 1 and target.row.id in missing]
        count = cluster.calls(len(first), workers, _MOST_ROWS)
        together = dict.fromkeys(self._job.sizes(self._config), count)
        units = [[target.row for target in block] for block in self._job.blocks(self._config, together, first)]
        if self._shard_images is None:
            return units
        # A tar file may hold the end of one group and the beginning of the next.
        rows = [row for unit in units for row in unit]
        count = max(1, self._shard_images // self._job.batch_size)
        return [rows[start : start + count] for start in range(0, len(rows), count)]

    def _lines(self, shares: Shares, name: str, units: list[list[Row]] | None) -> Iterator[Any]:
        """Tables of the manifest, as workers give them."""
        import ray.data

        from kerasdiff.batch.ray import arrow
        from kerasdiff.batch.ray.ray_worker import Worker

        if units is None:
            dataset, most, sizes = self._dataset, _MOST_IMAGES, self._settings.sizes
            per_call = _MOST_ROWS if self._shard_images is None else self._shard_images
            rows: int | None = max(1, per_call // self._job.batch_size)
        else:
            dataset, rows = ray.data.from_arrow([arrow.of_rows(unit) for unit in units]), None
            most = min(_MOST_IMAGES, max(map(len, units)) * self._job.batch_size)
            sizes = tuple((height, width) for height, width, _ in self._job.sizes(self._config).values())
        settings = dataclasses.replace(
            self._settings,
            most=most,
            sizes=sizes,
            pictures=any(row.image is not None for row in self._job.rows) or "image" in self._job.arguments,
            threads=shares.threads,
            share=shares.memory,
        )
        drawn = dataset.map_batches(
            Worker,
            fn_constructor_args=(settings, self._output.url, self._shard_images is not None, name),
            batch_size=rows,
            batch_format="pyarrow",
            concurrency=shares.workers,
            num_cpus=shares.cpus,
            num_gpus=shares.gpus or None,
            runtime_env={"env_vars": cluster.variables()},
        )
        return iter(drawn.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))

    def _show(self, bar: tqdm, kept: int, state: Mapping[str, Any]) -> None:
        """Shows how far a job is, and writes down what was settled."""
        workers = state["workers"].values()
        done = kept + sum(one["drawn"] + one["kept"] + one["failed"] for one in workers)
        bar.n = done if bar.total is None else min(done, bar.total)
        bar.set_postfix_str(f"{len(workers)} worker{'s' if len(workers) > 1 else ''}", refresh=False)
        bar.refresh()
        values = state["settled"]
        together = {name.removeprefix(TOGETHER): count for name, count in values.items() if name.startswith(TOGETHER)}
        begun = Begun(values.get("precision"), together)
        if begun != self._begun and begun.precision is not None:
            self._begun = begun
            self._settle()
