"""The Ray cluster: how to connect to it, and how a job's workers share it."""

import contextlib
import dataclasses
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.runtime.platform_info import version

_PATIENCE_S = 10
# Only rows and entries of manifests go through it.
_OBJECT_STORE = 2**28
# Part of a worker's cores that Ray reserves for it: what reads a data set runs beside it.
_RESERVED = 0.5


@dataclasses.dataclass(frozen=True)
class Allocation:
    """How workers share a cluster: how many there are, and what each gets."""

    workers: int
    gpus: int
    # What Ray reserves.
    cpus: float
    threads: int | None
    # Part of its machine's memory, 0 to 1.
    memory: float


def allocate(
    nodes: list[dict[str, float]], workers: int | None, threads: int | None = None, reading: bool = False
) -> Allocation:
    """One worker per GPU; without GPUs one per machine, or the requested number, which share the cores.

    `nodes` have "CPU" and "GPU" of each machine. While a data set is read, a machine must keep a whole core for that.
    More workers or threads than there is room for are a RequestError.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cores = sorted((int(node.get("CPU", 0)) for node in nodes), reverse=True)
    cores = [count for count in cores if count]
    if not cores:
        raise RequestError("the cluster has no machine with a core to work with")
    if gpus:
        if workers is not None and workers > gpus:
            raise RequestError(f"workers={workers}, but the cluster has only {gpus} GPUs, one per worker")
        return Allocation(gpus if workers is None else workers, 1, _RESERVED, threads, 1.0)
    count = len(cores) if workers is None else workers
    room = sum(machine // (threads or 1) for machine in cores)
    if count > room:
        each = "" if threads is None else f" with {threads} threads each"
        raise RequestError(f"workers={count}, but the cluster has room for only {room}{each}")
    if threads is None:  # the most of which the machines have room for so many workers
        threads = next(most for most in range(cores[0], 0, -1) if sum(machine // most for machine in cores) >= count)
    per_machine = min(cores[0] // threads, count)
    reserved = _RESERVED * threads
    if reading:
        reserved = min(reserved, (cores[0] - 1) / per_machine)
    return Allocation(count, 0, reserved, threads, 1 / per_machine)


def check_installed() -> None:
    """Refuses to go on without the packages of the extra `ray`."""
    missing = [name for name in ("ray", "pyarrow") if version(name) is None]
    if missing:
        raise RequestError(f"bulk runs need {missing[0]}, which is not installed: pip install 'kerasdiff[ray]'")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module ray, connected to a cluster; if this process is connected already, to that one.

    The address is "host:port", "ray://host:port" or "auto"; None is `RAY_ADDRESS`, else a cluster of its own on this
    machine, whatever else of Ray runs there. A RequestError says if it cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        if address is not None:
            raise RequestError("ray_address: this process is already connected to a cluster; leave it out")
        yield ray
        return
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    _reach(target)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if target == "local":
        quiet |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=target, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RequestError(f"ray_address={target} cannot be reached: {validation.reason(error)}") from None
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)  # Ray's own does not shut down cleanly
        yield ray
    finally:
        ray.shutdown()


def nodes(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def quiet_data() -> Iterator[None]:
    """Keeps Ray Data from showing bars of its own and from logging errors of workers, which are one line of ours."""
    from ray.data import DataContext

    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        log.setLevel(level)


def _reach(address: str) -> None:
    """Checks in seconds what Ray takes a minute for."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not colon or not port.isdigit():
        raise RequestError(f"ray_address={address} is not of the form host:port, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise RequestError(
            f"ray_address={address} cannot be reached: {validation.reason(error)}; is Ray running there?"
        ) from None


def rows_per_call(rows: int, workers: int, most: int) -> int:
    """How many rows a worker is given at a time: so few that all workers end at about the same time."""
    return max(1, min(most, math.ceil(rows / (8 * workers))))
