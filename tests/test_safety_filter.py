"""The safety filter in a whole generation: what it flags is black, told, or not looked at."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest

import kerasdiff
from kerasdiff import metadata

QUICK = {"num_steps": 2, "progress": False}


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    """A generator of a small model with a safety checker that flags about half of what it draws."""
    folder = tmp_path_factory.mktemp("filtered")
    pipe = checkpoints.pipeline("v1", folder / "vocabulary")
    checker, extractor = checkpoints.safety_checker()
    pipe.register_modules(safety_checker=checker, feature_extractor=extractor)
    return kerasdiff.Generator(str(checkpoints.save(pipe, folder / "model")), precision="float32", jit_compile=False)


@pytest.fixture(scope="module")
def split(filtered):
    """The middle of the scores of 12 pictures becomes the threshold, so that some are flagged and some are not."""
    images = filtered.generate("a ring", 12, seed=1, safety="off", **QUICK).images
    network = filtered.networks.network("safety_checker")
    from kerasdiff.diffusion.safety_stage import prepare

    checker = filtered.networks["safety_checker"]
    scores = np.stack([np.asarray(checker(prepare(one, filtered.config.safety_checker)[None])[0])[0] for one in images])
    thresholds = next(weight for weight in checker.weights if weight.path.endswith("concept_embeds_weights"))
    raised = np.asarray(thresholds) + 10
    raised[0] = np.asarray(thresholds)[0] + np.median(scores[:, 0])
    thresholds.assign(raised)
    special = next(weight for weight in checker.weights if weight.path.endswith("special_care_embeds_weights"))
    special.assign(np.full(special.shape, 10.0))
    network.refresh()
    return images


def test_flagged_images_are_black_or_told_or_not_looked_at(filtered, split, tmp_path):
    on = filtered.generate("a ring", 12, seed=1, **QUICK)
    told = filtered.generate("a ring", 12, seed=1, safety="flag", **QUICK)
    off = filtered.generate("a ring", 12, seed=1, safety="off", **QUICK)
    assert on.request.safety == "on"
    assert on.nsfw == told.nsfw
    assert off.nsfw is None
    assert 0 < sum(on.nsfw) < 12
    assert np.array_equal(told.images, off.images)
    assert np.array_equal(off.images, split)
    for image, shown, flagged in zip(on, told, on.nsfw, strict=True):
        assert not image.any() if flagged else np.array_equal(image, shown)
    paths = on.save(tmp_path / "a.png")
    assert [metadata.read(path).nsfw for path in paths] == on.nsfw
    assert on.only(3, 5).nsfw == [on.nsfw[3], on.nsfw[5]]


def test_warm_up_includes_it(filtered):
    assert list(filtered.warm_up()) == ["text", "denoise", "decode", "safety"]
    before = filtered.programs
    filtered.generate("a ring", **QUICK)
    assert filtered.programs == before


def test_a_checker_that_is_not_there_is_found_before_anything_is_drawn(filtered, tmp_path):
    pipe = checkpoints.pipeline("v1", tmp_path / "vocabulary")
    checker, extractor = checkpoints.safety_checker()
    pipe.register_modules(safety_checker=checker, feature_extractor=extractor)
    saved = checkpoints.save(pipe, tmp_path / "model")
    (saved / "safety_checker" / "model.safetensors").unlink()
    generator = kerasdiff.Generator(str(saved), precision="float32", jit_compile=False)
    with pytest.raises(kerasdiff.ModelError, match="safety_checker"):
        generator.generate("a ring", callback=lambda *_: pytest.fail("something was drawn"), **QUICK)
    assert generator.generate("a ring", safety="off", **QUICK).nsfw is None
