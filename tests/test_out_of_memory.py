"""Memory that runs out, at every stage and call, once and for good; tests raise TensorFlow's own errors."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

import kerasdiff
from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import BatchSizer
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.runtime.oom import is_out_of_memory
from kerasdiff.runtime.program_cache import ProgramCache
from kerasdiff.training import scenes, score

PROMPT = "a red circle above a blue square on a yellow background"
QUICK = {"num_steps": 3, "seed": 5, "progress": False}
PICTURE = scenes.render(score.held_out_scenes(1, seed=5)[0])


def oom():
    return tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[8,128,128,64]")


class Calls:
    """What each network is called with, and which calls fail.

    Args:
        fails: `fails(network, index, name, shape)`, the index counting the calls of that network.
    """

    def __init__(self, monkeypatch, fails=lambda *_: False, error=oom):
        self.done, self.failed, counts = [], [], {}
        original = Compiled.__call__

        def call(compiled, *arguments):
            network, shape = compiled.network.name, tuple(arguments[0].shape)
            index = counts[network] = counts.get(network, -1) + 1
            if fails(network, index, compiled.name, shape):
                self.failed.append((network, compiled.name, shape))
                raise error()
            result = original(compiled, *arguments)
            self.done.append((network, compiled.name, shape))
            return result

        monkeypatch.setattr(Compiled, "__call__", call)

    def of(self, network):
        return [one for one in self.done if one[0] == network]


@pytest.fixture
def generator(tiny, monkeypatch):
    """The embedded model, with nothing learned so far."""
    monkeypatch.setattr(tiny._pipeline.retries, "sizer", BatchSizer(ProgramCache(None), ("test",), lambda: 10**11))
    return tiny


def fresh(folder):
    made = kerasdiff.Generator("tiny", precision="float32")
    made._pipeline.retries.sizer = BatchSizer(ProgramCache(folder / "batches"), ("test",), lambda: 10**11)
    return made


def levels(first, second):
    return int(np.abs(np.asarray(first, int) - np.asarray(second, int)).max())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("network", "calls"), [("text_encoder", 2), ("unet", 3), ("decoder", 3), ("encoder", 1)], ids=lambda one: str(one)
)
def test_a_failure_at_any_call_changes_nothing(generator, monkeypatch, caplog, network, calls, exact):
    arguments = {**QUICK, "exact": exact}
    if network == "encoder":
        arguments.update(image=PICTURE, strength=1.0)
    whole = generator.generate(PROMPT, 3, **arguments)
    if exact and network == "unet":
        calls *= 3
    for index in range(calls):
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "kerasdiff"):
            caplog.clear()
            seen = Calls(patch, lambda of, number, *_, index=index: of == network and number == index)
            split = generator.generate(PROMPT, 3, **arguments)
        assert len(seen.failed) == 1
        assert np.array_equal(split.images, whole.images) if exact else levels(split.images, whole.images) <= 1
        # What was finished is not made again.
        assert len(seen.of("decoder")) == 3
        assert len(seen.of("text_encoder")) == 2
        assert len(caplog.records) == 1
        assert "out of memory in the" in caplog.text
        generator._pipeline.retries.sizer = BatchSizer(ProgramCache(None), ("test",), lambda: 10**11)


def test_a_failure_between_evaluations_that_share_features_changes_nothing(generator, monkeypatch):
    arguments = {**QUICK, "deep_cache_interval": 3}
    whole = generator.generate(PROMPT, 2, **arguments)
    seen = Calls(monkeypatch, lambda network, number, *_: network == "unet" and number == 1)
    split = generator.generate(PROMPT, 2, **arguments)
    assert [name for _, name, _ in seen.failed] == ["guided 1 shallow 0"]
    assert levels(split.images, whole.images) <= 1


def test_a_batch_that_never_fits_is_halved_until_it_does_and_the_next_process_knows(tmp_path, monkeypatch, caplog):
    whole = fresh(tmp_path / "other").generate(PROMPT, 9, **QUICK)
    too_many = lambda network, index, name, shape: network == "unet" and shape[0] > 2  # noqa: E731
    with monkeypatch.context() as patch:
        seen = Calls(patch, too_many)
        with caplog.at_level(logging.WARNING, "kerasdiff"):
            split = fresh(tmp_path).generate(PROMPT, 9, **QUICK)
    assert levels(split.images, whole.images) <= 1
    assert [shape[0] for _, _, shape in seen.failed] == [9, 4]
    assert [shape[0] for _, _, shape in seen.of("unet")] == [2] * 12 + [1] * 3
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "out of memory in the U-Net with 9 images at once",
        "out of memory in the U-Net with 4 images at once",
    ]
    with monkeypatch.context() as patch:
        seen = Calls(patch, too_many)
        again = fresh(tmp_path).generate(PROMPT, 9, **QUICK)
    assert seen.failed == []
    assert np.array_equal(again.images, split.images)


def test_what_is_learned_of_one_size_is_not_of_another(tmp_path, monkeypatch):
    generator = fresh(tmp_path)
    Calls(monkeypatch, lambda network, index, name, shape: network == "unet" and shape[:2] == (4, 16))
    generator.generate(PROMPT, 4, **QUICK)
    assert generator.plan(4).chunks == (2, 2)
    assert generator.plan(4, height=96).chunks == (4,)
    assert generator.plan(4, guidance=False).chunks == (4,)


def test_one_image_goes_to_slices_and_to_tiles(generator, monkeypatch, caplog):
    large = {**QUICK, "height": 192, "width": 192}
    whole = generator.generate(PROMPT, 2, **large)

    def fails(network, index, name, shape):
        return (network == "unet" and name != "guided 4") or (network == "decoder" and shape[1] > 16)

    with caplog.at_level(logging.WARNING, "kerasdiff"):
        seen = Calls(monkeypatch, fails)
        split = generator.generate(PROMPT, 2, **large)
    assert np.abs(split.latents - whole.latents).max() < 1e-4
    assert {name for network, name, _ in seen.of("unet")} == {"guided 4"}
    assert len(seen.of("decoder")) == 2 * 4
    assert np.abs(split.images.astype(int) - whole.images).mean() < 4
    assert "continuing with 1 image in 4 parts" in caplog.text
    plan = generator.plan(2, height=192, width=192)
    assert (plan.chunks, plan.slices, plan.tiles) == ((1, 1), 4, 2)


def test_what_fits_in_no_way_is_one_error_that_keeps_what_was_finished(generator, monkeypatch):
    Calls(monkeypatch, lambda network, index, name, shape: network == "decoder" and index >= 2)
    with pytest.raises(kerasdiff.OutOfMemoryError) as caught:
        generator.generate(PROMPT, 4, **QUICK)
    message = str(caught.value)
    assert "the decoder does not fit into memory for one image of 128 x 128, even in 2 parts" in message
    assert "\n" not in message
    assert len(caught.value.finished) == 2
    assert caught.value.finished.places == (0, 1)
    assert isinstance(caught.value, MemoryError)


def test_other_errors_are_left_as_they_are(generator, monkeypatch):
    error = tf.errors.InternalError(None, None, "something else")
    Calls(monkeypatch, lambda network, *_: network == "unet", lambda: error)
    with pytest.raises(tf.errors.InternalError) as caught:
        generator.generate(PROMPT, 2, **QUICK)
    assert caught.value is error


def test_the_retry_begins_when_nothing_holds_what_failed(generator, monkeypatch):
    """As in TensorFlow itself: an error's traceback keeps frames, and they the tensors that filled the memory."""
    import weakref

    class Tensor:
        pass

    alive = []

    def fails(network, index, name, shape):
        if network != "unet" or index > 1:
            return False
        if index == 0:
            held = Tensor()
            alive.append(weakref.ref(held))
            raise oom()
        assert alive[0]() is None
        return False

    Calls(monkeypatch, fails)
    assert len(generator.generate(PROMPT, 2, **QUICK)) == 2
    assert len(alive) == 1


