"""What a process that only draws can be set to; the command line and the benchmark set theirs."""

import contextlib
import importlib
import logging
import os
import pathlib
import shutil
import sys
import threading
import types
from collections.abc import Iterator

from kerasdiff.errors import RequestError
from kerasdiff.runtime import backend, cache_dir, program_cache

_LOG = logging.getLogger("kerasdiff")
_FROZEN = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"
_XLA = "TF_XLA_FLAGS"
_NOT_NEEDED = ("grain", "jax", "matplotlib", "pandas")
# Set where `import_tensorflow` imported it, and by `start_quietly`.
_LEAN, _QUIET = threading.Event(), threading.Event()
_ABANDONED_S = 30 * 24 * 3600
_DIRECTORY = "--tf_xla_persistent_cache_directory="


def inference_only() -> None:
    """Promises that no weights change in this process, so that TensorFlow may prepare them once.

    On a CPU, oneDNN then keeps every weight in the order that it multiplies in: a step of Stable Diffusion takes less
    time, and one more copy of the weights. What XLA compiles is kept in `KERASDIFF_CACHE`/xla.

    Both hold for all of TensorFlow in this process: **after this call a layer that is trained or loaded anew, of
    whatever library, gives wrong results**. So it is never done behind your back; `python -m kerasdiff` does it, as
    its process does nothing else.

    Raises:
        RequestError: TensorFlow was imported before.
    """
    if "tensorflow" in sys.modules:
        raise RequestError("inference_only() comes too late: call it before TensorFlow is imported")
    os.environ.setdefault(_FROZEN, "1")
    folder = _xla_folder()
    if folder is not None and "persistent_cache" not in os.environ.get(_XLA, ""):
        flags = f"{_DIRECTORY}{folder} --tf_xla_persistent_cache_prefix=kd"
        if cache_dir.is_read_only():
            flags += " --tf_xla_persistent_cache_read_only=true"
        os.environ[_XLA] = f"{os.environ.get(_XLA, '')} {flags}".strip()


def start_quietly() -> None:
    """From now on, what TensorFlow writes past Python while it starts is not shown, whenever that is."""
    _QUIET.set()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Without what libraries write past Python, after `start_quietly`; what Python code writes comes through."""
    if not _QUIET.is_set():
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as null, open(saved, "w", buffering=1, errors="backslashreplace") as stderr:
        os.dup2(null.fileno(), 2)
        try:
            with contextlib.redirect_stderr(stderr):
                yield
        finally:
            os.dup2(saved, 2)


def import_tensorflow() -> None:
    """Imports TensorFlow, if it is the backend, without other packages that it imports where they are installed.

    Plots, conversions from JAX and data sets are not needed to draw, nor is Keras where graphs are kept; together they
    are half of its start. In this process TensorFlow then does without the former, so it is for processes that are
    ours; Keras comes by `import_keras`, or when something else asks for it.
    """
    if backend.of_keras() != "tensorflow" or "tensorflow" in sys.modules:
        return
    _LEAN.set()
    # If it is missing, the first who needs it says so.
    with starting(), contextlib.suppress(ModuleNotFoundError), _hidden("keras", *_NOT_NEEDED):
        importlib.import_module("tensorflow")


def import_keras() -> None:
    """Imports Keras; where `import_tensorflow` left it out, without the same packages."""
    if "keras" not in sys.modules:
        with starting(), _hidden(*_NOT_NEEDED if _LEAN.is_set() else ()):
            importlib.import_module("keras")


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """In this block packages that are not imported yet are not to be found."""
    modules: dict[str, types.ModuleType | None] = sys.modules  # type: ignore[assignment]
    hidden = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(hidden))  # None: not to be imported
    try:
        yield
    finally:
        for name in hidden:
            modules.pop(name, None)


def use_threads(count: int, name: str) -> None:
    """Draws on so many threads of this process, if the backend of a name is TensorFlow or OpenVINO.

    Raises:
        RequestError: TensorFlow has begun to work before.
    """
    if name == "openvino":  # which needs no TensorFlow to draw
        backend.of(name).use_threads(count)
    if name != "tensorflow":
        return
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)
    except RuntimeError:
        raise RequestError("threads come too late: TensorFlow has begun to work in this process") from None


def is_inference_only() -> bool:
    """Whether weights are taken to be frozen."""
    return os.environ.get(_FROZEN, "") == "1"


def xla_folder() -> pathlib.Path | None:
    """Where XLA keeps what it compiles, if it is ours."""
    flags = os.environ.get(_XLA, "").split()
    found = next((flag.removeprefix(_DIRECTORY) for flag in flags if flag.startswith(_DIRECTORY)), None)
    with contextlib.suppress(RuntimeError):  # there is no folder for caches
        if found is not None and pathlib.Path(found).parent == cache_dir.folder() / "xla":
            return pathlib.Path(found)
    return None


def forget_compiled() -> bool:
    """Removes what XLA kept, as it could not be read; whether there was anything."""
    folder = xla_folder()
    if folder is None or not any(folder.iterdir()):
        return False
    _LOG.warning("what XLA kept in %s cannot be read; it is compiled again", folder)
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
    return True


def _xla_folder() -> pathlib.Path | None:
    """A folder for this processor, these versions and these flags, which XLA's own keys leave out."""
    root = cache_dir.private_folder("xla")
    if root is None:
        return None
    folder = root / program_cache.environment(os.environ.get(_XLA, ""), ())
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for old in root.iterdir():  # of other versions
            if old != folder and old.stat().st_mtime < folder.stat().st_mtime - _ABANDONED_S:
                shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
