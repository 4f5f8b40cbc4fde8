"""Models of the Hugging Face hub, from a hub on this machine; each run is a process of its own."""

from __future__ import annotations

import fnmatch

import checkpoints
import pytest
from fake_hub import line_of, serve, start_opening

import kerasdiff
from kerasdiff.checkpoints import hub, hub_requests
from kerasdiff.checkpoints.resolve import open_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("hub")
    saved = checkpoints.save(checkpoints.pipeline("v1", made / "vocabulary"), made / "model")
    (saved / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04 a pickle that nobody asked for")
    (saved / "README.md").write_text("a model")
    return saved


def run(tmp_path, endpoint, model, offline=False, **arguments):
    environment = {"HF_HUB_OFFLINE": "1"} if offline else {}
    return line_of(start_opening(tmp_path, endpoint, model, arguments=arguments, **environment))


def fetched(asked):
    return [line.split("/", 4)[4] for line in asked if line.startswith("GET org/name/resolve")]


def test_a_repository_is_downloaded_once_and_without_pickles(folder, tmp_path):
    with serve(folder) as (endpoint, asked):
        assert run(tmp_path, endpoint, "hf://org/name") == "org/name (32, 64) False"
        names = fetched(asked)
        assert sorted(set(names)) == sorted(names)
        assert "unet/diffusion_pytorch_model.safetensors" in names
        assert not any(name.endswith((".bin", ".md")) for name in names)
        asked.clear()
        assert run(tmp_path, endpoint, "org/name") == "org/name (32, 64) False"
        assert not fetched(asked)
    # Without a network, and when told to stay offline, the cache is enough.
    assert run(tmp_path, endpoint, "org/name") == "org/name (32, 64) False"
    assert run(tmp_path, endpoint, "org/name", offline=True) == "org/name (32, 64) False"


def test_random_weights_need_only_the_settings(folder, tmp_path):
    with serve(folder) as (endpoint, asked):
        line = run(tmp_path, endpoint, "org/name", weights="random")
    assert line == "org/name (random weights) (32, 64) False"
    assert "unet/config.json" in fetched(asked)
    assert not any(name.endswith(".safetensors") for name in fetched(asked))


def test_what_is_not_to_be_had_is_one_line(folder, tmp_path):
    with serve(folder) as (endpoint, _):
        assert run(tmp_path, endpoint, "org/gated").startswith("ModelError org/gated is gated: accept its licence")
        assert run(tmp_path, endpoint, "org/none").startswith(f"ModelError there is no org/none at {endpoint}")
        assert f"has no revision 'old' at {endpoint}" in run(tmp_path, endpoint, "org/name", revision="old")
        assert "has no file none.safetensors" in run(tmp_path, endpoint, "hf://org/name/none.safetensors")
        broken = run(tmp_path, endpoint, "org/broken")
        assert broken.startswith("ModelError org/broken is not complete in the cache")
        assert endpoint in broken
    missing = run(tmp_path, endpoint, "org/name")
    assert missing.startswith("ModelError org/name is not complete in the cache")
    assert missing.endswith("model='tiny' needs no download")


def test_published_weights_of_keras_cv_that_are_not_there_are_one_line(folder, tmp_path):
    with serve(folder) as (endpoint, asked):
        line = run(tmp_path, endpoint, "sd-v1-4", offline=True)
        assert line.startswith("ModelError fchollet/stable-diffusion/kcv_encoder.h5 is not complete in the cache")
        assert asked == []
        assert run(tmp_path, endpoint, "sd-v1-4").startswith("ModelError there is no fchollet/stable-diffusion")


def test_names_on_the_hub():
    for name in ("hf://org/name", "org/name", "hf://org/name/sub/file.safetensors", "a-b_c.d/e.f", "o/n/epoch=1.ckpt"):
        assert hub.is_name(name)
    for name in (
        "tiny",
        "org/name/other",
        "hf://org",
        "../x/y",
        "../x",
        "./x",
        "https://host/org/name",
        "org/name/file.exe",
    ):
        assert not hub.is_name(name)


def test_shards_of_a_variant_are_asked_for_by_their_new_and_their_old_names():
    wanted = list(hub._weights(["unet"], "fp16"))
    for name in (
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    ):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in wanted), name
    assert not any(fnmatch.fnmatch("unet/diffusion_pytorch_model.safetensors", pattern) for pattern in wanted)


@pytest.mark.parametrize(("found", "there"), [(None, "it is not installed"), ("0.36.2", "this is 0.36.2")])
@pytest.mark.parametrize("model", ["org/name", "sd-v1-4"])
def test_a_library_that_is_missing_or_old_is_named(monkeypatch, found, there, model):
    monkeypatch.setattr(hub_requests, "version", lambda _: found)
    with pytest.raises(kerasdiff.ModelError, match=f"huggingface_hub 1.0 or newer, and {there}: pip install"):
        open_model(model)
