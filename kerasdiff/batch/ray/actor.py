"""Processes that generate images: an actor holds a model, and a worker of a job puts its images into the output."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil
from filelock import FileLock

from kerasdiff import validation
from kerasdiff.batch.job import Job, Target, size_name, with_adapters
from kerasdiff.batch.job_state import JOB
from kerasdiff.batch.manifest import Entry, invalid_entry
from kerasdiff.batch.ray.coordinator import ActorProxy, Coordinator
from kerasdiff.batch.rows import Row, make_row
from kerasdiff.batch.runner import Runner
from kerasdiff.batch.sinks import FileSink, Sink, TarSink, check_tar_ids
from kerasdiff.batch.storage import open_storage
from kerasdiff.errors import KerasdiffError, RequestError
from kerasdiff.images import reader
from kerasdiff.request import MAX_IMAGES
from kerasdiff.runtime import cache_dir, memory, tf_setup
from kerasdiff.runtime.precision import choose_backend
from kerasdiff.samplers import recipes

if TYPE_CHECKING:
    import pyarrow as pa

    from kerasdiff.generator import Generator

# Before a size: the name of a decision about how many images of that size are generated together.
TOGETHER = "together "


@dataclasses.dataclass(frozen=True)
class ActorSettings:
    """What is the same for all actors; `job` has what all rows share, and its own rows do not matter."""

    job: Job
    precision: str = "auto"
    jit_compile: bool | str = "auto"
    backend: str = "auto"
    shards: bool = False
    # The most images that are generated together.
    max_batch: int = 64
    # Heights and widths that are warmed up before the first row; None is the model's default.
    sizes: tuple[tuple[int | None, int | None], ...] = ((None, None),)
    has_images: bool = False
    # Whether weights are the same for all rows.
    frozen: bool = True
    # Per actor on a CPU; None is the backend's choice.
    threads: int | None = None
    # Part of the machine's memory that an actor may use.
    memory_share: float = 1.0


class Actor:
    """Loads a model and warms it up, then generates the images of rows.

    Of several on one machine the first fills the caches; the others wait for it and then only read them.
    """

    def __init__(self, settings: ActorSettings, coordinator: Coordinator | ActorProxy) -> None:
        self.settings, self.coordinator = settings, coordinator
        self._batch_sizes: dict[str, int] = {}
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._start()

    def targets(self, batch: Sequence[Mapping[str, Any]]) -> tuple[tuple[Target, ...], list[tuple[int, Entry]]]:
        """The images of a batch of rows; and index and entry of whatever is no row, or not valid for this model."""
        rows: list[Row] = []
        invalid: list[tuple[int, Entry]] = []
        ids: set[str] = set()
        for index, values in enumerate(batch):
            try:
                row = with_adapters(make_row(values), self.settings.job.arguments)
                if row.id in ids:
                    raise RequestError(f"duplicate id {validation.shown(row.id)}; files are named after ids")
                self.settings.job.check_row(row, self.generator.config)
                if self.settings.shards:
                    check_tar_ids([row.id])
            except RequestError as error:
                invalid.append((index, invalid_entry(values, error)))
                continue
            ids.add(row.id)
            rows.append(row)
        return self._job(rows).targets, invalid

    def generate(self, targets: Sequence[Target], sink: Sink) -> Iterator[None]:
        """Generates what a sink does not know yet, and yields before each block, so that the caller may stop.

        Images of one group are generated together, always the same number at once. Out of memory, or if nothing can
        be written, it ends with that error.
        """
        job, config = self._job(list(dict.fromkeys(target.row for target in targets))), self.generator.config
        blocks: dict[Any, list[tuple[Runner, list[Target]]]] = {}
        for size, subset in self._by_size(job, targets, sink).items():
            count = self._batch_size(*size)
            runner = Runner(job, self.generator, sink, padded_size=count)
            for block in job.blocks(config, dict.fromkeys(job.sizes(config), count), subset):
                blocks.setdefault(job.loras(block[0].row), []).append((runner, block))
        for runner, block in itertools.chain.from_iterable(blocks.values()):
            yield
            for _ in runner.run(block):
                pass

    def _job(self, rows: Sequence[Row]) -> Job:
        return dataclasses.replace(self.settings.job, rows=tuple(rows))

    def _by_size(self, job: Job, targets: Sequence[Target], sink: Sink) -> dict[tuple[int, int], list[Target]]:
        """What is missing, by height and width. Images to start from are read, so that a bad one costs no block."""
        by_size: dict[tuple[int, int], list[Target]] = {}
        missing = [target for target in targets if target.key not in sink.known]
        for row, group in itertools.groupby(missing, operator.attrgetter("row")):
            of_row = list(group)
            try:
                by_size.setdefault(self._size(job, row), []).extend(of_row)
            except RequestError as error:
                for target in of_row:
                    sink.fail(target, error)
        return by_size

    def _size(self, job: Job, row: Row) -> tuple[int, int]:
        config = self.generator.config
        hints = (control.image for control in job.entries(row, "controls"))
        source = next(filter(None, (job.value(row, "image"), *hints)), None)
        if source is None:
            return job.size(row, config)
        height, width = job.value(row, "height"), job.value(row, "width")
        resize = job.arguments.get("resize")
        pixels = reader.prepare(reader.read(source, "image"), height, width, resize, config.size_multiple, "image")
        return pixels.shape[0], pixels.shape[1]

    def _batch_size(self, height: int, width: int) -> int:
        """How many images of a size are generated together: what the first actor with this size found to fit."""
        size = size_name(height, width)
        if size not in self._batch_sizes:
            most = 1 if self.settings.job.exact else min(self.settings.max_batch, MAX_IMAGES)
            known = self.settings.job.approximations | self.settings.job.steering
            planned = self.generator.plan(most, height=height, width=width, **known).chunk
            self._batch_sizes[size] = self.coordinator.settle(f"{TOGETHER}{size}", planned)
        return self._batch_sizes[size]

    def _start(self) -> None:
        try:
            folder = str(cache_dir.folder())
        except RuntimeError:
            folder = ""
        first = self.coordinator.claim_warm_up(folder)
        if not first:
            os.environ[cache_dir.READ_ONLY] = "1"
            self._set_up()
        with _locked(folder):
            if first:
                self._set_up()
            elif not self.coordinator.is_warm(folder):  # the first one was killed
                del os.environ[cache_dir.READ_ONLY]
                first = True
            if first:
                self._load()
                self.coordinator.mark_warm(folder)
                return
        self._load()

    def _set_up(self) -> None:
        """Makes this process one that only generates, with its share of the machine."""
        if "tensorflow" not in sys.modules and self.settings.frozen:
            tf_setup.inference_only()
        name = choose_backend(self.settings.backend, self.settings.precision, self.settings.jit_compile)
        if name == "tensorflow":
            tf_setup.import_tensorflow()
        if self.settings.threads is not None:
            tf_setup.use_threads(self.settings.threads, name)
        memory.use_share(self.settings.memory_share)

    def _load(self) -> None:
        from kerasdiff.generator import Generator

        settings = self.settings
        how: dict[str, Any] = {
            "precision": settings.precision,
            "jit_compile": settings.jit_compile,
            "backend": settings.backend,
        }
        generator = Generator(**settings.job.model, **how)
        for name in ("precision", "backend"):
            own = getattr(generator.execution, name)
            settled = self.coordinator.settle(name, own)
            if own != settled:
                raise RequestError(
                    f"a worker on {socket.gethostname()} would run in {own}, but this job runs in {settled}; "
                    f"give {name}={settled!r}"
                )
        self.generator: Generator = generator
        arguments = settings.job.arguments
        recipe = recipes.recipe_name(arguments.get("recipe", generator.config.defaults.recipe))
        defaults = recipes.applied(generator.config, recipe).defaults
        scale = arguments.get("guidance_scale", defaults.guidance_scale)
        guided = isinstance(scale, list) or scale != 1
        for height, width in settings.sizes:
            height, width = height or defaults.height, width or defaults.width
            count = self._batch_size(height, width)
            known: dict[str, Any] = {"height": height, "width": width, "guidance": guided, "image": settings.has_images}
            known |= {name: arguments[name] for name in ("hires", "tile", "clip_skip") if name in arguments}
            known |= settings.job.approximations | settings.job.steering
            generator.warm_up(count, **known)


class Worker:
    """Ray Data makes one in each process of a job: batches of rows become images in its output, and entries.

    What makes it useless, and others like it, is reported to the coordinator before it is raised, in one line.
    `output` is opened by `open_storage`; `coordinator` is an object, or the name of an actor.
    """

    def __init__(self, settings: ActorSettings, output: str, coordinator: Coordinator | str) -> None:
        self._coordinator = ActorProxy(coordinator) if isinstance(coordinator, str) else coordinator
        self._storage = open_storage(output)
        with self._reported():
            if not self._storage.existing([JOB]):
                raise RequestError(
                    f"a worker on {socket.gethostname()} does not see {self._storage.where}; give a folder that all "
                    "machines share, or a bucket"
                )
            self._actor = Actor(settings, self._coordinator)
            self._done = self._coordinator.done()

    def __call__(self, batch: Any) -> pa.Table:
        from kerasdiff.batch.ray import arrow

        with self._reported():
            return arrow.entries_table(self._generate(arrow.records(batch)), self._actor.name)

    def _generate(self, batch: Sequence[Mapping[str, Any]]) -> list[Entry]:
        if not self._report():
            self._report(busy=False)
            return []
        targets, invalid = self._actor.targets(batch)
        targets = tuple(target for target in targets if target.key not in self._done)
        entries: list[Entry] = []
        with self._sink(targets, entries) as sink:
            reported = len(entries)
            self._report(entries, found=True)
            for _ in self._actor.generate(targets, sink):
                new, reported = entries[reported:], len(entries)
                if not self._report(new):
                    break
            # Nothing is left where nobody waits for it any more: a job that is gone may have been started again.
            self._report()
        entries += (entry for _, entry in invalid)
        self._report(entries[reported:], busy=False)
        return entries

    def _sink(self, targets: Sequence[Target], entries: list[Entry]) -> Sink:
        """A sink that has found which images exist."""
        origin = self._actor.generator.origin
        if self._actor.settings.shards:
            return TarSink(self._storage, entries, origin, targets, {"worker": self._actor.name})
        return FileSink(self._storage, entries, origin, targets)

    def _report(self, entries: Sequence[Entry] = (), *, found: bool = False, busy: bool = True) -> bool:
        """Reports images that were found or generated, and those that failed; returns whether to continue."""
        failed = sum(entry.error is not None for entry in entries)
        good = len(entries) - failed
        drawn, kept = (0, good) if found else (good, 0)
        memory_used = psutil.Process().memory_info().rss
        return self._coordinator.report(self._actor.name, drawn, kept, failed, busy, memory_used)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except KerasdiffError as error:
            self._coordinator.fail(error)
            raise


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keeps other workers with this cache out; where no lock can be created, there is none."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)
            stack.enter_context(FileLock(os.path.join(folder, "bulk.lock")))
        yield
