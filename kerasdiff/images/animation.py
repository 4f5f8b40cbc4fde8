"""Writes images as an animation: GIF and WebP by Pillow, MP4 by ffmpeg."""

import contextlib
import io
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from kerasdiff import validation
from kerasdiff.atomic_write import atomic_path
from kerasdiff.errors import RequestError
from kerasdiff.images.tools import check_format_limit
from kerasdiff.images.writer import check_parent, saving, write_whole

# What Pillow calls a format, how many milliseconds it counts in, and how many frames a second it can have: browsers
# slow GIFs down whose frames are shorter than a fiftieth of a second.
_KINDS = {".gif": ("GIF", 10, 50.0), ".webp": ("WEBP", 1, 120.0), ".mp4": ("MP4", 1, 120.0)}
_OPTIONS: dict[str, dict[str, Any]] = {"GIF": {"optimize": False}, "WEBP": {"quality": 90}}
_NO_FFMPEG = "MP4 needs the program ffmpeg, and there is none on the PATH; install it, or write .webp or .gif"


def check_animation(path: str | os.PathLike[str], fps: float) -> tuple[pathlib.Path, float]:
    """A path that an animation can be written to, and its frames per second, checked before the work.

    Raises:
        RequestError: another extension, no such folder, no ffmpeg for an MP4, or a rate that is out of range.
    """
    path = pathlib.Path(validation.path("path", path))
    kind, _, most = _KINDS.get(path.suffix.lower(), (None, 0, 0.0))
    if kind is None:
        raise RequestError(f"cannot save to {validation.shown(path)}: the name must end in one of {', '.join(_KINDS)}")
    check_parent(path)
    if kind == "MP4" and shutil.which("ffmpeg") is None:
        raise RequestError(_NO_FFMPEG)
    return path, validation.real("fps", fps, 0.1, most)


def write_animation(
    images: Sequence[np.ndarray] | np.ndarray, path: str | os.PathLike[str], fps: float = 12.0
) -> pathlib.Path:
    """Writes images, uint8 (height, width, 3), one after another for ever; the file is there whole or not at all.

    Raises:
        RequestError: as `check_animation`; the file cannot be written, or ffmpeg says so.
    """
    path, fps = check_animation(path, fps)
    kind, unit, _ = _KINDS[path.suffix.lower()]
    if kind == "MP4":
        return _by_ffmpeg(images, path, fps)
    check_format_limit("the animation", kind, *images[0].shape[:2])
    # Each frame ends where it should, so that rounding does not add up.
    ends = np.round(np.arange(len(images) + 1) * 1000 / (fps * unit)).astype(int) * unit
    first, *others = map(Image.fromarray, images)
    encoded = io.BytesIO()
    durations = np.diff(ends).tolist()
    timing = {"duration": durations if others else durations[0], "loop": 0}
    first.save(encoded, kind, save_all=True, append_images=others, **timing, **_OPTIONS[kind])
    return write_whole(path, encoded.getvalue())


def _by_ffmpeg(images: Sequence[np.ndarray] | np.ndarray, path: pathlib.Path, fps: float) -> pathlib.Path:
    height, width, _ = images[0].shape
    program = shutil.which("ffmpeg")
    if program is None:
        raise RequestError(_NO_FFMPEG)
    reading = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    with saving(path), atomic_path(path) as partial, tempfile.TemporaryFile() as errors:
        # 4:2:0 is what every player takes.
        writing = ["-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", f"file:{partial.absolute()}"]
        command = [program, "-loglevel", "error", "-y", *reading, *writing]
        # In a session of its own, as Ctrl-C would end it before the file is whole.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, start_new_session=True)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and its status says why
                for image in images:
                    process.stdin.write(np.ascontiguousarray(image).tobytes())
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if status or not partial.exists():
            errors.seek(0)
            lines = errors.read(10_000).decode(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), f"exit status {status}")
            raise RequestError(f"ffmpeg could not write {validation.shown(path)}: {validation.line(said)}")
    return path
