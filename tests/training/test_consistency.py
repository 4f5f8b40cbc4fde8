"""Distillation to a few steps: its teacher draws as the generator does, and its LoRA is one that is read."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from kerasdiff.adapters.lora_file import read_lora
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import TINY
from kerasdiff.training import consistency
from kerasdiff.training.lora_training import build

PROMPT = "a red circle above a blue square on a yellow background"


def test_the_teacher_ends_where_a_request_does(tiny):
    result = tiny.generate(PROMPT, num_steps=8, sampler="dpmpp_2m", spacing="trailing", seed=3, progress=False)
    teacher = consistency.Teacher(build(open_model("tiny"), "unet"), tiny.encode_text([""])[0])
    ends = teacher.ends(tiny.initial_latents(seed=3), TINY.schedule.num_train_timesteps - 1, tiny.encode_text([PROMPT]))
    assert np.abs(ends - result.latents).max() < 1e-3


@pytest.fixture
def in_miniature(monkeypatch):
    monkeypatch.setattr(consistency, "NUM_SCENES", 2)
    monkeypatch.setattr(consistency, "FOLLOWED", 1)
    monkeypatch.setattr(consistency, "TEACHER_STEPS", 2)
    monkeypatch.setattr(consistency, "BATCH_SIZE", 2)
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_a_training_of_one_step_is_a_file_that_is_read(in_miniature, tmp_path):
    tensors = consistency.distil(tmp_path / "runs", scale=1e-9)
    assert max(np.abs(value).max() for name, value in tensors.items() if "lora_up" in name) > 0
    save_file(tensors, tmp_path / "lcm.safetensors", consistency.metadata(0))
    lora = read_lora(tmp_path / "lcm.safetensors")
    assert lora.ranks == (consistency.RECIPE.rank,)
    assert lora.fit({"unet": open_model("tiny").shapes("unet")}, TINY).unused is None
    noisy, ends, timesteps, _ = consistency.examples(tmp_path / "runs", 0)
    assert noisy.shape == ends.shape == (2, 16, 16, 4)
    assert timesteps.tolist() == consistency.TIMESTEPS[:2].tolist()
