"""What a generation gives back: images, and what is needed to make them again."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from kerasdiff.errors import RequestError
from kerasdiff.request import Request

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclasses.dataclass(frozen=True)
class Result:
    """Images of one request; `len`, indexing, iteration and `np.asarray` act on them.

    Attributes:
        images: uint8 (N, height, width, 3).
        latents: float32 (N, height / 8, width / 8, 4), as the decoder got them.
        request: what was asked, with every default filled in.
        model: name of the model that drew them.

    Example:
        ```python
        result = kerasdiff.generate("a red circle", batch_size=3, model="tiny")
        result.save("circle.png")  # circle_1.png, circle_2.png, circle_3.png
        result.grid().save("grid.png")
        ```
    """

    images: np.ndarray
    latents: np.ndarray
    request: Request
    model: str

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return self.request.seeds

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.images)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.images, dtype=dtype, copy=copy)

    def save(self, path: str | os.PathLike[str]) -> list[pathlib.Path]:
        """Writes each image: `path` itself for one, path_1, path_2, ... for several.

        An image is written under a temporary name and renamed, so that no half-written file is left.

        Returns:
            The paths, in the order of the images.

        Raises:
            RequestError: an ending other than .png, .jpg, .jpeg or .webp, or no such folder.
        """
        path = pathlib.Path(path)
        kind = _format(path)
        paths = [path]
        if len(self) > 1:
            paths = [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, len(self) + 1)]
        for image, target in zip(self.images, paths, strict=True):
            _write(Image.fromarray(image), target, kind)
        return paths

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images on one sheet, `columns` in a row (None: nearly square), without margins.

        Raises:
            RequestError: `columns` is not a whole number of at least 1.
        """
        count, height, width, _ = self.images.shape
        if columns is None:
            columns = math.ceil(math.sqrt(count))
        if not isinstance(columns, int) or isinstance(columns, bool) or columns < 1:
            raise RequestError(f"columns={columns!r} must be a whole number of at least 1")
        columns = min(columns, count)
        sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), "white")
        for index, image in enumerate(self.images):
            sheet.paste(Image.fromarray(image), ((index % columns) * width, (index // columns) * height))
        return sheet

    def save_grid(self, path: str | os.PathLike[str], columns: int | None = None) -> pathlib.Path:
        """Writes `grid(columns)` to one file; endings as for `save`."""
        path = pathlib.Path(path)
        _write(self.grid(columns), path, _format(path))
        return path

    def _repr_png_(self) -> bytes:
        """How a notebook shows a result: its grid."""
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return buffer.getvalue()


def check_output(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path that `save` can write to, found out before the work and not after it.

    Raises:
        RequestError: an unknown ending, or a folder that is not there.
    """
    path = pathlib.Path(path)
    _format(path)
    if not path.parent.is_dir():
        raise RequestError(f"cannot save to {path}: there is no folder {path.parent}; make it first")
    return path


def _format(path: pathlib.Path) -> str:
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"cannot save to {path}: the name must end in one of {', '.join(_FORMATS)}")
    return kind


def _write(image: Image.Image, path: pathlib.Path, kind: str) -> None:
    check_output(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        image.save(draft, kind)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RequestError(f"cannot save to {path}: {error.strerror or error}") from error
