"""The networks that steer a model: opened once, by kind, with their hashes."""

import hashlib

import numpy as np
import pytest
from checkpoints import pipeline
from control_checkpoints import controlnet

import kerasdiff
from kerasdiff.errors import ModelError
from kerasdiff.request import make_request

HINT = np.zeros((64, 64, 3), "uint8")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model and a ControlNet for it."""
    place = tmp_path_factory.mktemp("library")
    pipe = pipeline("v1", place / "vocabulary")
    pipe.save_pretrained(place / "model")
    controlnet(pipe.unet).save_pretrained(place / "net")
    return place


@pytest.fixture(scope="module")
def model(places):
    return kerasdiff.Generator(places / "model", precision="float32", jit_compile=False, backend="openvino")


def settled(model, *controls):
    request = make_request(model.config, "a circle", height=64, width=64, controls=[*controls])
    return [*model._pipeline.settled(request).controls]


def test_a_control_is_settled_with_its_path_and_the_hash_of_its_weights(model, places):
    relative = str(places / "other" / ".." / "net")
    (found,) = settled(model, kerasdiff.Control(relative, HINT))
    weights = places / "net" / "diffusion_pytorch_model.safetensors"
    assert found.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found.model == str(places / "net")
    settled(model, found)  # as a receipt has it
    (by_file,) = settled(model, kerasdiff.Control(str(weights)[: -len(".safetensors")], HINT))
    assert (by_file.sha256, by_file.model) == (found.sha256, str(weights))
    with pytest.raises(ModelError, match="has changed: its SHA-256 was 000"):
        settled(model, kerasdiff.Control(str(places / "net"), HINT, sha256="0" * 64))


def test_a_network_is_opened_once_while_its_files_stay_the_same(model, places):
    library, control = model._pipeline.controls, kerasdiff.Control(str(places / "net"), HINT)
    first = library.open(control)
    assert library.open(control) is first
    weights = places / "net" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert library.open(control) is not first
    assert [one for one in library.opened if one is first] == []


@pytest.mark.parametrize("nothing", [{"scale": 0}, {"start": 0.5, "end": 0.5}])
def test_what_never_acts_is_not_opened(model, nothing):
    (found,) = settled(model, kerasdiff.Control("there/is/none", HINT, **nothing))
    assert found.sha256 is None
