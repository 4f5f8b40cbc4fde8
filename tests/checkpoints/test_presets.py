"""Models that have a name of their own."""

from __future__ import annotations

import numpy as np
import pytest

from kerasdiff.checkpoints import hub, licence, resolve
from kerasdiff.models.config import SDXL, SDXL_REFINER
from kerasdiff.runtime.precision import Execution

BASE = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.mark.parametrize(("preset", "config"), [("sdxl", SDXL), ("sdxl-refiner", SDXL_REFINER)])
def test_random_ones_of_full_size_need_no_network(monkeypatch, preset, config):
    monkeypatch.setattr(hub, "fetch", None)
    model = resolve.open_model(preset, "random")
    assert (model.name, model.config) == (f"{preset} (random weights)", config)
    assert model.fixed
    padding = {name: tokenizer.word(tokenizer.pad_id) for name, tokenizer in model.tokenizers.items()}
    assert padding == {name: {"text_encoder": "<|endoftext|>", "text_encoder_2": "!"}[name] for name in padding}
    assert [*padding] == [*config.text_encoders]
    assert resolve.is_current(model)
    assert model.source("unet", dict)("unet.conv_in.kernel", (3, 3, 4, 320)).shape == (3, 3, 4, 320)


def test_random_ones_are_made_when_they_are_laid_out():
    pytest.importorskip("openvino")
    shape = (8, 4)
    values = resolve.open_model("sdxl", "random").load(
        "unet", Execution("CPU", "bfloat16", False, "openvino"), {"unet.conv_in.kernel": shape}
    )
    value = values["unet.conv_in.kernel"]
    assert not isinstance(value, np.ndarray)  # whose memory would be there all the time
    first, again = np.asarray(value), np.asarray(value)
    assert first.dtype.name == "bfloat16"
    assert np.array_equal(first, again)
    assert not np.shares_memory(first, again)


@pytest.mark.parametrize(("given", "taken"), [({}, "fp16"), ({"variant": "other"}, "other")])
def test_pretrained_ones_are_the_half_of_a_repository(monkeypatch, given, taken):
    asked = []

    def fetch(*arguments):
        asked.append(arguments)
        return resolve.TINY_FOLDER

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "downloaded", lambda *named: asked.append(named) or resolve.TINY_FOLDER)
    with pytest.warns(UserWarning, match="has one set of weights"):  # of the folder that stands for it here
        model = resolve.open_model("sdxl", revision="main", **given)
    assert (model.name, model.origin["model"], model.origin["variant"]) == ("sdxl", "sdxl", given.get("variant"))
    assert resolve.is_current(model)
    assert asked == [(BASE, "main", taken), (BASE, "main")]


def test_their_licence_is_known_without_asking(monkeypatch, caplog):
    monkeypatch.setattr(licence.cache_dir, "leave_marker", lambda name: True)
    monkeypatch.setattr(licence, "_stated", None)
    licence.give_notice.cache_clear()
    licence.give_notice(BASE, BASE)
    assert "CreativeML Open RAIL++-M" in caplog.text
