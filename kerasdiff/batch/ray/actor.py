"""A model in a process of its own, which draws rows: what `Generate` and the workers of a job have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from kerasdiff import validation
from kerasdiff.batch.job import Job, Target, size_name
from kerasdiff.batch.ray.coordinator import Coordinator, Remote
from kerasdiff.batch.rows import Row, make_row
from kerasdiff.batch.runner import Album, Drawing
from kerasdiff.errors import RequestError
from kerasdiff.images import reader
from kerasdiff.request import MAX_IMAGES
from kerasdiff.runtime import cache_dir, memory, tf_setup

if TYPE_CHECKING:
    from kerasdiff.generator import Generator

# What is settled by a size of images: how many of them are drawn together.
TOGETHER = "together "


@dataclasses.dataclass(frozen=True)
class Settings:
    """What holds for all rows, and is the same for all workers.

    Attributes:
        model: as in `kerasdiff.batch.job.Job`.
        arguments: the same.
        batch_size: the same.
        format: the same.
        precision: as in `kerasdiff.Generator`.
        jit_compile: the same.
        most: images that are drawn at once at most.
        sizes: (height, width) that are warmed up before the first row; None is the model's own.
        pictures: whether rows may start from pictures.
        threads: of a worker on a CPU; None is TensorFlow's choice.
        share: part of the machine's memory that a worker may take.
    """

    model: Mapping[str, Any]
    arguments: Mapping[str, Any]
    batch_size: int = 1
    format: str = "png"
    precision: str = "auto"
    jit_compile: bool | str = "auto"
    most: int = 64
    sizes: tuple[tuple[int | None, int | None], ...] = ((None, None),)
    pictures: bool = False
    threads: int | None = None
    share: float = 1.0

    def job(self, rows: Sequence[Row]) -> Job:
        """Rows as a job, of which the arguments were checked before."""
        return Job(tuple(rows), self.model, self.arguments, self.batch_size, self.format)


class Drawer:
    """Loads a model and warms it up, then draws rows.

    Of several on one machine the first fills the caches, and the others wait for it and then only read them.

    Args:
        settings: what to draw with.
        coordinator: of all workers.

    Raises:
        KerasdiffError: the model cannot be had, or a setting is wrong.
    """

    def __init__(self, settings: Settings, coordinator: Coordinator | Remote) -> None:
        self.settings, self.coordinator = settings, coordinator
        self._together: dict[str, int] = {}
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.generator = self._begin()

    def rows(self, batch: Sequence[Mapping[str, Any]]) -> tuple[list[Row], list[tuple[int, str]]]:
        """What a batch asks for.

        Returns:
            Rows; and the places of what is no row, or nothing for this model, with why.
        """
        good: list[Row] = []
        bad: list[tuple[int, str]] = []
        taken: set[str] = set()
        for place, values in enumerate(batch):
            try:
                row = make_row(values)
                if row.id in taken:
                    raise RequestError(f"id={validation.shown(row.id)} is there twice; files are named after ids")
                self._settled_job.check_row(row, self.generator.config)
            except RequestError as error:
                bad.append((place, " ".join(str(error).split())))
                continue
            taken.add(row.id)
            good.append(row)
        return good, bad

    def targets(self, rows: Sequence[Row]) -> tuple[Target, ...]:
        """The images of rows."""
        return self.settings.job(rows).targets

    def draw(self, targets: Sequence[Target], album: Album, go_on: Callable[[], bool] = lambda: True) -> None:
        """Draws what an album does not have yet.

        Args:
            targets: what to draw; images of one group are drawn together, always as many at once.
            album: where images go.
            go_on: asked before each block; the rest is left when it says no.

        Raises:
            OutOfMemoryError: not even a single image fits into memory.
            CannotWriteError: an image cannot be written.
        """
        job, config = self.settings.job(list(dict.fromkeys(target.row for target in targets))), self.generator.config
        for size, some in self._by_size(job, targets, album).items():
            count = self._at_once(*size)
            drawing = Drawing(job, self.generator, album, fill=count)
            for block in job.blocks(config, dict.fromkeys(job.sizes(config), count), some):
                if not go_on():
                    return
                drawing.block(block, block)

    def _by_size(self, job: Job, targets: Sequence[Target], album: Album) -> dict[tuple[int, int], list[Target]]:
        """What is missing, by height and width. Pictures are looked at, so that a bad one costs no block of images."""
        found: dict[tuple[int, int], list[Target]] = {}
        seen: dict[str, tuple[int, int] | RequestError] = {}
        for target in targets:
            if album.has(target):
                continue
            if target.row.id not in seen:
                try:
                    seen[target.row.id] = self._size(job, target.row)
                except RequestError as error:
                    seen[target.row.id] = error
            size = seen[target.row.id]
            if isinstance(size, RequestError):
                album.fail(target, size)
            else:
                found.setdefault(size, []).append(target)
        return found

    def _size(self, job: Job, row: Row) -> tuple[int, int]:
        config = self.generator.config
        source = job.own(row, "image")
        if source is None:
            return job.size(row, config)
        height, width = job.own(row, "height"), job.own(row, "width")
        resize = job.arguments.get("resize")
        pixels = reader.prepare(reader.read(source, "image"), height, width, resize, config.size_multiple, "image")
        return pixels.shape[0], pixels.shape[1]

    @functools.cached_property
    def _settled_job(self) -> Job:
        return self.settings.job(())

    def _at_once(self, height: int, width: int) -> int:
        """Images of a size that are drawn at once: what the first worker that drew some found to fit."""
        size = size_name(height, width)
        if size not in self._together:
            self._together[size] = self.coordinator.settle(f"{TOGETHER}{size}", self._planned(height, width))
        return self._together[size]

    def _planned(self, height: int, width: int) -> int:
        if self._settled_job.exact:
            return 1
        return self.generator.plan(min(self.settings.most, MAX_IMAGES), height=height, width=width).chunk

    def _begin(self) -> Generator:
        folder = _cache()
        if self.coordinator.claim(folder):
            with _alone(folder):
                self._start()
                return self._prime(folder)
        os.environ[cache_dir.READ_ONLY] = "1"
        self._start()
        with _alone(folder):
            if not self.coordinator.is_primed(folder):  # the first one was ended
                del os.environ[cache_dir.READ_ONLY]
                return self._prime(folder)
        return self._load()

    def _prime(self, folder: str) -> Generator:
        generator = self._load()
        self.coordinator.prime(folder)
        return generator

    def _start(self) -> None:
        """Makes this process one that only draws, with the share of the machine that it has."""
        if "tensorflow" not in sys.modules:
            tf_setup.inference_only()
        tf_setup.import_tensorflow()
        if self.settings.threads is not None:
            tf_setup.use_threads(self.settings.threads)
        memory.use_share(self.settings.share)

    def _load(self) -> Generator:
        settings = self.settings
        from kerasdiff.generator import Generator

        generator = Generator(**settings.model, precision=settings.precision, jit_compile=settings.jit_compile)
        precision = self.coordinator.settle("precision", generator.execution.precision)
        if generator.execution.precision != precision:
            raise RequestError(
                f"a worker on {socket.gethostname()} would draw in {generator.execution.precision}, and this job is "
                f"drawn in {precision}; give precision={precision!r}"
            )
        self.generator = generator
        self._warm_up()
        return generator

    def _warm_up(self) -> None:
        defaults = self.generator.config.defaults
        scale = self.settings.arguments.get("guidance_scale", defaults.guidance_scale)
        guided = isinstance(scale, list) or scale != 1
        for height, width in self.settings.sizes:
            height, width = height or defaults.height, width or defaults.width
            count = self._at_once(height, width)
            self.generator.warm_up(count, height=height, width=width, guidance=guided, image=self.settings.pictures)


def failed(values: Mapping[str, Any], why: str) -> dict[str, Any]:
    """The line of a manifest for what is no row."""
    row_id, seed = values.get("id"), values.get("seed")
    return {
        "id": row_id if isinstance(row_id, str) else repr(row_id),
        "number": 1,
        "seed": seed if isinstance(seed, int) and 0 <= seed < 2**64 else None,
        "file": None,
        "nsfw": None,
        "seconds": None,
        "versions": None,
        "error": why,
    }


def _cache() -> str:
    try:
        return str(cache_dir.folder())
    except RuntimeError:
        return ""


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """No other worker with this cache is in here; where no lock can be made, they all are."""
    try:
        os.makedirs(folder, exist_ok=True)
        lock = FileLock(os.path.join(folder, "bulk.lock"))
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()
