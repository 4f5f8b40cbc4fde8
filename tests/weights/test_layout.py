"""Arrays copied into another order and type are NumPy's own copies, however they are cut and whoever copies."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from kerasdiff.weights import tensors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("large", [2**20, 1])
@pytest.mark.parametrize(("kind", "dtype"), [("float32", "float32"), ("float32", "float16"), ("float32", "bfloat16")])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((70, 130, 3, 3), (2, 3, 1, 0)),
        ((70, 1, 3, 5), (2, 3, 1, 0)),
        ((3, 700, 1, 1), (2, 3, 1, 0)),
        ((64, 0, 3, 3), (2, 3, 1, 0)),
        ((70, 130, 3, 3), (0, 2, 3, 1)),
        ((200, 130), (1, 0)),
        ((200,), (0,)),
        ((), ()),
    ],
)
def test_turned_arrays(shape, axes, kind, dtype, large, monkeypatch):
    monkeypatch.setattr(tensors, "_LARGE", large)
    values = np.random.default_rng(0).normal(size=shape).astype(kind)
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for source in (values, values.astype(wanted)):
        found = tensors.laid_out(source.transpose(axes), dtype)
        assert found.dtype == wanted
        assert found.flags.c_contiguous
        assert found.ctypes.data % tensors.ALIGNMENT == 0 or not found.size
        assert np.array_equal(found, values.transpose(axes).astype(wanted))


def test_too_large_is_infinite():
    found = tensors.laid_out(np.array([[1e6, 1.0], [-1e6, 2.0]], "float32").T, "float16")
    assert np.array_equal(found, np.array([[np.inf, -np.inf], [1, 2]], "float16"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_ways_of_writing_give_the_same_file(tmp_path, dtype):
    random = np.random.default_rng(0)
    arrays = {f"a.{size}": random.normal(size=(size, 5)).astype("float32") for size in (1, 64, 7, 0, 33)}
    shapes = {name: array.shape for name, array in arrays.items()}
    tensors.write(tmp_path / "one", shapes, arrays.items(), dtype)
    tensors.write_mapped(tmp_path / "other", shapes, arrays.items(), dtype)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    back = tensors.TensorFiles([tmp_path / "one"])
    for name, array in arrays.items():
        assert np.array_equal(back.read(name), tensors.laid_out(array, dtype))
