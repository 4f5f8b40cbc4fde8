"""The cache of traced programs: what took seconds to trace is read in milliseconds by the next process.

They lie in the folder `programs` of the cache, in one folder per set of versions, flags and devices. A program is
code, so the folder is the user's own (mode 0700) and nothing in it comes from elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pathlib
import platform
import re
import zlib

from kerasdiff.atomic_write import atomic_write
from kerasdiff.runtime import cache_dir
from kerasdiff.runtime.platform_info import processor, version

_LOG = logging.getLogger("kerasdiff")
_PACKAGE = pathlib.Path(__file__).parents[1]
_PACKAGES = ("keras", "tensorflow", "tensorflow-cpu", "jax", "jaxlib", "openvino", "numpy")
_FLAGS = ("XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_DEFAULT_FPMATH_MODE", "JAX_DEFAULT_MATMUL_PRECISION")
_DIGEST_BYTES = 32
# In a folder of shipped programs: a digest of what they were traced from.
SOURCES = "sources"
_TRACED = (
    *("kerasdiff.diffusion.denoise_step", "kerasdiff.diffusion.stage", "kerasdiff.diffusion.vae_stage"),
    *("kerasdiff.runtime.backends.keras_ops", "kerasdiff.runtime.backends.tf_tracing"),
    *("kerasdiff.runtime.backends.graph_partition", "kerasdiff.runtime.backends.openvino_layout"),
)
_MOST_BYTES = 1e9


def payload_of(path: pathlib.Path) -> bytes:
    """What was written to a file of the cache; ValueError if that is corrupt."""
    content = path.read_bytes()
    payload = content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != content[:_DIGEST_BYTES]:
        raise ValueError(f"{path} is corrupt")
    return payload


class ProgramCache:
    """Bytes by key in one folder, or none if that is None; what cannot be read or written counts as missing.

    `shipped` is a folder of files that came with the package, which are read if the other has none.
    """

    def __init__(self, folder: pathlib.Path | None, grows: bool = True, shipped: pathlib.Path | None = None) -> None:
        self.folder, self._grows, self._shipped = folder, grows, shipped

    def read(self, key: str) -> bytes | None:
        """What was written, or None; a corrupt file is removed, with one warning."""
        if self.folder is None or not (self.folder / key).exists():
            return self._read_shipped(key)
        try:
            return payload_of(self.folder / key)
        except OSError:
            return None
        except ValueError:
            self.remove(key)
            return None

    def _read_shipped(self, key: str) -> bytes | None:
        try:
            return None if self._shipped is None else zlib.decompress((self._shipped / key).read_bytes())
        except (OSError, zlib.error):
            return None

    def has(self, key: str) -> bool:
        """Whether something is cached."""
        return any(folder is not None and (folder / key).exists() for folder in (self.folder, self._shipped))

    def stamp(self, key: str) -> int | None:
        """Changes when something else is written; None if nothing is there."""
        try:
            return None if self.folder is None else (self.folder / key).stat().st_mtime_ns
        except OSError:
            return None

    def write(self, key: str, payload: bytes) -> None:
        """Caches a payload; of several processes that do so at once, the last one's stays."""
        if self.folder is None or not self._grows:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(self.folder / key, sync=False, mode=0o600) as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            cache_dir.evict(self.folder.parent, "*/*", _MOST_BYTES)
        except OSError as error:
            _LOG.info("%s is not cached: %s", key, error)

    def remove(self, key: str) -> None:
        """Removes what turned out to be corrupt, with a warning."""
        if self.folder is None or not (self.folder / key).exists():  # it was shipped
            return
        _LOG.warning("%s is corrupt; rebuilding it", self.folder / key)
        try:
            (self.folder / key).unlink(missing_ok=True)
        except OSError as error:
            _LOG.info("it cannot be removed: %s", error)


def open_cache(backend: str, device: str, made_of: tuple[str, ...], kind: str = "programs") -> ProgramCache:
    """The programs of this environment, or what else depends on it, in the cache's folder `kind`.

    `made_of` are the modules of this package that traced functions come from; a change of what they import counts too.
    """
    made_of = (*made_of, f"kerasdiff.runtime.backends.{backend}")
    root = cache_dir.private_folder(kind)
    grows = kind == "batches" or not cache_dir.is_read_only()
    folder = None if root is None else root / f"{backend}-{environment(device, made_of)}"
    return ProgramCache(folder, grows, shipped(backend) if kind == "programs" else None)


def shipped(backend: str) -> pathlib.Path | None:
    """The programs of the embedded model that came with the package, unless what they were traced from has changed."""
    folder = _PACKAGE / "graphs" / backend
    try:
        return folder if (folder / SOURCES).read_text().strip() == shipped_digest(backend) else None
    except OSError:
        return None


def shipped_digest(backend: str) -> str:
    """Of the files that say what is traced."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in shipped_sources(backend))).hexdigest()


def shipped_sources(backend: str) -> list[pathlib.Path]:
    """The networks and all that they import, the functions of stages, and what traces them."""
    tracing = (f"kerasdiff.runtime.backends.{backend}_trace", *_TRACED)
    return sorted({*sources(("kerasdiff.models.networks",)), *(_path(module) for module in tracing)})


def environment(device: str, made_of: tuple[str, ...]) -> str:
    """A digest of all that a program depends on besides its model and its shapes."""
    flags = {name: os.environ.get(name) for name in _FLAGS}
    parts = (_digest(made_of), _versions(), flags, device, processor(), platform.machine())
    return cache_dir.cache_key(*parts)[:16]


# What a file of the package imports from it, but for types: "from kerasdiff.a import b, c".
_IMPORT = re.compile(r"^ *from (kerasdiff[\w.]*) import (\([^)]*\)|.*)$", re.MULTILINE)
_FOR_TYPES = re.compile(r"^if TYPE_CHECKING:\n(?: .*\n|\n)+", re.MULTILINE)


@functools.cache
def sources(modules: tuple[str, ...]) -> tuple[pathlib.Path, ...]:
    """The files of some modules of this package, and of all that they import from it."""
    files: dict[str, pathlib.Path] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        path = _path(module)
        if module in files or not path.is_file():  # a name that is no module
            continue
        files[module] = path
        for package, names in _IMPORT.findall(_FOR_TYPES.sub("", path.read_text("utf-8"))):
            imported = [name.split()[0] for name in names.strip("()").split(",") if name.strip()]
            waiting += [package, *(f"{package}.{name}" for name in imported)]
    return tuple(sorted(files.values()))


def _path(module: str) -> pathlib.Path:
    path = _PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _digest(modules: tuple[str, ...]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources(modules))).hexdigest()


@functools.cache
def _versions() -> dict[str, str | None]:
    return {name: version(name) for name in _PACKAGES}
