"""Large checkpoints of other formats, kept once more as files that are mapped into memory as they are.

Turning a checkpoint's tensors and converting their type takes seconds, and memory that a mapped file does not;
it is done once for each checkpoint, network and type. `KERASDIFF_CACHE` is the folder, `~/.cache/kerasdiff`
if it is not set; `KERASDIFF_CACHE_GB` is how large it may become (20), and 0 switches it off. What was not used
for longest makes room. The folder may be removed at any time. With `KERASDIFF_CACHE_READ_ONLY=1` what is there is
used and nothing is added, but for how many images fit into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kerasdiff.checkpoints.safetensors_write import has_sample, write_mapped
from kerasdiff.errors import ModelError
from kerasdiff.runtime import cache_dir
from kerasdiff.runtime.safetensors_map import TensorFiles

_LOG = logging.getLogger("kerasdiff")
# Changes when the same checkpoint would be written otherwise.
_VERSION = 2
_LEAST = 100e6
_SPARE = 2e9
_PARTIAL = ".partial-"
_ABANDONED_S = 3600


def place_of(files: Iterable[pathlib.Path], network: str, meaning: Any, dtype: str) -> pathlib.Path | None:
    """Where one network of a checkpoint is kept, or would be; None if it is not to be kept.

    Args:
        files: the checkpoint's; a change of any is another place.
        network: "text_encoder", "unet", "decoder" or "encoder".
        meaning: what else the parameters depend on, with a `repr` of its own.
        dtype: of the parameters.

    Raises:
        ModelError: `KERASDIFF_CACHE_GB` is no number of gigabytes.
    """
    most = cache_dir.limit()
    try:
        stats = [(file.resolve(), file.stat()) for file in files]
    except OSError:  # whoever reads the checkpoint says what is wrong with it
        return None
    if not most or sum(stat.st_size for _, stat in stats) < _LEAST:
        return None
    identity = [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    key = hashlib.sha256(repr((_VERSION, identity, network, meaning, dtype)).encode()).hexdigest()[:32]
    try:
        return cache_dir.folder() / "weights" / f"{network}-{dtype}-{key}.safetensors"
    except RuntimeError:  # no home folder is known
        return None


def is_kept(place: pathlib.Path) -> bool:
    """Whether the whole file is there, and on the disk what was put into it; it counts as used now."""
    try:
        TensorFiles([place])
    except ModelError:
        return False
    if not has_sample(place):
        _LOG.warning("%s was not written to its end, as when the power fails; it is made again", place)
        return False
    with contextlib.suppress(OSError):  # a cache that others filled may be read-only
        os.utime(place)
    return True


def keep(
    place: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], values: Iterable[tuple[str, np.ndarray]], dtype: str
) -> bool:
    """Lays parameters out in a file that is kept from now on; the system writes it to the disk meanwhile.

    Args:
        place: from `place_of`.
        shapes: of every parameter by name, such as "unet.conv_in.kernel".
        values: the parameters, in any order; one may be overwritten when the next one comes.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        Whether there is such a file now.
    """
    if cache_dir.is_read_only():
        return False
    try:
        return _write(place, shapes, values, dtype)
    except (OSError, RuntimeError) as error:
        _LOG.info("%s is not kept for later: %s", place.name, error)
        return False


def _write(
    place: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], values: Iterable[tuple[str, np.ndarray]], dtype: str
) -> bool:
    folder, most = place.parent, cache_dir.limit()
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(map(math.prod, shapes.values())) * (4 if dtype == "float32" else 2)
    _make_room(folder, needed, most)
    if needed > most or shutil.disk_usage(folder).free < needed + _SPARE:
        _LOG.info("no room in %s: %s is read from the checkpoint each time", folder, place.name)
        return False
    with tempfile.TemporaryDirectory(dir=folder, prefix=_PARTIAL) as temporary:
        partial = pathlib.Path(temporary) / place.name
        inside = {name.partition(".")[2]: shape for name, shape in shapes.items()}
        write_mapped(partial, inside, ((name.partition(".")[2], value) for name, value in values), dtype)
        os.replace(partial, place)
    _LOG.info("%s is kept in %s, to be loaded faster from now on", place.name, folder)
    return True


def _make_room(place: pathlib.Path, needed: float, most: float) -> None:
    for abandoned in place.glob(f"{_PARTIAL}*"):
        if time.time() - abandoned.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(abandoned, ignore_errors=True)
    kept = sorted(((path.stat(), path) for path in place.glob("*.safetensors")), key=lambda one: one[0].st_mtime)
    total = sum(stat.st_size for stat, _ in kept)
    for stat, path in kept:
        if total + needed <= most:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size
