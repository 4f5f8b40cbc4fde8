"""Larger pictures, whoever made them: `kerasdiff.upscale`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kerasdiff import validation
from kerasdiff.adapter_files import UpscalerFile, make_upscaler
from kerasdiff.diffusion.pipeline import MADE_OF
from kerasdiff.diffusion.upscaler import Upscaler, UpscalerLibrary
from kerasdiff.errors import RequestError
from kerasdiff.images.reader import read
from kerasdiff.images.tools import check_format_limit, grid
from kerasdiff.images.writer import encode, kind_of, numbered, write
from kerasdiff.metadata import upscaled_arguments
from kerasdiff.result import Result
from kerasdiff.runtime import backend as backends
from kerasdiff.runtime import memory, terminal
from kerasdiff.runtime.batch_sizer import BatchSizer
from kerasdiff.runtime.precision import Execution, check, choose
from kerasdiff.runtime.program_cache import open_cache

# The upscalers of each way to run them.
_libraries: dict[Execution, UpscalerLibrary] = {}
_opening = threading.Lock()


@dataclasses.dataclass(frozen=True, repr=False)
class UpscaledImages:
    """Pictures that were made larger; `len`, indexing, iteration and, if all have one size, `np.asarray` act on them.

    Attributes:
        images: each uint8 (height, width, 3).
        upscaler: its file, scale and hash.
        sources: the path of each picture; None where it was no file.
    """

    images: tuple[np.ndarray, ...]
    upscaler: UpscalerFile
    sources: tuple[pathlib.Path | None, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.images)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.images, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        sizes = ", ".join(dict.fromkeys(f"{image.shape[0]} x {image.shape[1]}" for image in self.images))
        return f"<UpscaledImages: {len(self)} of {sizes} by {self.upscaler.file}>"

    def save(self, path: str | os.PathLike[str], *, metadata: bool = True) -> list[pathlib.Path]:
        """Writes each image: `path` itself for one, path_1, path_2, ... for several.

        Unless `metadata` is False, each file says what its source said, and that it was made larger, in
        AUTOMATIC1111's words.

        Raises:
            RequestError: as from `Result.save`.
        """
        path, metadata = pathlib.Path(validation.path("path", path)), validation.boolean("metadata", metadata)
        kind = kind_of(path)
        for image in self.images:
            check_format_limit("an image", kind, *image.shape[:2])
        paths = numbered(path, len(self))
        for index, (image, target) in enumerate(zip(self.images, paths, strict=True)):
            write(Image.fromarray(image), target, **(self.told(index, kind) if metadata else {}))
        return paths

    def told(self, place: int, kind: str) -> dict[str, Any]:
        """An image's metadata, as `Result.told` gives it."""
        return upscaled_arguments(self.sources[place], self.upscaler, kind)

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images in one grid, as from `Result.grid`; RequestError if they differ in size."""
        if columns is not None:
            columns = min(validation.integer("columns", columns, 1), len(self))
        return grid(list(self.images), cols=columns)

    def _repr_png_(self) -> bytes:
        """The first image, or all in a grid, which a notebook shows."""
        same = len({image.shape for image in self.images}) == 1
        return encode(self.grid() if same else Image.fromarray(self.images[0]), "PNG")


def upscale(
    images: Any,
    upscaler: Any,
    *,
    scale: float | None = None,
    precision: str = "auto",
    jit_compile: bool | str = "auto",
    backend: str = "auto",
    progress: bool | None = None,
) -> Result | UpscaledImages:
    """Makes pictures larger with an upscaler of ESRGAN's kind.

    The upscaler stays loaded, so that a second call with the same one starts at once. A picture is computed in tiles
    of one size that overlap: its size compiles nothing, and memory does not grow with it, but for the picture itself.

    Args:
        images: a picture, or a list of them: the path of a file, a PIL image, or an array (height, width, 3), uint8 or
            from 0 to 1; or an array (N, height, width, 3), or a `Result`. Transparent areas become white.
        upscaler: RRDBNet (ESRGAN, BSRGAN, Real-ESRGAN) or SRVGGNetCompact, found out from the file: a .safetensors or
            .pth file, or "org/name/file.pth" on the Hugging Face hub.
        scale: how many times larger they become; less than the upscaler's own scale is reached by Lanczos' filter.
            None is the upscaler's.
        precision: as in `Generator`, as are the next two. "auto" is that of the images, if they are a `Result`.
        progress: whether to show a progress bar on stderr; None: if that is a terminal or a notebook.

    Returns:
        Of a `Result` a `Result`, which `kerasdiff.replay` makes again from its files; else `UpscaledImages`.

    Raises:
        RequestError: a picture cannot be read, or would become too large.
        ModelError: the file is no upscaler that is known here, or cannot be had.
    """
    given = make_upscaler("upscaler", upscaler)
    if given is None:
        raise RequestError("upscaler is missing; give its file")
    if scale is not None:
        given = make_upscaler("upscaler", (given.file, scale))
    check(precision, jit_compile, backend)
    execution = None
    if isinstance(images, Result):
        if images.request.upscale is not None:
            raise RequestError("these images were made larger already; give np.asarray(images) to do it again")
        origin = images.origin
        if origin is not None and precision == jit_compile == backend == "auto":
            execution = choose(origin.precision, origin.jit_compile, True, origin.backend)
    pictures, sources = _pictures(images)
    assert given is not None
    opened, given = _open(given, execution, precision, jit_compile, backend)
    for picture in pictures:
        opened.size(picture.shape[0], picture.shape[1], given.scale)
    tiles = sum(opened.tiles(picture.shape[0], picture.shape[1]) for picture in pictures)
    shown = terminal.shows_progress(progress)
    with terminal.bar(shown, desc=terminal.short_name(opened.name), unit="tile", total=tiles) as bar:
        larger = [opened(picture, given.scale, bar.update) for picture in pictures]
    if isinstance(images, Result):
        return dataclasses.replace(
            images, images=np.stack(larger), request=dataclasses.replace(images.request, upscale=given)
        )
    return UpscaledImages(tuple(larger), given, tuple(sources))


def _open(
    given: UpscalerFile, execution: Execution | None, precision: str, jit_compile: bool | str, backend: str
) -> tuple[Upscaler, UpscalerFile]:
    """An upscaler that is run in the way that was asked for, and its file with its hash."""
    if execution is None:
        from kerasdiff.adapters.file_search import find_upscaler
        from kerasdiff.checkpoints.formats.esrgan_file import open_upscaler

        large = open_upscaler(find_upscaler(given.file)).config.upscaler.large  # type: ignore[attr-defined]
        execution = choose(precision, jit_compile, large, backend)
    with _opening:
        if execution not in _libraries:
            runs = execution.backend
            device = " ".join([execution.device, *backends.of(runs).devices()])
            programs, batches = (open_cache(runs, device, MADE_OF, kind) for kind in ("programs", "batches"))
            sizer = BatchSizer(batches, (execution.precision, execution.jit_compile, memory.total()), memory.free)
            _libraries[execution] = UpscalerLibrary(execution, programs, sizer)
    library = _libraries[execution]
    settled = library.settled(given)
    assert settled is not None
    return library.open(settled), settled


def _pictures(images: Any) -> tuple[list[np.ndarray], list[pathlib.Path | None]]:
    """Pictures uint8 (h, w, 3), and the files that they are in."""
    several = isinstance(images, list | tuple | Result | UpscaledImages) or getattr(images, "ndim", 0) == 4
    entries: Sequence[Any] = list(images) if several else [images]
    if not entries:
        raise RequestError("there are no images; give at least one")
    names = [f"images[{index}]" for index in range(len(entries))] if several else ["images"]
    pictures = [read(entry, name) for entry, name in zip(entries, names, strict=True)]
    return pictures, [pathlib.Path(entry) if isinstance(entry, str | os.PathLike) else None for entry in entries]
