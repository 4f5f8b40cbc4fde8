"""The cache of weights: large checkpoints of other formats, stored once more as files that are mapped into memory.

Transposing and converting a checkpoint's tensors takes seconds, and memory that a mapped file does not; it is done once
per checkpoint, network and type. `KERASDIFF_CACHE_GB` is how large the cache may become (20), and 0 switches it off.
What was not used for longest makes room. With `KERASDIFF_CACHE_READ_ONLY=1` what is there is used and nothing is added.
"""

import contextlib
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kerasdiff.atomic_write import atomic_path
from kerasdiff.errors import ModelError
from kerasdiff.runtime import cache_dir
from kerasdiff.runtime.safetensors_map import TensorFiles
from kerasdiff.runtime.safetensors_write import has_sample, write_mapped

_LOG = logging.getLogger("kerasdiff")
# Changes when the same checkpoint would be written differently.
_VERSION = 3
_LEAST_BYTES = 100e6
_SPARE_BYTES = 2e9


def path_for(files: Iterable[pathlib.Path], network: str, meaning: Any, dtype: str) -> pathlib.Path | None:
    """Where a network of a checkpoint is cached, or would be; None if it is not to be cached.

    A change of any of the files gives another path. `meaning` is what else the parameters depend on, with a `repr` of
    its own.
    """
    limit = cache_dir.limit()
    try:
        folder = cache_dir.folder() / "weights"
        stats = [(file.resolve(), file.stat()) for file in files]
    except (OSError, RuntimeError):  # no home folder; or no file, and whoever reads the checkpoint says so
        return None
    if not limit or sum(stat.st_size for _, stat in stats) < _LEAST_BYTES:
        return None
    identity = [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    key = cache_dir.cache_key(_VERSION, identity, network, meaning, dtype)
    return folder / f"{network}-{dtype}-{key}.safetensors"


def is_valid(path: pathlib.Path) -> bool:
    """Whether the cached file is there, complete, and on the disk as it was written; it counts as used now."""
    try:
        TensorFiles([path])
    except ModelError:
        return False
    if not has_sample(path):
        _LOG.warning("%s is incomplete, as after a power failure; rebuilding it", path)
        return False
    with contextlib.suppress(OSError):  # a cache that others filled may be read-only
        os.utime(path)
    return True


def put(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], values: Iterable[tuple[str, np.ndarray]], dtype: str
) -> bool:
    """Caches parameters at a path of `path_for`; returns whether they are there. The disk is not waited for.

    Names are such as "unet.conv_in.kernel", and values as in `safetensors_write.write`.
    """
    if cache_dir.is_read_only():
        return False
    folder, limit = path.parent, cache_dir.limit()
    needed = sum(map(math.prod, shapes.values())) * (4 if dtype == "float32" else 2)
    inside = {name.partition(".")[2]: shape for name, shape in shapes.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if needed <= limit:
            cache_dir.evict(folder, "*", limit - needed)
        if needed > limit or shutil.disk_usage(folder).free < needed + _SPARE_BYTES:
            _LOG.info("no room in %s: %s is read from the checkpoint each time", folder, path.name)
            return False
        with atomic_path(path) as partial:
            write_mapped(partial, inside, ((name.partition(".")[2], value) for name, value in values), dtype)
    except (OSError, RuntimeError) as error:
        _LOG.info("%s is not cached: %s", path.name, error)
        return False
    _LOG.info("%s is cached in %s, to be loaded faster from now on", path.name, folder)
    return True
