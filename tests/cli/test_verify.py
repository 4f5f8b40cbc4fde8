"""python -m kerasdiff.verify: it computes what was published, passes on the right weights and fails on others."""

from __future__ import annotations

import json
import types

import checkpoints
import diffusers
import numpy as np
import pytest
import torch

import kerasdiff
from kerasdiff import verify
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import SD_V1, SD_V2
from kerasdiff.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    saved = checkpoints.save(checkpoints.pipeline("v1", folder / "vocabulary"), folder / "model")
    # Read back, as what a class filled in by itself is not told apart any more in a file.
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, saved


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("ddim", "DDIMScheduler"), ("lms", "LMSDiscreteScheduler"), ("pndm", "PNDMScheduler")]
)
def test_an_image_is_what_diffusers_tests_publish(made, sampler, scheduler):
    pipeline, folder = made
    # Stable Diffusion's own configuration switches this off; the small checkpoint's does not say.
    options = {"clip_sample": False} if sampler == "ddim" else {}
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **options)
    theirs = pipeline(
        "a photograph",
        latents=torch.from_numpy(np.random.RandomState(0).standard_normal((1, 4, 8, 8)).astype("float32")),
        num_inference_steps=3,
        guidance_scale=7.5,
        output_type="np",
    ).images
    reference = {
        "kind": "image",
        "prompt": "a photograph",
        "height": 64,
        "width": 64,
        "num_steps": 3,
        "guidance_scale": 7.5,
        "sampler": sampler,
    }
    generator = kerasdiff.Generator(folder, precision="float32", jit_compile=False)
    found = verify.compute(generator, reference)
    assert np.abs(found - theirs[0, -3:, -3:, -1].flatten()).max() < 1e-4
    assert theirs.std() > 0.01


def test_text_and_tokens_are_what_keras_cv_tests_publish(tiny):
    tokens, text, *_ = verify.references_for(SD_V1)
    assert tokens["expected"] == [49406, 320, 27111, 9038, 320]
    clip = types.SimpleNamespace(tokenizer=Tokenizer.clip())
    assert np.array_equal(verify.compute(clip, tokens), tokens["expected"])
    encoded = np.asarray(tiny.encode_text([text["prompt"]]))
    assert np.array_equal(verify.compute(tiny, text), encoded[0, 1, :5])


def test_the_embedded_model_passes_and_random_weights_fail():
    checks = list(verify.verify("tiny"))
    assert len(checks) == 6
    assert all(check.passed for check in checks)
    failed = [check.name for check in verify.verify(open_model("tiny", "random")) if not check.passed]
    assert failed == [check.name for check in checks if check.name != "token ids"]


def test_what_is_not_a_number_does_not_pass():
    assert not verify.Check("name", "source", float("nan"), 1.0).passed
    assert str(verify.Check("name", "source", 0.5, 1e-3)).startswith("FAIL  name: differs by 5.0e-01, 1e-03 allowed")


def test_an_architecture_without_references_is_one_line(made):
    with pytest.raises(kerasdiff.ModelError, match="no numbers are known for this architecture"):
        verify.references_for(SD_V2)
    with pytest.raises(kerasdiff.ModelError, match="no numbers are known for this architecture"):
        next(verify.verify(made[1]))


def call(capsys, *arguments):
    code = verify.PROGRAM.call(verify.main, ["verify", *arguments])
    return code, *capsys.readouterr()


def test_the_command_line(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert "pass  image, dpmpp_2m, 20 steps" in out


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--model=none", "model='none' is unknown"),
        ("--nothing", "Unknown command line flag 'nothing'"),
        ("tiny", "'tiny' is not a flag; usage: python -m kerasdiff.verify"),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, argument, text):
    code, out, err = call(capsys, argument)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"kerasdiff.verify: {text}")


def test_a_failed_check_is_exit_code_1(monkeypatch, capsys):
    checks = [verify.Check("name", "source", 2.0, 1.0), verify.Check("other", "source", float("nan"), 1.0)]
    monkeypatch.setattr(verify, "verify", lambda _: iter(checks))
    code, out, _ = call(capsys)
    assert code == 1
    assert out.startswith("FAIL  name")
    code, out, _ = call(capsys, "--json")
    told = {"name": "name", "source": "source", "difference": 2.0, "tolerance": 1.0, "passed": False}
    assert code == 1
    assert [json.loads(line) for line in out.splitlines()] == [told, {**told, "name": "other", "difference": None}]
