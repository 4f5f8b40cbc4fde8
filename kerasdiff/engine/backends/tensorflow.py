"""TensorFlow: functions are graphs, with parameters as arguments."""

from __future__ import annotations

import contextvars
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from kerasdiff.engine.backends import generic
from kerasdiff.weights.tensors import ALIGNMENT, lay_out

_CALL = "call"
# Whether what is being traced will run on the CPU without XLA.
_ONEDNN: contextvars.ContextVar[bool] = contextvars.ContextVar("onednn", default=False)
_EPSILON = 1e-4


def devices() -> list[str]:
    """Names of the GPUs that TensorFlow sees."""
    found = (tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU"))
    return [str(details.get("device_name", "GPU")) for details in found]


def tensor(values: Any) -> Any:
    """An array as a tensor."""
    return values if tf.is_tensor(values) else tf.constant(values)


def to_numpy(values: Any) -> np.ndarray:
    """A tensor as an array."""
    return values.numpy()


def value_of(variable: Any) -> Any:
    """What a Keras variable holds."""
    return variable.value.read_value()


def adopt(values: Any, dtype: str, lasting: bool = False) -> Any:
    """A tensor of `values` in `dtype` that is written once and never copied again.

    TensorFlow's own conversion copies twice, into memory that is slow to touch for the first time;
    for 3.4 GB of weights that is most of the time that building takes.
    """
    if tf.is_tensor(values):
        return tf.cast(values, dtype)
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    fits = values.dtype == wanted and values.flags.c_contiguous and values.ctypes.data % ALIGNMENT == 0
    if lasting and fits and values.size:
        buffer = values
    else:
        count = values.size * wanted.itemsize
        raw = np.empty(count + ALIGNMENT, "uint8")
        start = -raw.ctypes.data % ALIGNMENT
        buffer = raw[start : start + count].view(wanted).reshape(values.shape)
        lay_out(values, buffer)
    if dtype == "bfloat16":  # unknown to NumPy's side of the exchange
        return tf.bitcast(tf.experimental.dlpack.from_dlpack(buffer.view("uint16").__dlpack__()), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(buffer.__dlpack__())


def channel_moments(x: Any) -> tuple[Any, Any]:
    """Means and variances of each channel of (B, h, w, C), each float32 (B, C).

    In a graph for oneDNN by its batch normalisation of each picture, which reads every value once and makes no float32
    copy: half the time of sums. Compiled by XLA, sums are faster.
    """
    if not _ONEDNN.get() or x.shape[0] is None:
        return generic.channel_moments(x)
    pixels = x.shape[1] * x.shape[2]
    none, ones, zeros = tf.zeros(0), tf.ones(x.shape[-1]), tf.zeros(x.shape[-1])
    rows = [
        tf.raw_ops.FusedBatchNormV3(x=row, scale=ones, offset=zeros, mean=none, variance=none, is_training=True)
        for row in tf.split(x, x.shape[0])
    ]
    # What it gives is the unbiased estimate.
    variances = tf.stack([row.batch_variance for row in rows]) * ((pixels - 1) / pixels)
    return tf.stack([row.batch_mean for row in rows]), variances


def scale_and_shift(x: Any, scale: Any, shift: Any) -> Any:
    """x (B, h, w, C) * scale (B, C) + shift (B, C), computed in float32, in the type of x."""
    if not _ONEDNN.get() or x.shape[0] is None:
        return generic.scale_and_shift(x, scale, shift)
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


def trace(function: Callable[..., Any], values: Sequence[Any], arguments: Sequence[Any], jit_compile: bool) -> bytes:
    """A graph of one call: the traced function is in its library, so that reading it makes two kinds of nodes only."""
    specs = [tf.TensorSpec(value.shape, value.dtype) for value in (*values, *arguments)]
    flat = tf.function(
        lambda *tensors: tf.nest.flatten(function(list(tensors[: len(values)]), *tensors[len(values) :])),
        autograph=False,
    )
    token = _ONEDNN.set(not jit_compile and not devices())
    try:
        traced = flat.get_concrete_function(*specs)
    finally:
        _ONEDNN.reset(token)
    inside = traced.graph.as_graph_def()
    graph = tf.compat.v1.GraphDef(versions=inside.versions, library=inside.library)
    stage = graph.library.function.add()
    stage.CopyFrom(traced.function_def)
    # TensorFlow numbers functions as they come; XLA's cache goes by name, which must be the same in every process.
    stage.signature.name = "stage"
    digest = hashlib.sha256(stage.SerializeToString(deterministic=True)).hexdigest()
    stage.signature.name = f"stage_{digest[:16]}_{'xla' if jit_compile else 'graph'}"
    call = tf.compat.v1.NodeDef(name=_CALL, op="PartitionedCall")
    if jit_compile:
        stage.attr["_XlaMustCompile"].b = call.attr["_XlaMustCompile"].b = True
    call.attr["f"].func.name = stage.signature.name
    call.attr["Tout"].list.type.extend(output.type for output in stage.signature.output_arg)
    for index, spec in enumerate(specs):
        place = graph.node.add(name=f"argument_{index}", op="Placeholder")
        place.attr["dtype"].type = spec.dtype.as_datatype_enum
        place.attr["shape"].shape.CopyFrom(spec.shape.as_proto())
        call.attr["Tin"].list.type.append(spec.dtype.as_datatype_enum)
        call.input.append(place.name)
    graph.node.add().CopyFrom(call)
    return graph.SerializeToString()


def load(payload: bytes) -> Callable[[Sequence[Any], Sequence[Any]], Any]:
    """A traced function, ready to run."""
    graph = tf.compat.v1.GraphDef.FromString(payload)
    *places, call = graph.node
    specs = [tf.TensorSpec(place.attr["shape"].shape, tf.DType(place.attr["dtype"].type)) for place in places]
    outputs = [f"{_CALL}:{index}" for index in range(len(call.attr["Tout"].list.type))]

    def read(*tensors: Any) -> Any:
        names = (place.name for place in places)
        return tf.graph_util.import_graph_def(graph, dict(zip(names, tensors, strict=True)), outputs)

    function = tf.compat.v1.wrap_function(read, specs)

    def run(values: Sequence[Any], arguments: Sequence[Any]) -> Any:
        results = function(*values, *arguments)
        return results if len(results) > 1 else results[0]

    return run
