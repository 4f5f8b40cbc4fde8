"""The folder of everything that one process leaves for the next: `KERASDIFF_CACHE`, or `~/.cache/kerasdiff`.

It holds weights, traced programs, learned batch sizes, and markers: empty files that say that something was done once.
Where nothing can be written nothing is cached, and that is no error. The folder may be removed at any time.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import time

from kerasdiff.atomic_write import final_name
from kerasdiff.errors import ModelError

_LOG = logging.getLogger("kerasdiff")
# The variable that keeps a process from adding anything; workers that share a cache have it from the second one on.
READ_ONLY = "KERASDIFF_CACHE_READ_ONLY"
_DEFAULT_GB = 20.0
# After so long, a temporary file is taken to be that of a process that was killed.
_ABANDONED_S = 3600


def folder() -> pathlib.Path:
    """The cache's folder, which need not exist; RuntimeError where no home folder is known."""
    return pathlib.Path(os.environ.get("KERASDIFF_CACHE") or "~/.cache/kerasdiff").expanduser()


def private_folder(kind: str) -> pathlib.Path | None:
    """A folder in the cache, made with mode 0700; None if the cache is off, cannot be made, or is open to others."""
    if limit() == 0:
        return None
    try:
        path = folder() / kind
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        stat = path.stat()
    except (OSError, RuntimeError):
        return None
    if os.name == "posix" and (stat.st_uid != os.geteuid() or stat.st_mode & 0o022):
        _LOG.warning("%s belongs to or can be changed by others; the cache in it is not used", path)
        return None
    return path


def is_read_only() -> bool:
    """Whether nothing may be added to the cache."""
    return os.environ.get(READ_ONLY, "") not in ("", "0")


def limit() -> float:
    """Bytes that cached weights may take; 0 switches the whole cache off.

    Raises:
        ModelError: `KERASDIFF_CACHE_GB` is no number of gigabytes.
    """
    text = os.environ.get("KERASDIFF_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else _DEFAULT_GB
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e9:
        raise ModelError(f"KERASDIFF_CACHE_GB={text!r} is not a number of gigabytes; 0 switches the cache off")
    return gigabytes * 1e9


def cache_key(*parts: object) -> str:
    """A file name for what is determined by `parts`, each with a `repr` of its own."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def evict(path: pathlib.Path, pattern: str, most_bytes: float) -> None:
    """Removes the files that were not used for longest until the others take at most `most_bytes`.

    What killed processes left half written goes as well.
    """
    cached: list[tuple[float, int, pathlib.Path]] = []
    for file in filter(pathlib.Path.is_file, path.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            stat = file.stat()
            if final_name(file.name) is None:
                cached.append((stat.st_mtime, stat.st_size, file))
            elif time.time() - stat.st_mtime > _ABANDONED_S:
                file.unlink()
    total = sum(size for _, size, _ in cached)
    for _, size, file in sorted(cached):
        if total <= most_bytes:
            return
        file.unlink(missing_ok=True)
        total -= size


def marker_exists(name: str) -> bool:
    """Whether a marker was left before."""
    try:
        return (folder() / name).exists()
    except (OSError, RuntimeError):
        return False


def leave_marker(name: str) -> bool:
    """Leaves a marker; returns whether it is the first, among several processes as well."""
    try:
        (folder() / name).parent.mkdir(parents=True, exist_ok=True)
        (folder() / name).touch(exist_ok=False)
    except (OSError, RuntimeError):
        return not marker_exists(name)
    return True
