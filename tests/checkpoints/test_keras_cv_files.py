"""KerasCV's HDF5 files: damaged, foreign and malicious ones, and where published ones come from."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from kerasdiff.checkpoints import hub
from kerasdiff.checkpoints.formats import keras_cv_h5
from kerasdiff.checkpoints.formats.keras_cv_h5 import PUBLISHED, H5Source, write
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import ModelError

EXPECTED = {
    "net.conv_in.kernel": (3, 3, 4, 8),
    "net.conv_in.bias": (8,),
    "net.mid_block.resnets.0.norm1.gamma": (8,),
    "net.mid_block.attentions.0.to_q.kernel": (8, 8),
}


def values():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype("float32") for name, shape in EXPECTED.items()}


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "weights.h5"
    write(made, iter(values().items()), r"to_.*\.kernel$")
    return made


def test_what_is_written_is_read(path):
    source = H5Source(path, EXPECTED)
    for name, value in values().items():
        assert np.array_equal(source(name, EXPECTED[name]), value)
    source.finish()


def test_long_lists_of_names_come_in_parts(path):
    with h5py.File(path, "a") as file:
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:1], names[1:]
    assert np.array_equal(H5Source(path, EXPECTED)("net.conv_in.bias", (8,)), values()["net.conv_in.bias"])


def damage(file, kind, other):
    place = "conv_in/net.conv_in.bias:0"
    if kind in ("missing", "dtype", "shape", "external", "virtual", "soft link", "external link", "group", "huge"):
        del file[place]
    if kind == "dtype":
        file.create_dataset(place, data=np.zeros(8, "int32"))
    elif kind == "shape":
        file.create_dataset(place, data=np.zeros(9, "float32"))
    elif kind == "huge":
        file.create_dataset(place, shape=(2**40,), dtype="float32", chunks=(1024,))
    elif kind == "external":
        file.create_dataset(place, shape=(8,), dtype="float32", external=[(str(other), 0, h5py.h5f.UNLIMITED)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape=(8,), dtype="float32")
        layout[:] = h5py.VirtualSource(str(other), "x", shape=(8,))
        file.create_virtual_dataset(place, layout)
    elif kind == "soft link":
        file[place] = h5py.SoftLink("/conv_in/net.conv_in.kernel:0")
    elif kind == "external link":
        file[place] = h5py.ExternalLink(str(other), "x")
    elif kind == "group":
        file.create_group(place)
    elif kind == "names":
        del file.attrs["layer_names"]
    elif kind == "extra":
        file["conv_in/more"] = np.zeros(3, "float32")
        names = [
            bytes(name) if isinstance(name, bytes) else name.encode() for name in file["conv_in"].attrs["weight_names"]
        ]
        file["conv_in"].attrs["weight_names"] = [*names, b"more"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "is a link to elsewhere or missing"),
        ("dtype", "holds int32, not floating-point numbers"),
        ("shape", r"has shape \[9\], net.conv_in.bias needs \[8\]"),
        ("huge", r"has shape \[1099511627776\], net.conv_in.bias needs \[8\]"),
        ("external", "keeps its values in another file, which is not followed"),
        ("virtual", "keeps its values in another file, which is not followed"),
        ("soft link", "is a link to elsewhere or missing"),
        ("external link", "is a link to elsewhere or missing"),
        ("group", "is not a dataset"),
        ("names", "it is no file of KerasCV's published weights"),
        ("extra", "holds 5 weights; this model has 4"),
    ],
)
def test_what_a_file_must_not_have(path, tmp_path, kind, message):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.zeros(8, "float32")
    with h5py.File(path, "a") as file:
        damage(file, kind, other)
    with pytest.raises(ModelError, match=message) as caught:
        H5Source(path, EXPECTED)
    assert "\n" not in str(caught.value)


def test_truncated_files(path):
    """Flipped bits are not tried: HDF5 may then run for ever, which is why published files are hashed first."""
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 211):
        damaged = path.with_name(f"{length}.h5")  # HDF5 would share one that is still open
        damaged.write_bytes(whole[:length])
        with pytest.raises(ModelError) as caught:
            H5Source(damaged, EXPECTED)
        assert "\n" not in str(caught.value)


def test_a_pickle_is_no_hdf5(path):
    path.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(ModelError, match="is a pickle checkpoint"):
        H5Source(path, EXPECTED)


def test_presets_fetch_what_drawing_needs(monkeypatch, tmp_path):
    asked = []

    def fetch_file(repository, name, sha256):
        asked.append((repository, name))
        assert len(sha256) == 64
        return tmp_path / name

    monkeypatch.setattr(hub, "fetch_file", fetch_file)
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path))
    model = open_model("sd-v2-1")
    assert asked == [PUBLISHED["sd-v2-1"][network][:2] for network in ("text_encoder", "unet", "decoder")]
    with pytest.raises(ModelError, match=r"text_encoder_v2_1\.h5 cannot be read: No such file"):
        model.source("text_encoder", dict)


def test_a_folder_with_their_files_is_a_model(tmp_path):
    (tmp_path / "kcv_diffusion_model.h5").write_bytes(b"")
    assert keras_cv_h5.preset_of(tmp_path) == "sd-v1-4"
    model = open_model(tmp_path)
    assert model.config.unet.context_width == 768
    with pytest.raises(ModelError, match=r"kcv_diffusion_model\.h5 is corrupt or incomplete"):
        model.source("unet", dict)
