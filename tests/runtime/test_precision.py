"""What "auto" becomes on each kind of device."""

from __future__ import annotations

import sys

import pytest

import kerasdiff
from kerasdiff.errors import KerasdiffError
from kerasdiff.runtime import backend, precision
from kerasdiff.runtime.precision import Execution, choose

CASES = [
    # GPU, bfloat16 processor, large model -> decision
    (True, False, True, Execution("GPU", "float16", True)),
    (True, True, False, Execution("GPU", "float16", True)),
    (False, True, True, Execution("CPU", "bfloat16", False)),
    (False, True, False, Execution("CPU", "float32", False)),
    (False, False, True, Execution("CPU", "float32", True)),
]


@pytest.mark.parametrize(("gpu", "bfloat16", "large", "expected"), CASES)
def test_auto(monkeypatch, gpu, bfloat16, large, expected):
    monkeypatch.setattr(precision, "has_gpu", lambda backend: gpu)
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: bfloat16)
    assert choose("auto", "auto", large) == expected


def test_what_is_asked_for_is_not_changed():
    for name in precision.PRECISIONS:
        for jit_compile in (True, False):
            chosen = choose(name, jit_compile, large=True)
            assert (chosen.precision, chosen.jit_compile) == (name, jit_compile)
            assert chosen.policy.name == name


def test_it_says_itself_in_one_line():
    assert str(Execution("CPU", "bfloat16", False)) == "CPU, bfloat16, no XLA"


@pytest.fixture
def preferred(monkeypatch):
    """A machine on which OpenVINO is the fastest, and nobody says which backend to use."""
    monkeypatch.delenv(backend.VARIABLE)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(precision, "prefers_openvino", lambda: True)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_auto_is_openvino_where_that_is_the_fastest(preferred, monkeypatch, bfloat16):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: bfloat16)
    large, small = (choose("auto", "auto", large) for large in (True, False))
    assert large == Execution("CPU", "bfloat16" if bfloat16 else "float32", False, "openvino")
    assert small == Execution("CPU", "float32", False, "openvino")
    assert str(small) == "CPU, float32, OpenVINO"


@pytest.mark.parametrize("variable", [None, "openvino"])
@pytest.mark.parametrize(
    "asked",
    [
        {"jit_compile": True},
        *({"precision": name} for name in ("float16", "mixed_float16", "mixed_bfloat16")),
        {"fixed": False},
    ],
    ids=str,
)
def test_what_openvino_cannot_do_auto_leaves_to_tensorflow(preferred, monkeypatch, asked, variable):
    if variable is not None:
        monkeypatch.setenv(backend.VARIABLE, variable)
    asked = {"precision": "auto", "jit_compile": "auto", "large": True, **asked}
    assert choose(**asked).backend == "tensorflow"


def test_openvino_is_for_x86_without_an_accelerator(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "version", lambda name: "2026.4.1")
    monkeypatch.setattr(precision.platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(precision, "_DRIVERS", (str(tmp_path / "driver"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert precision.prefers_openvino()
    (tmp_path / "driver").touch()
    assert not precision.prefers_openvino()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert precision.prefers_openvino()
    monkeypatch.setattr(precision.platform, "machine", lambda: "aarch64")
    assert not precision.prefers_openvino()
    monkeypatch.undo()
    monkeypatch.setattr(precision, "version", lambda name: None)
    assert not precision.prefers_openvino()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"backend": "openvino", "jit_compile": True}, "means XLA, which OpenVINO does not use"),
        ({"backend": "openvino", "precision": "mixed_bfloat16"}, "has float32 weights beside half precision"),
        ({"backend": "openvino", "fixed": False}, "the weights of a live model may change, which OpenVINO does not"),
        ({"backend": "onnx"}, "backend='onnx' is unknown; choose one of auto, tensorflow, jax, openvino"),
        ({"backend": None}, "backend=None is unknown"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(asked, said):
    asked = {"precision": "auto", "jit_compile": "auto", "large": False, **asked}
    with pytest.raises(kerasdiff.RequestError, match=said) as caught:
        choose(**asked)
    assert "\n" not in str(caught.value)


def test_a_wrong_variable_is_one_line(monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "OpenVINO")
    with pytest.raises(kerasdiff.RequestError, match="KERASDIFF_BACKEND='OpenVINO' is unknown; choose one of auto"):
        choose("auto", "auto", False)


def test_keras_on_jax_cannot_trace_for_openvino(monkeypatch):
    import keras  # noqa: F401

    monkeypatch.setattr(backend, "of_keras", lambda: "jax")
    with pytest.raises(kerasdiff.RequestError, match="needs Keras on tensorflow, and Keras was imported with jax in"):
        choose("auto", "auto", False, "openvino")
    assert not precision.is_available("openvino")


def test_a_backend_that_is_not_installed_is_one_line(monkeypatch):
    for name in ("openvino", "openvino_program"):
        monkeypatch.delitem(sys.modules, f"kerasdiff.runtime.backends.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(KerasdiffError, match="backend='openvino' needs openvino: pip install openvino"):
        kerasdiff.Generator("tiny", backend="openvino")
