"""Which operations of OpenVINO's graphs have channels first, as convolutions have them, and which last, as layers do.

In memory a convolution's pixels have their channels last, so that a transpose right behind or before it costs nothing,
unless something in between is computed in the other order. The converter moves transposes as far as they go.
"""

from typing import Any

import numpy as np
from openvino import opset13 as operations

_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def settle(model: Any) -> None:
    """Puts transposes between activations and the convolutions that they lead to, and behind what follows on these.

    Sums with a bias and with a residual are then part of the convolution.
    """
    while any([step(node) for node in model.get_ordered_ops() for step in _STEPS]):  # noqa: C419 - every step
        pass
    model.validate_nodes_and_infer_types()


def _order(node: Any) -> tuple[int, ...] | None:
    """Of what becomes of four axes; None for any other node."""
    if node.get_type_name() != "Transpose" or node.input_value(1).get_node().get_type_name() != "Constant":
        return None
    order = tuple(map(int, node.input_value(1).get_node().get_vector()))
    return order if len(order) == 4 else None


def _transposed(output: Any, order: tuple[int, ...]) -> Any:
    return operations.transpose(output, np.array(order)).output(0)


def _rank(output: Any) -> int:
    return output.get_partial_shape().rank.get_length()


def _cancel(node: Any) -> bool:
    """Takes out a transpose of a transpose that undoes it."""
    order = _order(node)
    before = None if order is None else _order(node.input_value(0).get_node())
    if order is None or before is None or tuple(before[axis] for axis in order) != (0, 1, 2, 3):
        return False
    source, targets = node.input_value(0).get_node().input_value(0), node.output(0).get_target_inputs()
    for target in targets:
        target.replace_source_output(source)
    return bool(targets)


def _activate_before(node: Any) -> bool:
    """Takes an activation to the other side of the transpose that puts its channels first."""
    if node.get_type_name() != "Swish" or _order(node.input_value(0).get_node()) != _FIRST:
        return False
    targets = node.output(0).get_target_inputs()
    node.input(0).replace_source_output(node.input_value(0).get_node().input_value(0))
    node.validate_and_infer_types()
    after = _transposed(node.output(0), _FIRST)
    for target in targets:
        target.replace_source_output(after)
    return True


def _join_after(node: Any) -> bool:
    """Computes a sum or a concatenation of what has just got its channels last with its channels first."""
    sources = [each.get_source_output() for each in node.inputs()]
    axes = {"Add": None, "Concat": node.get_attributes().get("axis")}
    if node.get_type_name() not in axes or not any(_order(source.get_node()) == _LAST for source in sources):
        return False
    axis, ranks = axes[node.get_type_name()], {*map(_rank, sources)}
    if not ranks <= {1, 4} or axis not in (None, 0, 3):
        return False
    inputs = [
        _transposed(source, _FIRST)
        if _rank(source) == 4
        else operations.reshape(source, np.array([1, -1, 1, 1]), False)
        for source in sources
    ]
    joined = operations.add(*inputs) if axis is None else operations.concat(inputs, _FIRST.index(axis))
    targets, after = node.output(0).get_target_inputs(), _transposed(joined.output(0), _LAST)
    for target in targets:
        target.replace_source_output(after)
    return bool(targets)


_STEPS = (_cancel, _activate_before, _join_after)
