"""Arrays copied into another order and type are NumPy's own copies, however they are cut and whoever copies."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from kerasdiff.runtime import layout, safetensors_map, safetensors_write

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
    monkeypatch.setattr(layout, "_LARGE", large)
    values = np.random.default_rng(0).normal(size=shape).astype(kind)
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for source in (values, values.astype(wanted)):
        found = layout.converted(source.transpose(axes), dtype)
        assert found.dtype == wanted
        assert found.flags.c_contiguous
        assert found.ctypes.data % layout.ALIGNMENT == 0 or not found.size
        assert np.array_equal(found, values.transpose(axes).astype(wanted))


def test_too_large_is_infinite():
    found = layout.converted(np.array([[1e6, 1.0], [-1e6, 2.0]], "float32").T, "float16")
    assert np.array_equal(found, np.array([[np.inf, -np.inf], [1, 2]], "float16"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_ways_of_writing_give_the_same_tensors(tmp_path, dtype):
    random = np.random.default_rng(0)
    arrays = {f"a.{size}": random.normal(size=(size, 5)).astype("float32") for size in (1, 64, 7, 0, 33)}
    shapes = {name: array.shape for name, array in arrays.items()}
    safetensors_write.write(tmp_path / "one", shapes, arrays.items(), dtype)
    safetensors_write.write_mapped(tmp_path / "other", shapes, arrays.items(), dtype)
    for path in (tmp_path / "one", tmp_path / "other"):
        back = safetensors_map.TensorFiles([path])
        assert sorted(back) == sorted(arrays)
        for name, array in arrays.items():
            assert np.array_equal(back.read(name), layout.converted(array, dtype))
            assert back.read(name).ctypes.data % layout.ALIGNMENT == 0 or array.nbytes % layout.ALIGNMENT


@pytest.mark.parametrize("lost", ["first", "middle", "last", "all"])
def test_a_mapped_file_tells_what_never_reached_the_disk(tmp_path, lost):
    """As after a power failure: the length is right, and the header, and pages are zeros."""
    path = tmp_path / "kept.safetensors"
    values = np.random.default_rng(0).normal(size=(3, 2**21)).astype("float32")  # three samples
    safetensors_write.write_mapped(path, {"a": values.shape}, [("a", values)], "float32")
    assert safetensors_write.has_sample(path)
    content = bytearray(path.read_bytes())
    start = len(content) - values.nbytes
    begin, end = {"first": (0, 2**12), "middle": (2**22, 2**24), "last": (-(2**12), 0), "all": (0, 0)}[lost]
    begin, end = start + begin % values.nbytes, start + (end or values.nbytes)
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)
    assert not safetensors_write.has_sample(path)
    safetensors_map.TensorFiles([path])  # which sees nothing wrong


@pytest.mark.parametrize("shape", [(0,), (1,), (5, 3), (2**18 + 3,)])
def test_a_small_file_and_one_that_is_no_such_file(tmp_path, shape):
    values = np.random.default_rng(0).normal(size=shape).astype("float32")
    safetensors_write.write_mapped(tmp_path / "kept", {"a": shape}, [("a", values)], "float32")
    assert safetensors_write.has_sample(tmp_path / "kept")
    safetensors_write.write(tmp_path / "written", {"a": shape}, [("a", values)], "float32")
    assert not safetensors_write.has_sample(tmp_path / "written")
    (tmp_path / "short").write_bytes(b"short")
    assert not safetensors_write.has_sample(tmp_path / "short")
