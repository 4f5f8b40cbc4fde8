"""Ray: what there is of it, and how a job's workers share it."""

from __future__ import annotations

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
# Rows and lines of manifests are all that goes through it.
_OBJECT_STORE = 2**28
# Part of a worker's cores that it keeps from others: what reads a data set runs beside it.
_KEPT = 0.5
# What a worker is told of the process that began the job.
_VARIABLES = ("KERAS_BACKEND", "KERASDIFF_CACHE_GB")


@dataclasses.dataclass(frozen=True)
class Shares:
    """How workers share a cluster.

    Attributes:
        workers: how many there are.
        gpus: of each.
        cpus: that Ray keeps for each.
        threads: of each; None where a GPU draws.
        memory: part of its machine's memory that each may take, 0 to 1.
    """

    workers: int
    gpus: int
    cpus: float
    threads: int | None
    memory: float


def shares(
    nodes: list[dict[str, float]], workers: int | None, threads: int | None = None, reading: bool = False
) -> Shares:
    """One worker for each GPU; where there are none, one for each machine, or so many that share its cores.

    Args:
        nodes: "CPU" and "GPU" of each machine.
        workers: how many; None is what was said.
        threads: of each on a CPU; None is as many as there are cores for it.
        reading: whether a data set is read beside them, for which a machine must keep a whole core.

    Raises:
        RequestError: there is no machine with a core to work with, or there are not so many GPUs or cores.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cores = sorted((int(node.get("CPU", 0)) for node in nodes), reverse=True)
    cores = [count for count in cores if count]
    if not cores:
        raise RequestError("the cluster has no machine with a core to work with")
    if gpus:
        if workers is not None and workers > gpus:
            raise RequestError(f"workers={workers}, and the cluster has {gpus} GPUs: one each; give at most {gpus}")
        return Shares(gpus if workers is None else workers, 1, _KEPT, threads, 1.0)
    count = len(cores) if workers is None else workers
    room = sum(each // (threads or 1) for each in cores)
    if count > room:
        each = "" if threads is None else f" for {threads} threads each"
        raise RequestError(f"workers={count}, and the cluster has room for {room}{each}; give at most so many")
    threads = threads or _most_threads(cores, count)
    machines = [each // threads for each in cores if each >= threads]
    crowd = min(machines[0], count)
    kept = _KEPT * threads
    if reading:
        kept = min(kept, (cores[0] - 1) / crowd)
    return Shares(count, 0, kept, threads, 1 / crowd if crowd > 1 else 1.0)


def _most_threads(cores: list[int], workers: int) -> int:
    """The most threads of which the machines hold so many workers."""
    return next(threads for threads in range(cores[0], 0, -1) if sum(count // threads for count in cores) >= workers)


def check_installed() -> None:
    """Finds out whether the extra `ray` is installed.

    Raises:
        RequestError: it is not, or not all of it.
    """
    missing = [name for name in ("ray", "pyarrow") if version(name) is None]
    if missing:
        raise RequestError(f"bulk runs take {missing[0]}, which is not installed: pip install 'kerasdiff[ray]'")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster: the one that it is connected to already, that at an address, or one of its own here.

    Args:
        address: "host:port", "ray://host:port" or "auto"; None is `RAY_ADDRESS`, else a cluster of its own on this
            machine, whatever else of Ray runs there.

    Yields:
        The module.

    Raises:
        RequestError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        if address is not None:
            raise RequestError("ray_address: this process is connected to a cluster already; leave it out")
        yield ray
        return
    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    _reach(wanted)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if wanted == "local":
        quiet |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    ended_by = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=wanted, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RequestError(f"ray_address={wanted} cannot be reached: {validation.reason(error)}") from None
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ended_by)  # Ray has one of its own, which ends in no order
        yield ray
    finally:
        ray.shutdown()


def nodes(ray: Any) -> list[dict[str, float]]:
    """What each machine of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def variables() -> dict[str, str]:
    """Environment variables of this process that hold for workers as well."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


@contextlib.contextmanager
def quiet_data() -> Iterator[None]:
    """Ray Data shows no bars of its own meanwhile, and logs errors of workers nowhere, as they are told in one line."""
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
    """Finds out in seconds what Ray takes a minute for."""
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


def calls(images: int, workers: int, most: int) -> int:
    """How many images a worker is given at a time: so few that all end at about the same time, and at most `most`."""
    return max(1, min(most, math.ceil(images / (8 * workers))))
