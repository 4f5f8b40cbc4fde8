"""Operations that OpenVINO has by itself, or that are written otherwise for it than for TensorFlow.

Layers ask for them by name; in a traced graph they are nodes of a type that TensorFlow never runs.
"""

from typing import Any

import numpy as np
from openvino.frontend.tensorflow import ConversionExtension

from kerasdiff.runtime.backends.openvino_program import operations, ov


def _group_norm(x: Any, gamma: Any, beta: Any, *inputs: Any) -> Any:
    *offsets, groups, epsilon = inputs
    rows, height, width, channels = x.get_shape()
    if x.get_element_type() == ov.Type.f32:
        for offset in offsets:
            x = operations.add(x, operations.reshape(offset, np.array([-1, 1, 1, channels]), False))
        channels_first = operations.transpose(x, np.array([0, 3, 1, 2]))
        normed = operations.group_normalization(channels_first, gamma, beta, int(groups), epsilon)
        return operations.transpose(normed, np.array([0, 2, 3, 1]))
    # Statistics of each channel first: memory is then read in the order in which convolutions leave it. An offset
    # moves means and no variance, so that it is not added to every pixel.
    per_channel, per_group = np.array([rows, 1, channels]), np.array([rows, int(groups), -1])
    pixels = operations.reshape(x, np.array([rows, height * width, channels]), False)
    means = operations.reduce_mean(pixels, np.array([1]), True)
    centred = operations.subtract(pixels, means)
    squares = operations.reduce_mean(operations.multiply(centred, centred), np.array([1]), True)
    pixels, means, variances = (operations.convert(each, "f32") for each in (pixels, means, squares))
    offsets = [
        operations.reshape(operations.convert(each, "f32"), np.array([-1, 1, channels]), False) for each in offsets
    ]
    for offset in offsets:
        means = operations.add(means, offset)
    means = operations.reshape(means, per_group, False)
    mean = operations.reduce_mean(means, np.array([2]), True)
    apart = operations.subtract(means, mean)
    spread = operations.add(operations.reshape(variances, per_group, False), operations.multiply(apart, apart))
    variance = operations.reduce_mean(spread, np.array([2]), True)
    inverse = operations.power(operations.add(variance, np.float32(epsilon)), np.float32(-0.5))
    gamma, beta = (operations.convert(each, "f32") for each in (gamma, beta))
    gamma, beta = (operations.reshape(each, np.array([1, int(groups), -1]), False) for each in (gamma, beta))
    scale = operations.multiply(inverse, gamma)
    shift = operations.subtract(beta, operations.multiply(mean, scale))
    scale, shift = (operations.reshape(each, per_channel, False) for each in (scale, shift))
    for offset in offsets:
        shift = operations.add(shift, operations.multiply(offset, scale))
    normed = operations.add(operations.multiply(pixels, scale), shift)
    return operations.reshape(operations.convert(normed, x.get_element_type()), np.array(list(x.get_shape())), False)


def _layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    normed = operations.mvn(x, np.array([-1]), True, epsilon, "inside_sqrt")
    return operations.convert(operations.add(operations.multiply(normed, gamma), beta), "f32")


def _interleave(*phases: Any) -> Any:
    channels_first = [operations.transpose(phase, np.array([0, 3, 1, 2])) for phase in phases]
    doubled = operations.depth_to_space(operations.concat(channels_first, 1), "blocks_first", 2)
    return operations.transpose(doubled, np.array([0, 2, 3, 1]))


_OPERATIONS: dict[str, Any] = {"group_norm": _group_norm, "layer_norm": _layer_norm, "interleave": _interleave}


def _translated(node: Any) -> Any:
    """A node of `kerasdiff.runtime.backends.tf_tracing.openvino_node`."""
    kind, *numbers = node.get_attribute("token", str).split()
    inputs = [node.get_input(index) for index in range(node.get_input_size())]
    return _OPERATIONS[kind](*inputs, *map(float, numbers)).outputs()


EXTENSION = ConversionExtension("PyFuncStateless", _translated)
