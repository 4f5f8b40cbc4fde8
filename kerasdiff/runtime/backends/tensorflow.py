"""TensorFlow: functions are graphs, with parameters as arguments."""

import contextlib
import functools
import hashlib
import itertools
import struct
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf
from tensorflow.python.client import device_lib
from tensorflow.python.eager import context

from kerasdiff.runtime import tf_setup
from kerasdiff.runtime.backends import graph_partition
from kerasdiff.runtime.backends.tf_tracing import (  # noqa: F401
    after,
    group_norm,
    interleave,
    layer_norm,
    traced,
    weighted_sums,
)
from kerasdiff.runtime.layout import ALIGNMENT, converted
from kerasdiff.runtime.oom import is_out_of_memory
from kerasdiff.runtime.values import Values

_CALL = "call"
_REWRITES = {
    "common_subgraph_elimination",  # also puts inputs in the order that remapping looks for
    "constant_folding",
    "arithmetic_optimization",
    "dependency_optimization",
    "remapping",  # fuses for oneDNN
}


# Whether parameters are read when they are needed, not when a network is loaded.
READS_LATE = False


def devices() -> list[str]:
    """Names of the GPUs that TensorFlow sees."""
    found = (tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU"))
    return [str(details.get("device_name", "GPU")) for details in found]


def memory() -> tuple[int, int] | None:
    """Bytes that TensorFlow may take of the first GPU, and bytes in use."""
    if not tf.config.list_physical_devices("GPU"):
        return None
    return _gpu_bytes(), tf.config.experimental.get_memory_info("GPU:0")["current"]


def peak_memory() -> int | None:
    """The most bytes that TensorFlow held on the first GPU so far."""
    if not tf.config.list_physical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


@functools.cache
def _gpu_bytes() -> int:
    return next(device.memory_limit for device in device_lib.list_local_devices() if device.device_type == "GPU")


def tensor(values: Any) -> Any:
    """An array as a tensor."""
    return values if tf.is_tensor(values) else tf.constant(values)


def value_of(variable: Any) -> Any:
    """What a Keras variable holds."""
    return variable.value.read_value()


def prefetches(values: Values) -> bool:
    """Whether a program may be prepared before it is needed: what compiles it is its first call."""
    return False


def latest(values: Values, before: Values | None) -> Values:
    """Of values that were read again, those to use."""
    return values


def adopt(values: Any, dtype: str, lasting: bool = False) -> Any:
    """A tensor of `values` in `dtype` that is written once and never copied again.

    TensorFlow's own conversion copies twice, into memory that is slow to touch for the first time;
    for 3.4 GB of weights that is most of the time that building takes.
    """
    if tf.is_tensor(values):
        return tf.cast(values, dtype)
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    fits = values.dtype == wanted and values.flags.c_contiguous and values.ctypes.data % ALIGNMENT == 0
    buffer = values if lasting and fits and values.size else converted(values, dtype)
    if dtype == "bfloat16":  # unknown to NumPy's side of the exchange
        return tf.bitcast(tf.experimental.dlpack.from_dlpack(buffer.view("uint16").__dlpack__()), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(buffer.__dlpack__())


def trace(
    function: Callable[..., Any],
    values: Sequence[Any],
    arguments: Sequence[Any],
    jit_compile: bool,
    lasting: Collection[int] = (),
) -> bytes:
    """Three graphs: what is computed of the values alone, of these and lasting arguments, and the rest.

    Each is one call of a function in its library, so that reading it makes two kinds of nodes only.
    """
    graph = traced(function, values, arguments, "xla" if jit_compile or devices() else "onednn")
    of_values, of_arguments, outputs = list(graph.values), list(graph.arguments), graph.outputs
    places = {
        name: (f"{kind}_{index}", group[name])
        for kind, group in (("value", graph.values), ("argument", graph.arguments))
        for index, name in enumerate(group)
    }
    first = second = graph_partition.Cut(None, [], graph.nodes)
    if not graph.stateful:
        first = graph_partition.cut(graph.nodes, of_values, of_arguments, outputs)
        kept = [of_arguments[index] for index in sorted(lasting)]
        known = [*of_values, *(f"between_{index}" for index in range(len(first.between))), *kept]
        others = [name for name in of_arguments if name not in kept]
        second = graph_partition.Cut(None, [], first.after)
        if kept:
            second = graph_partition.cut(first.after, known, others, outputs, "lasting")
    payloads = []
    for prefix, part in (("between", first), ("lasting", second)):
        payloads.append(b"" if part.before is None else _call(part.before, places, part.between, False))
        for index, name in enumerate(part.between):
            places[f"{prefix}_{index}"] = (f"{prefix}_{index}", graph.shapes(name))
    payloads.append(_call(second.after, places, outputs, jit_compile))
    return struct.pack("<QQ", *map(len, payloads[:2])) + b"".join(payloads)


def _call(graph: Any, places: Mapping[str, tuple[str, Any]], outputs: Sequence[str], jit_compile: bool) -> bytes:
    """A graph that calls a function which is the given one, from placeholders with the names and specs of `places`."""
    present = {node.name for node in graph.node}
    used = {name: place for name, place in places.items() if name in present}
    inner = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    inner.node.extend(node for node in graph.node if node.name not in used)

    def body(*tensors: Any) -> Any:
        return tf.graph_util.import_graph_def(inner, dict(zip(used, tensors, strict=True)), list(outputs), name="")

    inside = tf.compat.v1.wrap_function(body, [spec for _, spec in used.values()])
    calls = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    stage = calls.library.function.add()
    stage.CopyFrom(inside.function_def)
    # TensorFlow numbers functions as they come; XLA's cache goes by name, which must be the same in every process.
    stage.signature.name = "stage"
    digest = hashlib.sha256(stage.SerializeToString(deterministic=True)).hexdigest()
    stage.signature.name = f"stage_{digest[:16]}_{'xla' if jit_compile else 'graph'}"
    call = tf.compat.v1.NodeDef(name=_CALL, op="PartitionedCall")
    if jit_compile:
        stage.attr["_XlaMustCompile"].b = call.attr["_XlaMustCompile"].b = True
    call.attr["f"].func.name = stage.signature.name
    call.attr["Tout"].list.type.extend(output.type for output in stage.signature.output_arg)
    for name, spec in used.values():
        place = calls.node.add(name=name, op="Placeholder")
        place.attr["dtype"].type = spec.dtype.as_datatype_enum
        place.attr["shape"].shape.CopyFrom(spec.shape.as_proto())
        call.attr["Tin"].list.type.append(spec.dtype.as_datatype_enum)
        call.input.append(name)
    calls.node.add().CopyFrom(call)
    return calls.SerializeToString()


@contextlib.contextmanager
def _optimised_once() -> Iterator[None]:
    """In this block a graph that runs for the first time is rewritten once, in the ways that help on a CPU.

    TensorFlow's own choice finds nothing more and takes two seconds longer for a U-Net. It offers a setting for the
    whole process only; this is the same for one thread, and where a version does not have it, nothing is changed.
    """
    try:
        here = context.context()
        before = here.function_call_options
        here.function_call_options = _limited(before.executor_type, before.config_proto_serialized)
    except (AttributeError, TypeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        here.function_call_options = before


@functools.cache
def _limited(executor_type: str | None, serialized: bytes) -> Any:
    """Options of calls without what lays out for GPUs or saves memory, and without a second pass."""
    config = tf.compat.v1.ConfigProto.FromString(serialized)
    rewrites = config.graph_options.rewrite_options
    for field in rewrites.DESCRIPTOR.fields:
        if field.enum_type is not None and field.enum_type.name == "Toggle":
            setattr(rewrites, field.name, rewrites.ON if field.name in _REWRITES else rewrites.OFF)
    rewrites.memory_optimization = rewrites.NO_MEM_OPT
    rewrites.meta_optimizer_iterations = rewrites.ONE
    rewrites.disable_tfg_optimizer = True
    return context.FunctionCallOptions(executor_type, config)


class _Part:
    """One of the graphs, ready to run on tensors by name; `suffix` makes another function of it."""

    def __init__(self, payload: bytes, suffix: str = "") -> None:
        graph = tf.compat.v1.GraphDef.FromString(payload)
        *places, call = graph.node
        graph.library.function[-1].signature.name += suffix
        call.attr["f"].func.name += suffix
        self._names = [place.name for place in places]
        specs = [tf.TensorSpec(place.attr["shape"].shape, tf.DType(place.attr["dtype"].type)) for place in places]
        outputs = [f"{_CALL}:{index}" for index in range(len(call.attr["Tout"].list.type))]

        def read(*tensors: Any) -> Any:
            return tf.graph_util.import_graph_def(graph, dict(zip(self._names, tensors, strict=True)), outputs)

        self._run = tf.compat.v1.wrap_function(read, specs)
        self.limited = not (call.attr["_XlaMustCompile"].b or devices())

    def __call__(self, **groups: Sequence[Any]) -> list[Any]:
        tensors = self.chosen(**groups)
        with _optimised_once() if self.limited else contextlib.nullcontext():
            return self._run(*tensors)

    def chosen(self, **groups: Sequence[Any]) -> list[Any]:
        """What it takes of some groups."""
        places = (name.rpartition("_") for name in self._names)
        return [groups[kind][int(index)] for kind, _, index in places if kind in groups]


def load(payload: bytes) -> Callable[[Values, Sequence[Any]], Any]:
    """A traced function, ready to run."""
    first, second = struct.unpack_from("<QQ", payload)
    graphs = payload[struct.calcsize("<QQ") :]
    return _Program((graphs[:first], graphs[first : first + second], graphs[first + second :]))


@functools.cache
def _warn_of_new_kernels() -> None:
    warnings.warn(
        "weights change, as with another LoRA, after inference_only() promised that they do not: they are prepared "
        "anew each time, and memory of the earlier ones is not given back; leave inference_only() out, or use "
        "backend='openvino'",
        stacklevel=2,
    )


class _Program:
    """Three graphs, each run when what it depends on is new."""

    def __init__(self, payloads: tuple[bytes, bytes, bytes]) -> None:
        self._payloads, self._digest = payloads, hashlib.sha256(payloads[0]).hexdigest()
        self._values: Values | None = None
        self._works = False
        self._suffixes = (f"_{number}" for number in itertools.count(1))
        self._read("")
        # oneDNN's batch normalisation keeps pointers of a call in its kernel, so that two calls at once would mix them.
        self._running = threading.Lock()

    def __call__(self, values: Values, arguments: Sequence[Any]) -> Any:
        with self._running:
            return self._call(values, arguments)

    def _read(self, suffix: str) -> None:
        """Makes functions of the graphs, with new kernels."""
        *before, rest = self._payloads
        self._of_values, self._of_lasting = (_Part(payload, suffix) if payload else None for payload in before)
        self._run = _Part(rest, suffix)
        self._known: tuple[Any, ...] = ()
        self._lasting: list[Any] = []

    def _call(self, values: Values, arguments: Sequence[Any]) -> Any:
        if values is not self._values:
            # Where weights are frozen, kernels have made copies of those that they saw first.
            if self._values is not None and tf_setup.is_inference_only() and self._run.limited:
                _warn_of_new_kernels()
                self._read(next(self._suffixes))
            self._values = values
        if self._of_values is not None and self._digest not in values.derived:
            values.derived[self._digest] = self._of_values(value=values)
        groups = {"value": values, "between": values.derived.get(self._digest, []), "argument": arguments}
        if self._of_lasting is not None:
            known = (values, *self._of_lasting.chosen(argument=arguments))
            if [*map(id, known)] != [*map(id, self._known)]:
                self._known, self._lasting = known, self._of_lasting(**groups)
            groups["lasting"] = self._lasting
        try:
            results = self._run(**groups)
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.InternalError) as error:
            # A damaged file among those that XLA kept is an error, not a reason to compile, and remembered by name.
            if self._works or is_out_of_memory(error) or not tf_setup.forget_compiled():
                raise
            self._run = _Part(self._payloads[2], next(self._suffixes))
            results = self._run(**groups)
        self._works = True
        return results if len(results) > 1 else results[0]
