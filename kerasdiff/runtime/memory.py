"""How much memory there is, and what it takes to run a stage."""

import pathlib
import sys

import psutil

from kerasdiff.runtime import backend

# Where oneDNN runs out of memory it often ends the process instead of telling: so much is left alone.
HEADROOM = 2**26
_share = 1.0
_CGROUP = pathlib.Path("/sys/fs/cgroup")


def free() -> int:
    """Bytes that a stage may still take: of the GPU if there is one, else of this process."""
    device = backend.memory()
    return host_free() if device is None else max(0, device[0] - device[1])


def device_peak() -> int | None:
    """The most bytes of the accelerator that this process held so far; None if it uses none or nobody can tell."""
    loaded = (sys.modules.get(f"kerasdiff.runtime.backends.{name}") for name in backend.OF_KERAS)
    return next((peak for module in loaded if module and (peak := module.peak_memory()) is not None), None)


def host_free() -> int:
    """Bytes that this process may still take."""
    return min([psutil.virtual_memory().available, *(max(0, most - used) for most, used in _bounds())])


def total() -> int:
    """Bytes of the device or the machine, or what this process is limited to: what learned batches depend on."""
    device = backend.memory()
    if device is not None:
        return device[0]
    return min([psutil.virtual_memory().total, *(most for most, _ in _bounds())])


def use_share(share: float) -> None:
    """Makes do with a part of the machine's memory, as others like this one take theirs."""
    global _share
    _share = share


def _bounds() -> list[tuple[int, int]]:
    """(most, used) of each bound on this process besides the machine's own memory."""
    bounds: list[tuple[int, int]] = []
    if _share < 1:
        bounds.append((int(_share * psutil.virtual_memory().total), psutil.Process().memory_info().rss))
    try:
        import resource
    except ImportError:  # not on Windows
        return bounds
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        bounds.append((most, psutil.Process().memory_info().vms))
    group = _cgroup()
    return bounds if group is None else [*bounds, group]


def _cgroup() -> tuple[int, int] | None:
    """(most, used) of the container, as cgroup v2 or v1 tell it; None without a bound."""
    for most, used, idle in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            bound = (_CGROUP / most).read_text().strip()
            taken = int((_CGROUP / used).read_text())
            lines = (_CGROUP / used).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        if not bound.isdigit() or int(bound) >= 2**60:
            return None
        # Pages of files that the kernel takes back when it needs them.
        spare = next((int(line.split()[1]) for line in lines if line.startswith(f"{idle} ")), 0)
        return int(bound), max(0, taken - spare)
    return None