def test_another_model_of_the_process_makes_room_and_comes_back(generator, monkeypatch):
    other = kerasdiff.Generator("tiny", precision="bfloat16")
    before = other.generate(PROMPT, **QUICK)
    assert other._pipeline.weight_bytes > 0
    Calls(monkeypatch, lambda network, index, name, shape: network == "unet" and other._pipeline.weight_bytes > 0)
    generator.generate(PROMPT, **QUICK)
    assert other._pipeline.weight_bytes == 0
    monkeypatch.undo()
    assert np.array_equal(other.generate(PROMPT, **QUICK).images, before.images)


def test_loading_makes_room_too(monkeypatch):
    other = kerasdiff.Generator("tiny", precision="bfloat16")
    load = Checkpoint.load

    def fails(*arguments):
        if other._pipeline.weight_bytes:
            raise MemoryError("cannot allocate")
        return load(*arguments)

    monkeypatch.setattr(Checkpoint, "load", fails)
    made = kerasdiff.Generator("tiny", precision="float16")
    assert made.generate(PROMPT, **QUICK).images.std() > 10


def test_two_generators_of_one_model_hold_its_weights_once():
    first, second = (kerasdiff.Generator("tiny", precision="float16") for _ in range(2))
    first.generate(PROMPT, **QUICK)
    second.generate(PROMPT, **QUICK)
    for name in ("unet", "decoder", "text_encoder"):
        assert first.networks.network(name).values is second.networks.network(name).values
    # Training one of them leaves the other as it is.
    before = second.generate(PROMPT, **QUICK)
    for weight in first.networks["unet"].weights:
        weight.assign(weight * 0)
    assert levels(first.generate(PROMPT, **QUICK).images, before.images) > 10
    assert np.array_equal(second.generate(PROMPT, **QUICK).images, before.images)


