"""How workers share a cluster, and what is wrong with one: found out without Ray."""

from __future__ import annotations

import socket

import pytest

import kerasdiff
from kerasdiff.batch.ray import cluster
from kerasdiff.batch.ray.cluster import Allocation, allocate, rows_per_call

ROWS = [{"id": "a", "prompt": "a red circle"}]


@pytest.mark.parametrize(
    ("nodes", "workers", "threads", "expected"),
    [
        ([{"CPU": 2}], None, None, Allocation(1, 0, 1.0, 2, 1.0)),
        ([{"CPU": 2}], 2, None, Allocation(2, 0, 0.5, 1, 0.5)),
        ([{"CPU": 2}], 1, 1, Allocation(1, 0, 0.5, 1, 1.0)),
        ([{"CPU": 1}, {"CPU": 1}], 2, None, Allocation(2, 0, 0.5, 1, 1.0)),
        ([{"CPU": 16}, {"CPU": 16}], 5, None, Allocation(5, 0, 2.5, 5, 1 / 3)),
        ([{"CPU": 16}, {"CPU": 4}], 3, None, Allocation(3, 0, 2.5, 5, 1 / 3)),
        # The head of a cluster often has no cores to work with.
        ([{"CPU": 0}, {"CPU": 8}], None, None, Allocation(1, 0, 4.0, 8, 1.0)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}], None, None, Allocation(3, 1, 0.5, None, 1.0)),
    ],
)
def test_cores_and_gpus_are_shared_out(nodes, workers, threads, expected):
    assert allocate(nodes, workers, threads) == expected


def test_where_a_data_set_is_read_a_whole_core_is_left_for_it():
    assert allocate([{"CPU": 1}, {"CPU": 1}], 2, reading=True).cpus == 0
    assert allocate([{"CPU": 2}], 2, reading=True).cpus == 0.5
    assert allocate([{"CPU": 16}], 3, reading=True).cpus == 2.5


@pytest.mark.parametrize(
    ("nodes", "workers", "threads", "said"),
    [
        ([{"CPU": 2}], 3, None, "workers=3, but the cluster has room for only 2"),
        ([{"CPU": 4}], 3, 2, "workers=3, but the cluster has room for only 2 with 2 threads each"),
        ([{"CPU": 8, "GPU": 1}], 2, None, "workers=2, but the cluster has only 1 GPUs, one per worker"),
        ([{"CPU": 0}], None, None, "no machine with a core"),
    ],
)
def test_what_does_not_fit_is_refused(nodes, workers, threads, said):
    with pytest.raises(kerasdiff.RequestError, match=said):
        allocate(nodes, workers, threads)


def test_workers_get_little_at_a_time_so_that_they_end_together():
    assert rows_per_call(500, 2, 64) == 32
    assert rows_per_call(5, 2, 64) == 1
    assert rows_per_call(1_000_000, 8, 64) == 64


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(kerasdiff.RequestError, match=f"ray_address={address} cannot be reached: .*is Ray running"):
        kerasdiff.bulk.run(ROWS, tmp_path / "out", ray_address=address)
    with pytest.raises(kerasdiff.RequestError, match="ray_address=here is not of the form host:port"):
        kerasdiff.bulk.run(ROWS, tmp_path / "out", ray_address="here")


def test_without_ray_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "version", lambda package: None if package == "ray" else "1")
    with pytest.raises(
        kerasdiff.RequestError, match=r"need ray, which is not installed: pip install 'kerasdiff\[ray\]'"
    ):
        kerasdiff.bulk.run(ROWS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_process_that_names_no_cluster_starts_its_own(monkeypatch):
    """Whatever else of Ray runs on the machine; and at the end it is shut down."""
    called = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", lambda address, **_: called.append(address))
    monkeypatch.setattr("ray.shutdown", lambda: called.append("shutdown"))
    with cluster.connected(None):
        assert called == ["local"]
    assert called == ["local", "shutdown"]
