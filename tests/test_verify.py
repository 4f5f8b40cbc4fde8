"""python -m kerasdiff.verify: it computes what was published, passes on the right weights and fails on others."""

from __future__ import annotations

import subprocess
import sys
import types

import checkpoints
import diffusers
import numpy as np
import pytest
import torch

import kerasdiff
from kerasdiff import verify
from kerasdiff.models.config import SD_V1, SD_V2
from kerasdiff.models.tokenizer import Tokenizer
from kerasdiff.weights.presets import open_model


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


@pytest.mark.parametrize(
    ("arguments", "code", "stream", "text"),
    [
        ([], 0, "out", "pass  image, dpmpp_2m, 20 steps"),
        (["--help"], 0, "out", "--model"),
        (["--model=none"], 2, "err", "kerasdiff: model='none' is unknown"),
        (["--nothing"], 2, "err", "kerasdiff: Unknown command line flag 'nothing'"),
        (["tiny"], 2, "err", "kerasdiff: usage: python -m kerasdiff.verify"),
    ],
)
def test_the_command_line(capsys, arguments, code, stream, text):
    verify._FLAGS.unparse_flags()
    for name in verify._FLAGS:
        verify._FLAGS[name].value = verify._FLAGS[name].default
    assert verify.main(["verify", *arguments]) == code
    assert text in getattr(capsys.readouterr(), stream)


def test_a_failed_check_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(verify, "verify", lambda *_, **__: iter([verify.Check("name", "source", 2.0, 1.0)]))
    verify._FLAGS.unparse_flags()
    assert verify.main(["verify"]) == 1
    assert capsys.readouterr().out.startswith("FAIL  name")


def test_it_runs_as_a_program():
    run = subprocess.run(
        [sys.executable, "-m", "kerasdiff.verify", "--help"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("python -m kerasdiff.verify")
