"""Transposes of OpenVINO's graphs are where they cost nothing, and results stay the same."""

import numpy as np
import pytest

ov = pytest.importorskip("openvino")
from openvino import opset13 as operations  # noqa: E402

from kerasdiff.runtime.backends.openvino_layout import settle  # noqa: E402


def _values(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")


def _convolution(x):
    return operations.convolution(x, _values(6, 6, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])


def _last(x):
    return operations.transpose(x, np.array([0, 2, 3, 1]))


def _first(x):
    return operations.transpose(x, np.array([0, 3, 1, 2]))


def _bias_and_residual(x):
    x = operations.add(_last(_convolution(x)), _values(6))
    return _first(operations.add(_last(_convolution(_first(x))), x))


def _activation(x):
    pixels = operations.reshape(_last(x), np.array([2, 20, 6]), False)
    pixels = operations.reshape(operations.multiply(pixels, np.float32(2)), np.array([2, 4, 5, 6]), False)
    return _convolution(operations.swish(_first(pixels)))


def _skip(x):
    joined = operations.concat([_last(_convolution(x)), _last(x)], 3)
    return operations.add(_first(joined), _first(operations.concat([joined], 0)))


@pytest.mark.parametrize(
    ("function", "left"),
    [(_bias_and_residual, []), (_activation, ["Parameter", "Swish"]), (_skip, [])],
    ids=lambda value: getattr(value, "__name__", "").strip("_"),
)
def test_transposes_are_where_they_cost_nothing(function, left):
    x = operations.parameter([2, 6, 4, 5], np.float32)
    model = ov.Model([function(x)], [x])
    given = _values(2, 6, 4, 5)
    # In float32, whatever the processor could do.
    run = lambda: ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([given])[0]  # noqa: E731
    expected = run()
    settle(model)
    np.testing.assert_allclose(run(), expected, rtol=1e-4, atol=1e-5)
    transposes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Transpose"]
    assert sorted(node.input_value(0).get_node().get_type_name() for node in transposes) == left