def test_another_size_uses_the_same_weights(tmp_path):
    generator = fresh(tmp_path)
    generator.generate(PROMPT, **QUICK)
    values = {name: network.values for name, network in generator.networks.known.items()}
    held = generator._pipeline.weight_bytes
    generator.generate(PROMPT, 2, height=160, width=96, **QUICK)
    assert generator._pipeline.weight_bytes == held
    assert all(generator.networks.network(name).values is value for name, value in values.items())


def test_more_images_than_memory_holds_are_refused_before_anything_is_drawn(generator, monkeypatch):
    seen = Calls(monkeypatch)
    with pytest.raises(
        kerasdiff.OutOfMemoryError, match=r"100000 images of 8192 x 8192 do not fit .* Generator\.stream"
    ):
        generator.generate(PROMPT, 100_000, height=8192, width=8192, progress=False)
    with pytest.raises(kerasdiff.OutOfMemoryError, match=r"the U-Net takes about .* even in 16 parts"):
        generator.generate(PROMPT, height=8192, width=8192, progress=False)
    with pytest.raises(kerasdiff.OutOfMemoryError):
        next(generator.stream(PROMPT, height=8192, width=8192, progress=False))
    monkeypatch.setattr(memory, "free", lambda: 9 * 10**8)
    monkeypatch.setattr(memory, "total", lambda: 10**9)
    picture = np.zeros((1024, 1024, 3), "uint8")
    told = r"takes about 1\.\d GB for one image of 1152 x 1152, even in 16 parts, and there are 1\.0 GB, 0\.9 GB of"
    with pytest.raises(kerasdiff.OutOfMemoryError, match=told):
        generator.generate(PROMPT, height=1152, width=1152, progress=False)
    with pytest.raises(kerasdiff.OutOfMemoryError, match="generate smaller images: resize='cover' without height and"):
        generator.generate(PROMPT, image=picture, height=1152, width=1152, resize="cover", progress=False)
    plan = generator.plan(height=1152, width=1152)
    assert (plan.fits, plan.total) == (False, 10**9)
    assert str(plan).endswith("\ntoo large for this machine, which has 1.00 GB: generate smaller images")
    assert generator.plan(height=512, width=512).fits
    assert seen.done == []


def test_less_memory_than_a_batch_needs_is_told_once(generator, monkeypatch, caplog):
    generator._pipeline.retries.sizer = BatchSizer(ProgramCache(None), ("test",), lambda: 2 * 10**8)
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        seen = Calls(monkeypatch)
        result = generator.generate(PROMPT, 9, **QUICK)
    assert len(result) == 9
    assert max(shape[0] for _, _, shape in seen.of("unet")) < 9
    assert [record.getMessage()[:40] for record in caplog.records] == ["9 images of 128 x 128 are generated 6 at"]


def test_one_image_that_may_not_fit_is_told_before_it_is_begun(generator, monkeypatch, caplog):
    monkeypatch.setattr(memory, "free", lambda: 7 * 10**7)
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        for _ in range(2):
            generator.generate(PROMPT, num_steps=1, seed=1, progress=False)
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith(
        "the U-Net takes about 0.1 GB for one image of 128 x 128, even in 16 parts, and there are"
    )
    assert told[0].endswith(" GB, 0.1 GB of them free: it may run out of memory; smaller images take less")
    assert len({*told}) == len(told)


def test_all_is_quiet_when_all_is_well(generator, caplog):
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        generator.generate(PROMPT, 40, num_steps=1, seed=1, progress=False)
    assert caplog.records == []


def test_splits_compile_a_few_sizes_only(generator, monkeypatch):
    generator._pipeline.retries.sizer = BatchSizer(ProgramCache(None), ("test",), lambda: 10**11)
    monkeypatch.setattr(generator._pipeline.costs, "max_batch", 4)
    generator.warm_up(batch_size=4)
    for size in (1, 2, 3):
        generator.warm_up(batch_size=size)
    before = generator.programs
    for batch_size in range(5, 14):
        assert len(generator.generate(PROMPT, batch_size, **QUICK)) == batch_size
    assert generator.programs == before


def test_every_failure_is_tried_again_outside_its_handler(monkeypatch, generator):
    """An exception that is being handled while the retry runs would show as the context of the next one."""
    contexts = []

    def error():
        made = oom()
        try:
            raise made
        except tf.errors.ResourceExhaustedError as caught:
            contexts.append(caught.__context__)
        return made

    Calls(monkeypatch, lambda network, index, name, shape: network == "unet" and shape[0] > 1, error)
    generator.generate(PROMPT, 4, **QUICK)
    assert contexts == [None, None]
    assert is_out_of_memory(oom())
