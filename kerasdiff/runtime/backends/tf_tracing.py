"""TensorFlow's graphs: what layers ask for, as what will run it wants to have it, and how functions are traced."""

import contextvars
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from kerasdiff.runtime.backends import graph_partition, keras_ops

# What will run what is being traced: "xla", "onednn" or "openvino".
_TARGET: contextvars.ContextVar[str] = contextvars.ContextVar("target", default="xla")
_EPSILON = 1e-4
_STATEFUL = {"VarHandleOp", "ReadVariableOp"}


def group_norm(x: Any, groups: int, gamma: Any, beta: Any, epsilon: float, offset: Any = None) -> Any:
    """As `keras_ops.group_norm`."""
    if _TARGET.get() == "openvino":
        inputs = (x, gamma, beta) if offset is None else (x, gamma, beta, offset)
        return openvino_node(f"group_norm {groups} {epsilon}", inputs, x.dtype, x.shape)
    if _TARGET.get() == "xla" or x.shape[0] is None:
        return keras_ops.group_norm(x, groups, gamma, beta, epsilon, offset)
    return keras_ops.group_norm(x, groups, gamma, beta, epsilon, offset, _channel_moments, _scale_and_shift)


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """As `keras_ops.layer_norm`."""
    if _TARGET.get() == "openvino":
        return openvino_node(f"layer_norm {epsilon}", (x, gamma, beta), tf.float32, x.shape)
    return keras_ops.layer_norm(x, gamma, beta, epsilon)


def interleave(phases: Sequence[Sequence[Any]]) -> Any:
    """As `keras_ops.interleave`."""
    if _TARGET.get() != "openvino":
        return keras_ops.interleave(phases)
    first = phases[0][0]
    shape = (first.shape[0], 2 * first.shape[1], 2 * first.shape[2], first.shape[3])
    return openvino_node("interleave", [phase for row in phases for phase in row], first.dtype, shape)


def weighted_sums(weights: Any, terms: Sequence[Any]) -> list[Any]:
    """As `keras_ops.weighted_sums`."""
    if _TARGET.get() != "openvino":
        return keras_ops.weighted_sums(weights, terms)
    flat = tf.reshape(tf.stack(terms, axis=1), (terms[0].shape[0], len(terms), -1))
    shape = (weights.shape[1], *terms[0].shape)
    return tf.unstack(tf.reshape(tf.transpose(weights @ flat, (1, 0, 2)), shape))


def openvino_node(kind: str, inputs: Sequence[Any], dtype: Any, shape: Any) -> Any:
    """A node that only `kerasdiff.runtime.backends.openvino` can read, which has an operation of its own for it."""
    tensors = [tf.convert_to_tensor(each) for each in inputs]
    (result,) = tf.raw_ops.PyFuncStateless(input=tensors, token=kind, Tout=[dtype])
    result.set_shape(shape)
    return result


def _channel_moments(x: Any) -> tuple[Any, Any]:
    """As `keras_ops.channel_moments`, by oneDNN's batch normalisation of each picture.

    That reads every value once and makes no float32 copy: half the time of sums. Compiled by XLA, sums are faster.
    """
    pixels = x.shape[1] * x.shape[2]
    none, ones, zeros = tf.zeros(0), tf.ones(x.shape[-1]), tf.zeros(x.shape[-1])
    rows = [
        tf.raw_ops.FusedBatchNormV3(x=row, scale=ones, offset=zeros, mean=none, variance=none, is_training=True)
        for row in tf.split(x, x.shape[0])
    ]
    # What it gives is the unbiased estimate.
    variances = tf.stack([row.batch_variance for row in rows]) * ((pixels - 1) / pixels)
    return tf.stack([row.batch_mean for row in rows]), variances


def _scale_and_shift(x: Any, scale: Any, shift: Any) -> Any:
    """As `keras_ops.scale_and_shift`."""
    zeros, ones = tf.zeros(x.shape[-1]), tf.ones(x.shape[-1]) - _EPSILON
    rows = [
        tf.raw_ops.FusedBatchNormV3(
            x=row,
            scale=scale[index],
            offset=shift[index],
            mean=zeros,
            variance=ones,
            epsilon=_EPSILON,
            is_training=False,
        ).y
        for index, row in enumerate(tf.split(x, x.shape[0]))
    ]
    return tf.concat(rows, 0) if len(rows) > 1 else rows[0]


def after(x: Any, done: Any) -> Any:
    """As `keras_ops.after`; XLA orders operations itself, and does not see TensorFlow's own means."""
    if _TARGET.get() != "onednn":
        return keras_ops.after(x, done)
    with tf.control_dependencies([done]):
        return tf.identity(x)


@dataclasses.dataclass(frozen=True)
class Graph:
    """What was traced, in which no two nodes compute the same: placeholders by name, and what comes out."""

    nodes: Any
    values: dict[str, Any]  # of parameters, name -> its `TensorSpec`, in order
    arguments: dict[str, Any]
    outputs: list[str]
    shapes: Callable[[str], Any]  # of any tensor, its `TensorSpec`
    stateful: bool  # whether it reads a variable that was not handed over


def traced(function: Callable[..., Any], values: Sequence[Any], arguments: Sequence[Any], target: str) -> Graph:
    """A function of (list of values, *arguments), whose results are flattened, traced for a target."""
    specs = [tf.TensorSpec(value.shape, value.dtype) for value in (*values, *arguments)]
    flat = tf.function(
        lambda *tensors: tf.nest.flatten(function(list(tensors[: len(values)]), *tensors[len(values) :])),
        autograph=False,
    )
    token = _TARGET.set(target)
    try:
        made = flat.get_concrete_function(*specs)
    finally:
        _TARGET.reset(token)
    names = [tensor.op.name for tensor in made.inputs]
    states = [node.name for node in made.graph.get_operations() if node.op_def.is_stateful]
    results = [tensor.name for tensor in made.outputs]
    nodes, outputs = graph_partition.merged(made.graph.as_graph_def(), {*names, *states}, results)
    known = dict(zip(names, specs, strict=True))
    return Graph(
        nodes,
        {name: known[name] for name in names[: len(values)]},
        {name: known[name] for name in names[len(values) :]},
        outputs,
        lambda name: tf.TensorSpec.from_tensor(made.graph.get_tensor_by_name(name)),
        any(node.op in _STATEFUL for node in nodes.node),
    )
