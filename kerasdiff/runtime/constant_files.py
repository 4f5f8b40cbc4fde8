"""Files of what a program computed of a network's parameters alone, mapped into memory by the next process.

They lie in the folder `constants` of the cache, of which they may take as much as cached weights.
"""

import contextlib
import logging
import math
import mmap
import os
import pathlib
import shutil
import weakref
from collections.abc import Callable

import numpy as np

from kerasdiff.atomic_write import atomic_path
from kerasdiff.errors import ModelError
from kerasdiff.runtime import cache_dir
from kerasdiff.runtime.safetensors_map import TensorFiles, pages_given_back
from kerasdiff.runtime.safetensors_write import MappedTensors, Tensors, has_sample, mapped_tensors

_LOG = logging.getLogger("kerasdiff")
# Less is computed again in the time in which it would be read.
_LEAST_BYTES = 10**8
_SPARE_BYTES = 2 * 10**9
_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def given_back() -> contextlib.AbstractContextManager[None]:
    """Inside, arrays are looked at once: their memory is released again and again."""
    return pages_given_back(_MAPPED)


def release_pages() -> None:
    """Releases the memory of all arrays, which is read again from the system's file cache by who looks at them."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in list(_MAPPED):
            mapped.madvise(mmap.MADV_DONTNEED)


def kept(key: str, tensors: Tensors, compute: Callable[[MappedTensors], None]) -> list[np.ndarray] | None:
    """The arrays of a key, computed into a new file if there is none; None if they are not to be cached."""
    size = sum(math.prod(shape) * kind.itemsize for shape, kind in tensors.values())
    folder = None if size < _LEAST_BYTES else cache_dir.private_folder("constants")
    if folder is None:
        return None
    path = folder / f"{key}.safetensors"
    if not _is_valid(path) and not _write(path, size, tensors, compute):
        return None
    files = TensorFiles([path])
    _MAPPED.update(files.maps)
    return [files.read(name) for name in tensors]


def _is_valid(path: pathlib.Path) -> bool:
    if not path.exists():
        return False
    with contextlib.suppress(ModelError):
        TensorFiles([path])
        if has_sample(path):
            with contextlib.suppress(OSError):  # a cache that others filled may be read-only
                os.utime(path)
            return True
    _LOG.warning("%s is corrupt; rebuilding it", path)
    return False


def _write(path: pathlib.Path, size: int, tensors: Tensors, compute: Callable[[MappedTensors], None]) -> bool:
    if cache_dir.is_read_only():
        return False
    try:
        if size <= cache_dir.limit():
            cache_dir.evict(path.parent, "*", cache_dir.limit() - size)
        if size > cache_dir.limit() or shutil.disk_usage(path.parent).free < size + _SPARE_BYTES:
            return False
        with atomic_path(path) as partial, mapped_tensors(partial, tensors) as arrays:
            compute(arrays)
    except OSError as error:
        _LOG.info("%s is not cached: %s", path.name, error)
        return False
    return True
