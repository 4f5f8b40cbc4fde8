"""Numbers that are not finite: a stage that overflows goes on in float32, and no black picture comes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import safetensors.numpy

import kerasdiff
from kerasdiff.checkpoints import resolve
from kerasdiff.models.config import SD_V1, SDXL
from kerasdiff.runtime.batch_sizer import MicroBatch
from kerasdiff.runtime.precision import Execution
from kerasdiff.training import scenes, score

PROMPT = "a red circle above a blue square on a yellow background"
QUICK = {"num_steps": 3, "seed": 5, "progress": False}
PICTURE = scenes.render(score.held_out_scenes(1, seed=5)[0])


def crafted(folder, network, change):
    """A copy of the embedded model in float32 with one network changed."""
    copy = folder / f"crafted-{network}"
    shutil.copytree(resolve.TINY_FOLDER, copy)
    path = copy / f"{network}.safetensors"
    tensors = {name: array.astype("float32") for name, array in safetensors.numpy.load_file(path).items()}
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    return copy


def too_large(tensors):
    """What goes into the first norm becomes too large for float16; the norm takes it back."""
    for name in ("conv_in.kernel", "conv_in.bias"):
        tensors[name] *= 1e6


def broken(tensors):
    next(iter(tensors.values()))[...] = np.nan


@pytest.mark.parametrize("precision", ["float16", "mixed_float16"])
def test_a_decoder_that_overflows_goes_on_in_float32(tmp_path, precision):
    folder = crafted(tmp_path, "decoder", too_large)
    half, full = (kerasdiff.Generator(folder, precision=one) for one in (precision, "float32"))
    latents = np.random.default_rng(0).normal(size=(2, 16, 16, 4)).astype("float32")
    expected = full.decode(latents)
    assert expected.std() > 10
    with pytest.warns(UserWarning, match="decoder gives numbers that are not finite in .*float16; it runs in float32"):
        first = half.decode(latents)
    assert np.array_equal(first, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        assert np.array_equal(half.decode(latents), expected)


@pytest.mark.parametrize("precision", ["float16", "mixed_float16"])
def test_an_autoencoder_that_says_that_it_overflows_is_in_float32_from_the_start(tmp_path, precision):
    folder = crafted(tmp_path, "decoder", too_large)
    settings = json.loads((folder / "config.json").read_text())
    settings["vae"]["force_upcast"] = True
    (folder / "config.json").write_text(json.dumps(settings))
    half, full = (kerasdiff.Generator(folder, precision=one) for one in (precision, "float32"))
    latents = np.random.default_rng(0).normal(size=(1, 16, 16, 4)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(half.decode(latents), full.decode(latents))
        assert np.array_equal(half.encode_image(PICTURE[None]), full.encode_image(PICTURE[None]))
        assert np.isfinite(half.generate(PROMPT, **QUICK).latents).all()
    types = {name: half.networks[name].dtype_policy.name for name in ("unet", "decoder", "encoder")}
    assert types == {"unet": precision, "decoder": "float32", "encoder": "float32"}
    decoding = [one._pipeline.costs.decode(16, 16).need(MicroBatch()) for one in (half, full)]
    assert decoding[0] == decoding[1]


def test_bfloat16_holds_such_numbers_and_nothing_is_upcast(tmp_path):
    execution = Execution("CPU", "bfloat16", False)
    assert execution.upcast(SDXL.vae) is execution
    assert dataclasses.replace(execution, precision="float16").upcast(SDXL.vae).precision == "float32"
    assert dataclasses.replace(execution, precision="float16").upcast(SD_V1.vae).precision == "float16"


def test_only_the_stage_that_overflows_changes(tmp_path):
    folder = crafted(tmp_path, "decoder", too_large)
    half = kerasdiff.Generator(folder, precision="float16")
    with pytest.warns(UserWarning, match="decoder") as told:
        result = half.generate(PROMPT, 2, **QUICK)
    assert len(told) == 1
    other = kerasdiff.Generator("tiny", precision="float16").generate(PROMPT, 2, **QUICK)
    assert np.array_equal(result.latents, other.latents)


@pytest.mark.parametrize("network", ["unet", "text_encoder", "encoder"])
def test_every_stage_is_looked_at(tmp_path, network):
    def change(tensors):
        if network == "text_encoder":
            tensors["layers.0.fc2.kernel"] *= 1e7
        else:
            too_large(tensors)

    folder = crafted(tmp_path, network, change)
    arguments = {**QUICK, **({"image": PICTURE, "strength": 0.7} if network == "encoder" else {})}
    half, full = (kerasdiff.Generator(folder, precision=one) for one in ("float16", "float32"))
    expected = full.generate(PROMPT, **arguments)
    name = {"unet": "U-Net", "text_encoder": "text encoder", "encoder": "encoder"}[network]
    with pytest.warns(UserWarning, match=f"the {name} gives numbers that are not finite in float16") as told:
        result = half.generate(PROMPT, **arguments)
    assert len(told) == 1
    assert np.isfinite(result.latents).all()
    assert result.images.std() > 1 or expected.images.std() < 1


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize(
    ("network", "name"),
    [("decoder", "decoder"), ("unet", "U-Net"), ("text_encoder", "text encoder"), ("encoder", "encoder")],
)
def test_a_damaged_checkpoint_is_one_error_that_names_the_stage(tmp_path, network, name, precision):
    generator = kerasdiff.Generator(crafted(tmp_path, network, broken), precision=precision)
    arguments = {**QUICK, **({"image": PICTURE, "strength": 0.7} if network == "encoder" else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            kerasdiff.NonFiniteError, match=f"the {name} gives numbers that are not finite in float32"
        ) as e:
            generator.generate(PROMPT, 2, **arguments)
    assert "\n" not in str(e.value)
    assert isinstance(e.value, ArithmeticError)


def test_what_was_finished_before_is_in_the_error(tiny, monkeypatch):
    monkeypatch.setattr(tiny._pipeline.costs, "max_batch", 2)
    calls = []

    def overflow(step, num_steps, preview):
        calls.append(step)
        if len(calls) == 4:  # in the second block
            raise kerasdiff.NonFiniteError("found by a test")

    with pytest.raises(kerasdiff.NonFiniteError) as caught:
        tiny.generate(PROMPT, 4, callback=overflow, **QUICK)
    finished = caught.value.finished
    assert finished.places == (0, 1)
    assert np.array_equal(finished.images, tiny.generate(PROMPT, 4, **QUICK).images[:2])


def test_changed_weights_are_those_that_are_tried_in_float32(tmp_path):
    """A network that was trained since it was loaded: its file would be another model."""
    half = kerasdiff.Generator("tiny", precision="float16")
    layer = half.networks["decoder"]
    for weight in layer.weights:
        if weight.path.endswith("conv_out/bias"):
            weight.assign([3e4, 0.0, 0.0])  # red is far beyond white
        if weight.path.endswith("post_quant_conv/kernel"):
            weight.assign(weight * 100)
    latents = np.random.default_rng(0).normal(size=(1, 16, 16, 4)).astype("float32") * 1e4
    with pytest.warns(UserWarning, match="decoder"):
        image = half.decode(latents)
    assert (image[..., 0] == 255).all()


def test_arrays_that_a_user_gives_must_be_finite(tiny):
    context = tiny.encode_text([PROMPT])
    for name, value in (("latents", np.zeros((1, 16, 16, 4))), ("prompt_embeds", context)):
        value = value.copy()
        value[0, 0, 0] = np.nan
        prompt = {} if name == "prompt_embeds" else {"prompt": PROMPT}
        with pytest.raises(kerasdiff.RequestError, match=f"{name} has values that are not finite"):
            tiny.generate(**prompt, **{name: value}, **QUICK)
