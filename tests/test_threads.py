"""One generator, many threads: a server's case."""

from __future__ import annotations

import collections
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import kerasdiff
from kerasdiff import api
from kerasdiff.runtime.backends import tensorflow

THREADS = 8
QUICK = {"num_steps": 2, "height": 64, "width": 64, "progress": False}


def drawn(generator, number):
    """The image of one of several different requests."""
    sampler = ("euler", "dpmpp_2m", "euler_a", "ddim")[number % 4]
    return generator.generate(f"a ring {number}", seed=number, sampler=sampler, **QUICK).images


def test_threads_that_begin_at_once_trace_each_program_once(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    generator = kerasdiff.Generator("tiny", precision="float32")
    together = threading.Barrier(THREADS)

    def begin(number):
        together.wait()
        return drawn(generator, number)

    with ThreadPoolExecutor(THREADS) as pool:
        images = list(pool.map(begin, range(THREADS)))
    assert generator.traces == generator.programs
    assert generator.programs == 3  # the text, the step and the decoder
    for number in range(4):
        assert np.array_equal(images[number], drawn(generator, number))


def test_threads_that_name_the_same_model_open_it_once(monkeypatch):
    opened = []

    class Counted(kerasdiff.Generator):
        def __init__(self, *arguments, **named):
            opened.append(self)
            super().__init__(*arguments, **named)

    monkeypatch.setattr(api, "Generator", Counted)
    monkeypatch.setattr(api, "_last", {})
    with ThreadPoolExecutor(THREADS) as pool:
        images = list(pool.map(lambda _: kerasdiff.generate("a ring", seed=1, **QUICK).images, range(THREADS)))
    assert len(opened) == 1
    assert all(np.array_equal(image, images[0]) for image in images)


def test_a_shared_generator_draws_the_same_bits(tiny, monkeypatch):
    alone = [drawn(tiny, number) for number in range(10)]
    run, running, overlaps = tensorflow._Part.__call__, collections.Counter(), []

    def watched(part, **groups):
        running[part] += 1
        overlaps.extend([part] * (running[part] - 1))
        try:
            return run(part, **groups)
        finally:
            running[part] -= 1

    # oneDNN's kernels keep what belongs to a call: two at once give a wrong picture once in some hundred times.
    monkeypatch.setattr(tensorflow._Part, "__call__", watched)
    with ThreadPoolExecutor(THREADS) as pool:
        requests = [number % 10 for number in range(40)]
        for number, images in zip(requests, pool.map(lambda number: drawn(tiny, number), requests), strict=True):
            assert np.array_equal(images, alone[number])
    assert not overlaps


def test_weights_that_were_released_meanwhile_come_back_once(tiny):
    alone = drawn(tiny, 1)
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(drawn, tiny, 1) for _ in range(8)]
        for _ in range(4):
            tiny.release()
        assert all(np.array_equal(future.result(), alone) for future in futures)
