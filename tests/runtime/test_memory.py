"""What is free, and what a stage is expected to take."""

from __future__ import annotations

import functools
import resource
import subprocess
import sys
import types

import psutil
import pytest

from kerasdiff.models.config import SD_V1, TINY
from kerasdiff.models.footprint import decoder_bytes, unet_bytes
from kerasdiff.runtime import memory


def test_free_is_what_the_machine_has_if_nothing_else_bounds_it():
    assert 0 < memory.free() <= psutil.virtual_memory().total
    assert memory.free() <= memory.total()


def test_an_address_space_that_is_bounded_counts():
    script = (
        "import resource, sys\n"
        "from kerasdiff.runtime import memory\n"
        "import psutil\n"
        "import tensorflow\n"
        "used = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 10**9, resource.RLIM_INFINITY))\n"
        "assert 0.9e9 < memory.free() <= 10**9, memory.free()\n"
        "assert memory.total() == used + 10**9\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max"}, None),
        ({"memory.max": "4000000000"}, 4 * 10**9 - (3 * 10**9 - 10**9)),
        ({"memory/memory.limit_in_bytes": "4000000000"}, 4 * 10**9 - (3 * 10**9 - 10**9)),
        ({"memory/memory.limit_in_bytes": str(2**63 - 4096)}, None),
    ],
)
def test_a_containers_bound_counts_and_pages_of_files_do_not(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
        version_2 = path.name == "memory.max"
        path.with_name("memory.current" if version_2 else "memory.usage_in_bytes").write_text("3000000000\n")
        idle = "inactive_file" if version_2 else "total_inactive_file"
        path.with_name("memory.stat").write_text(f"anon 7\n{idle} 1000000000\nslab 1\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("M", (), {"available": 10**12, "total": 10**12}))
    assert memory.free() == (10**12 if expected is None else expected)


def test_a_gpu_is_asked_instead(monkeypatch):
    monkeypatch.setattr(memory.backend, "memory", lambda: (80 * 10**9, 30 * 10**9))
    assert memory.free() == 50 * 10**9
    assert memory.total() == 80 * 10**9
    assert memory.host_free() <= psutil.virtual_memory().total


def test_the_peak_of_a_gpu_is_told_by_the_backend_that_uses_it(monkeypatch):
    backends = "kerasdiff.runtime.backends."
    monkeypatch.setitem(memory.sys.modules, f"{backends}tensorflow", None)
    monkeypatch.setitem(memory.sys.modules, f"{backends}jax", None)
    assert memory.device_peak() is None
    for name, peak in (("tensorflow", None), ("jax", 7)):
        module = types.SimpleNamespace(peak_memory=functools.partial(lambda found: found, peak))
        monkeypatch.setitem(memory.sys.modules, backends + name, module)
    assert memory.device_peak() == 7


def test_what_is_expected_grows_with_the_work():
    one = unet_bytes(SD_V1.unet, 64, 64, 2, 2)
    assert unet_bytes(SD_V1.unet, 64, 64, 4, 2) == 2 * one
    assert unet_bytes(SD_V1.unet, 64, 64, 2, 4) == 2 * one
    assert unet_bytes(SD_V1.unet, 128, 128, 2, 2) > 8 * one  # attention grows with the square of the pixels
    assert unet_bytes(SD_V1.unet, 128, 128, 2, 2, slices=8) < unet_bytes(SD_V1.unet, 128, 128, 2, 2) / 3
    assert unet_bytes(TINY.unet, 16, 16, 2, 4) < one / 20
    decoded = decoder_bytes(SD_V1.vae, 64, 64, 2)
    assert decoder_bytes(SD_V1.vae, 128, 64, 2) >= 2 * decoded
