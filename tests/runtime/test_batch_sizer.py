"""What fits into memory: predicted, halved, raised again, and remembered across processes."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys

import pytest

from kerasdiff.runtime import batch_sizer
from kerasdiff.runtime.batch_sizer import MAX_PARTS, SIZES, BatchSizer, MicroBatch, StageCost, padded, take_back_notes
from kerasdiff.runtime.program_cache import ProgramCache

GB = 10**9


class Work(StageCost):
    """A gigabyte per image."""

    def need(self, micro_batch):
        return GB * micro_batch.images // micro_batch.parts


def work(**changes):
    return dataclasses.replace(Work("U-Net", 512, 512, "unet", 32, MAX_PARTS), **changes)


class Machine:
    """Memory that a test sets."""

    def __init__(self, free, store=None):
        self.free = free
        self.store = store or ProgramCache(None)

    def limits(self, *identity):
        return BatchSizer(self.store, identity or ("model",), lambda: self.free)


@pytest.fixture
def store(tmp_path):
    return ProgramCache(tmp_path / "batches")


@pytest.mark.parametrize(
    ("free", "images", "parts"),
    [
        (100 * GB, 32, 1),
        (20 * GB, 16, 1),
        (10 * GB, 8, 1),
        (4 * GB, 3, 1),
        (1.3 * GB, 1, 1),
        (GB, 1, 2),
        (GB / 7, 1, 16),
    ],
)
def test_the_largest_portion_that_takes_four_fifths_of_what_is_free(free, images, parts):
    assert Machine(int(free)).limits().largest(work()) == MicroBatch(images, parts)


def test_what_cannot_fit_is_cut_as_far_as_it_may_be():
    assert Machine(1).limits().largest(work()) == MicroBatch(1, MAX_PARTS)
    assert Machine(1).limits().largest(work(max_parts=2)) == MicroBatch(1, 2)
    assert Machine(1).limits().largest(work(max_parts=1)) == MicroBatch(1, 1)


def test_portions_are_halved_down_to_the_smallest_part():
    portion, seen = MicroBatch(128), []
    while portion is not None:
        seen.append((portion.images, portion.parts))
        portion = portion.smaller(MAX_PARTS)
    assert seen == [
        (128, 1),
        (64, 1),
        (32, 1),
        (16, 1),
        (8, 1),
        (4, 1),
        (2, 1),
        (1, 1),
        (1, 2),
        (1, 4),
        (1, 8),
        (1, 16),
    ]
    assert MicroBatch(7).smaller(1) == MicroBatch(3)
    assert MicroBatch(1).smaller(1) is None


def test_a_step_up_undoes_at_most_a_step_down():
    for images in SIZES:
        assert MicroBatch(images).larger().order >= MicroBatch(images).order
        smaller = MicroBatch(images).smaller(MAX_PARTS)
        assert MicroBatch(images).order > smaller.order
        assert smaller.larger().order <= MicroBatch(images).order


def test_after_a_failure_no_more_is_tried_until_there_is_clearly_more_room():
    machine = Machine(100 * GB)
    limits = machine.limits()
    limits.started(work(), MicroBatch(32))
    assert limits.failed(work(), MicroBatch(32)) == MicroBatch(16)
    for free in (80, 100, 149):
        machine.free = free * GB
        assert limits.largest(work()) == MicroBatch(16)
    machine.free = 150 * GB
    assert limits.largest(work()) == MicroBatch(24)
    limits.succeeded(work(), MicroBatch(24))
    assert limits.largest(work()) == MicroBatch(32)
    limits.succeeded(work(), MicroBatch(32))
    machine.free = 100 * GB
    assert limits.largest(work()) == MicroBatch(32)


def test_what_worked_in_a_process_works_again():
    machine = Machine(100 * GB)
    limits = machine.limits()
    limits.succeeded(work(), MicroBatch(16))
    machine.free = GB
    assert limits.largest(work()) == MicroBatch(16)
    assert limits.largest(work(max_batch=4)) == MicroBatch(1, 2)
    limits.failed(work(), MicroBatch(16))
    assert limits.largest(work()) == MicroBatch(1, 2)


def test_less_room_means_less_whatever_was_learned():
    machine = Machine(100 * GB)
    limits = machine.limits()
    limits.started(work(), MicroBatch(32))
    limits.failed(work(), MicroBatch(32))
    machine.free = 4 * GB
    assert limits.largest(work()) == MicroBatch(3)


def test_the_end_of_the_ladder_is_told_and_remembered():
    limits = Machine(100 * GB).limits()
    assert limits.failed(work(), MicroBatch(1, MAX_PARTS)) is None
    assert limits.largest(work()) == MicroBatch(1, MAX_PARTS)


def test_another_process_begins_with_what_was_learned(store):
    first = Machine(100 * GB, store).limits()
    first.started(work(), MicroBatch(32))
    first.failed(work(), MicroBatch(32))
    first.failed(work(), MicroBatch(16))
    assert Machine(100 * GB, store).limits().largest(work()) == MicroBatch(8)


@pytest.mark.parametrize("changes", [{"stage": "decoder"}, {"height": 576}, {"width": 576}])
def test_other_work_knows_nothing_of_it(store, changes):
    Machine(100 * GB, store).limits().failed(work(), MicroBatch(32))
    assert Machine(100 * GB, store).limits().largest(work(**changes)) == MicroBatch(32)


def test_another_model_knows_nothing_of_it(store):
    Machine(100 * GB, store).limits("a").failed(work(), MicroBatch(32))
    assert Machine(100 * GB, store).limits("b").largest(work()) == MicroBatch(32)


def test_what_one_process_learns_another_that_runs_already_knows(store):
    machine = Machine(20 * GB, store)
    one, other = machine.limits(), machine.limits()
    assert one.largest(work()) == other.largest(work()) == MicroBatch(16)
    one.started(work(), MicroBatch(16))
    other.started(work(), MicroBatch(16))
    assert one.failed(work(), MicroBatch(16)) == MicroBatch(8)
    assert other.largest(work()) == MicroBatch(8)
    other.succeeded(work(), MicroBatch(8))
    assert one.largest(work()) == MicroBatch(8)


def test_a_process_that_died_in_a_risky_batch_is_a_failure_for_the_next(store, caplog):
    script = (
        "import os, sys, pathlib\n"
        "from kerasdiff.runtime.batch_sizer import BatchSizer, MicroBatch, StageCost\n"
        "from kerasdiff.runtime.program_cache import ProgramCache\n"
        "class Work(StageCost):\n    def need(self, micro_batch): return 10**9 * micro_batch.images\n"
        "work = Work('U-Net', 512, 512, 'unet', 32, 16)\n"
        "limits = BatchSizer(ProgramCache(pathlib.Path(sys.argv[1])), ('model',), lambda: 40 * 10**9)\n"
        "limits.started(work, MicroBatch(int(sys.argv[2])))\n"
        "os._exit(9)\n"
    )
    for images, following in ((4, 32), (32, 16)):  # what takes little cannot have been what ended it
        subprocess.run([sys.executable, "-c", script, str(store.folder), str(images)], check=False)
        with caplog.at_level(logging.WARNING, "kerasdiff"):
            limits = Machine(41 * GB, store).limits()
            assert limits.largest(work(max_batch=32)) == MicroBatch(following)
    assert "an earlier process died while generating 32 images at once" in caplog.text
    assert Machine(41 * GB, store).limits().largest(work()) == MicroBatch(16)


def test_a_process_that_still_runs_is_no_failure(store):
    limits = Machine(40 * GB, store).limits()
    limits.started(work(), MicroBatch(32))
    assert Machine(40 * GB, store).limits().largest(work()) == MicroBatch(32)
    limits.ended(work())
    names = list(store.folder.iterdir())
    assert json.loads(store.read(names[0].name))["trying"] is None


def test_a_process_that_somebody_ends_is_no_failure(store):
    limits = Machine(40 * GB, store).limits()
    limits.started(work(), MicroBatch(32))
    take_back_notes()
    (name,) = store.folder.iterdir()
    assert json.loads(store.read(name.name))["trying"] is None
    limits.ended(work())


def test_what_is_damaged_or_of_another_kind_is_as_if_it_were_not_there(store, caplog):
    limits = Machine(100 * GB, store).limits()
    limits.failed(work(), MicroBatch(32))
    (path,) = store.folder.iterdir()
    path.write_bytes(b"damaged")
    assert Machine(100 * GB, store).limits().largest(work()) == MicroBatch(32)
    store.write(path.name, b'{"portion": 3}')
    assert Machine(100 * GB, store).limits().largest(work()) == MicroBatch(32)
    store.write(path.name, b"[]")
    assert Machine(100 * GB, store).limits().largest(work()) == MicroBatch(32)


def test_the_rest_of_a_split_is_filled_up_to_one_of_a_few_sizes():
    assert [padded(images, 16) for images in (1, 2, 3, 4, 5, 7, 9, 13, 16)] == [1, 2, 3, 4, 6, 8, 12, 16, 16]
    assert padded(5, 5) == 5
    assert len({padded(images, 128) for images in range(1, 129)}) == len(SIZES)
    assert all(padded(images, 128) < 1.5 * images + 1 for images in range(1, 129))


def test_a_clock_that_jumps_changes_nothing(store, monkeypatch):
    limits = Machine(40 * GB, store).limits()
    limits.started(work(), MicroBatch(32))
    # What psutil tells in seconds since 1970 follows the clock; a process's age since the machine's start does not.
    process, boot = batch_sizer.psutil.Process, batch_sizer.psutil.boot_time()

    class Later(process):
        def create_time(self):
            return super().create_time() + 1e6

    monkeypatch.setattr(batch_sizer.psutil, "Process", Later)
    monkeypatch.setattr(batch_sizer.psutil, "boot_time", lambda: boot + 1e6)
    assert Machine(40 * GB, store).limits().largest(work()) == MicroBatch(32)
