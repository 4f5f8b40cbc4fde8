"""Large checkpoints of other formats, kept once more as files that are mapped into memory as they are.

Turning a checkpoint's tensors and converting their type takes seconds, and memory that a mapped file does not;
it is done once for each checkpoint, network and type. `KERASDIFF_CACHE` is the folder, `~/.cache/kerasdiff`
if it is not set; `KERASDIFF_CACHE_GB` is how large it may become (20), and 0 switches it off. What was not used
for longest makes room. The folder may be removed at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from kerasdiff.errors import ModelError
from kerasdiff.weights import markers
from kerasdiff.weights.tensors import TensorFiles

_LOG = logging.getLogger("kerasdiff")
# Changes when the same checkpoint would be written otherwise.
_VERSION = 1
_LEAST = 100e6
_SPARE = 2e9
_DEFAULT_GB = 20.0
_PARTIAL = ".partial-"
_ABANDONED_S = 3600


def keep(
    files: Iterable[pathlib.Path],
    network: str,
    meaning: Any,
    dtype: str,
    size: Callable[[], int],
    write: Callable[[pathlib.Path], None],
) -> pathlib.Path | None:
    """The kept file of one network, written if it is not there; None where nothing is kept.

    Args:
        files: the checkpoint's; a change of any makes a new file.
        network: "text_encoder", "unet", "decoder" or "encoder".
        meaning: what else the parameters depend on, with a `repr` of its own.
        dtype: of the parameters.
        size: bytes of the parameters, asked for if the file must be written.
        write: writes it.

    Raises:
        ModelError: the checkpoint cannot be read.
    """
    most = limit()
    try:
        stats = [(file.resolve(), file.stat()) for file in files]
    except OSError:  # whoever reads the checkpoint says what is wrong with it
        return None
    if not most or sum(stat.st_size for _, stat in stats) < _LEAST:
        return None
    identity = [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    key = hashlib.sha256(repr((_VERSION, identity, network, meaning, dtype)).encode()).hexdigest()[:32]
    try:
        place = markers.folder() / "weights"
        kept = place / f"{network}-{dtype}-{key}.safetensors"
        if _whole(kept):
            os.utime(kept)
            return kept
        place.mkdir(parents=True, exist_ok=True)
        needed = size()
        _make_room(place, needed, most)
        if needed > most or shutil.disk_usage(place).free < needed + _SPARE:
            _LOG.info("no room in %s: %s is read from the checkpoint each time", place, network)
            return None
        with tempfile.TemporaryDirectory(dir=place, prefix=_PARTIAL) as temporary:
            partial = pathlib.Path(temporary) / kept.name
            write(partial)
            os.replace(partial, kept)
    except (OSError, RuntimeError) as error:
        _LOG.info("%s is not kept for later: %s", network, error)
        return None
    _LOG.info("%s is kept in %s, to be loaded faster from now on", network, place)
    return kept


def _whole(path: pathlib.Path) -> bool:
    try:
        TensorFiles([path])
    except ModelError:
        return False
    return True


def limit() -> float:
    """Bytes that the cache of weights may take; 0 is no cache of anything.

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
