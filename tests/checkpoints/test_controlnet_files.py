"""ControlNets in every form that they are published in, beside diffusers."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers
from control_checkpoints import controlnet, original
from safetensors.torch import save_file
from xl_checkpoints import xl_pipeline

from kerasdiff.checkpoints.control_files import open_control
from kerasdiff.checkpoints.resolve import open_model

# A model -> how its small pipeline is made.
MODELS = {
    "v1": (checkpoints.pipeline, "v1"),
    "v2": (checkpoints.pipeline, "v2"),
    "inpainting": (checkpoints.pipeline, "inpainting"),
    "xl": (xl_pipeline, "base"),
    "refiner": (xl_pipeline, "refiner"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name -> U-Net of diffusers, and configuration."""
    found = {}

    def model(name):
        if name not in found:
            place = tmp_path_factory.mktemp(name)
            make, kind = MODELS[name]
            pipe = make(kind, place / "vocabulary")
            found[name] = pipe.unet, open_model(checkpoints.save(pipe, place / "model")).config
        return found[name]

    return model


def values(reference, config, network="controlnet"):
    """Our parameters by diffusers' names, as torch has them."""
    found = {}
    for name, value in open_control(str(reference), config).parameters(network):
        path, _, leaf = name.partition(".")[2].rpartition(".")
        key = f"{path}.{'weight' if leaf in ('kernel', 'gamma') else 'bias'}"
        kernel = leaf == "kernel"
        found[key] = value.transpose(3, 2, 0, 1) if kernel and value.ndim == 4 else value.T if kernel else value
    return found


def assert_same(found, state):
    assert found.keys() == state.keys()
    for key, value in state.items():
        mine = np.asarray(found[key], "float32")
        np.testing.assert_array_equal(mine.reshape(value.shape), value.float().numpy(), err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_folders_and_single_files_are_those_of_diffusers(models, tmp_path, name):
    unet, config = models("v1" if name == "inpainting" else name)[0], models(name)[1]
    net = controlnet(unet)
    net.save_pretrained(tmp_path / "folder")
    assert_same(values(tmp_path / "folder", config), net.state_dict())
    for prefix in ("control_model.", ""):
        path = tmp_path / f"file{len(prefix)}.safetensors"
        save_file(original(net, prefix), path)
        expected = net
        if "label_emb.0.0.weight" not in original(net, ""):  # which diffusers does not read
            expected = diffusers.ControlNetModel.from_single_file(str(path), config=str(tmp_path / "folder"))
        assert_same(values(path, config), expected.state_dict())
    alone = tmp_path / "alone.safetensors"
    (tmp_path / "folder" / "diffusion_pytorch_model.safetensors").rename(alone)
    assert_same(values(alone, config), net.state_dict())
    (tmp_path / "folder" / "diffusion_pytorch_model.safetensors").symlink_to(alone)
    made = {open_control(str(tmp_path / each), config).config for each in ("folder", "alone", "file0", "file14")}
    assert len(made) == 1
