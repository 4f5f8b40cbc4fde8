"""OpenVINO, on a CPU: TensorFlow traces a function, and what came of it runs without TensorFlow and Keras.

A program is three graphs, as in the module for TensorFlow. Parameters are constants of them, so that each is laid out
once, when the program first runs with it. That takes longer than reading what came of it: for a small model that is
cached.
"""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from kerasdiff.runtime import constant_files, program_cache, tf_setup
from kerasdiff.runtime.layout import ALIGNMENT, converted
from kerasdiff.runtime.oom import is_out_of_memory
from kerasdiff.runtime.values import Values

# Importing openvino reports that to its makers; without this module it does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov  # noqa: E402
from openvino import opset13 as operations  # noqa: E402

_PARTS = ("between", "lasting", "rest")
# Constants of more bytes are laid out each time: reading them from a cache would not be faster.
_SMALL = 5 * 10**7
# A decoder and a text encoder of full size have less, a U-Net has more.
_PREFETCHED = 3 * 10**8
_threads: int | None = None


def devices() -> list[str]:
    """None: accelerators are not used."""
    return []


def memory() -> None:
    """None: accelerators are not used."""


def use_threads(count: int) -> None:
    """Programs that are prepared from now on run on so many threads."""
    global _threads
    _threads = count


def small_product() -> float:
    """The sum of a product of ones, (2, 3) and (3, 4)."""
    product = operations.matmul(*(np.ones(shape, "float32") for shape in ((2, 3), (3, 4))), False, False)
    model = ov.Model([operations.reduce_sum(product, np.array([0, 1]))], [])
    return float(_CORE.compile_model(model, "CPU", _properties())()[0])


def tensor(values: Any) -> np.ndarray:
    """An array."""
    return np.asarray(values)


def adopt(values: Any, dtype: str, lasting: bool = False) -> np.ndarray:
    """An array of `values` in `dtype`."""
    array = np.asarray(values)
    fits = array.dtype == _dtype(dtype) and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0
    return array if fits and (lasting or not isinstance(values, np.ndarray)) else converted(array, dtype)


def prefetches(values: Values) -> bool:
    """Whether a program may be prepared before it is needed; large ones would take their memory too early."""
    return _size(values) < _PREFETCHED


def _size(values: Values) -> int:
    return sum(array.nbytes for array in values)


def latest(values: Values, before: Values | None) -> Values:
    """Of values that were read again, those to use: the ones before if all are the same, as programs hold them."""
    if before is not None and all(map(_same, values, before)):
        return before
    return values


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    if first.__array_interface__["data"] == second.__array_interface__["data"]:
        return True
    bits = f"uint{8 * first.itemsize}"
    return first.shape == second.shape and np.array_equal(first.view(bits), second.view(bits))


def trace(
    function: Callable[..., Any],
    values: Sequence[Any],
    arguments: Sequence[Any],
    jit_compile: bool,
    lasting: Collection[int] = (),
) -> bytes:
    """Three graphs: what is computed of the values alone, of these and lasting arguments, and the rest."""
    if tf_setup.is_inference_only():  # the process is ours
        tf_setup.import_tensorflow()
    from kerasdiff.runtime.backends import openvino_trace

    models = openvino_trace.traced(function, values, arguments, lasting)
    files = [_serialized(models[part]) if part in models else (b"", b"") for part in _PARTS]
    flat = [content for pair in files for content in pair]
    return struct.pack(f"<{len(flat)}Q", *map(len, flat)) + b"".join(flat)


def _serialized(model: Any) -> tuple[bytes, bytes]:
    """A graph and its constants."""
    with tempfile.TemporaryDirectory() as folder:
        graph, constants = (pathlib.Path(folder) / name for name in ("graph.xml", "graph.bin"))
        ov.serialize(model, graph, constants)
        return graph.read_bytes(), constants.read_bytes()


def load(payload: bytes) -> Callable[[Values, Sequence[Any]], Any]:
    """A traced function, ready to run."""
    return _Program(payload)


@dataclasses.dataclass(frozen=True)
class _Graph:
    """One of the graphs, as it was traced."""

    xml: bytes
    constants: bytes

    def prepared(self, given: Callable[[], Mapping[str, np.ndarray]], key: str | None) -> "_Prepared":
        """The graph with the parameters that are `given` by name as constants; a `key` that says which is cached."""
        properties = _properties()
        if key is None:
            return self._compiled(given(), properties)
        parts = key.encode(), repr(properties).encode(), self.xml, self.constants
        key = hashlib.sha256(b"\0".join(parts)).hexdigest()
        blobs = program_cache.open_cache("openvino", "CPU", (), "blobs")
        blob = blobs.read(key)
        if blob is not None:
            try:
                return _Prepared(_CORE.import_model(io.BytesIO(blob), "CPU", properties), {})
            except RuntimeError as error:  # of another version, or none at all
                if is_out_of_memory(error):
                    raise
                blobs.remove(key)
        prepared = self._compiled(given(), properties)
        blobs.write(key, prepared.compiled.export_model().getvalue())
        return prepared

    def _compiled(self, given: Mapping[str, np.ndarray], properties: dict[str, Any]) -> "_Prepared":
        return _Prepared(_CORE.compile_model(self._model(given), "CPU", properties), given)

    def results(self, given: Mapping[str, np.ndarray], key: str | None) -> list[np.ndarray]:
        """What the graph gives for parameters by name, from the cache if `key` says which they are."""
        model = self._model({})
        kinds = {f"{index}": (tuple(port.shape), _kind(port.element_type)) for index, port in enumerate(model.outputs)}

        def compute(arrays: Mapping[str, np.ndarray]) -> None:
            prepared = _Prepared(_CORE.compile_model(model, "CPU", _properties()), {})
            tensors = {name: _tensor(array) for name, array in given.items()}
            prepared(tensors, {int(name): _tensor(array) for name, array in arrays.items()})

        found = None if key is None else constant_files.kept(key, kinds, compute)
        if found is None:
            found = [np.empty(shape, kind) for shape, kind in kinds.values()]
            compute({f"{index}": array for index, array in enumerate(found)})
        return found

    def _model(self, given: Mapping[str, np.ndarray]) -> Any:
        model = _CORE.read_model(self.xml, self.constants)
        for parameter in model.get_parameters():
            name = parameter.get_friendly_name()
            if name in given:
                constant = ov.op.Constant(_tensor(given[name]), shared_memory=True)
                parameter.output(0).replace(constant.output(0))
                model.remove_parameter(parameter)
        return model


class _Prepared:
    """A graph with its constants, which runs for one thread at a time."""

    def __init__(self, compiled: Any, constants: Mapping[str, np.ndarray]) -> None:
        self.names = [node.get_friendly_name() for node in (port.get_node() for port in compiled.inputs)]
        self.compiled, self._request, self._constants = compiled, compiled.create_infer_request(), constants
        self._count = len(compiled.outputs)

    def __call__(self, tensors: Mapping[str, Any], results: Mapping[int, Any] | None = None) -> list[Any]:
        """What comes out, as OpenVINO's tensors, which the next call overwrites; `results` are to be taken for it."""
        for index, tensor in (results or {}).items():
            self._request.set_output_tensor(index, tensor)
        for index, name in enumerate(self.names):
            self._request.set_input_tensor(index, tensors[name])
        self._request.infer()
        return [self._request.get_output_tensor(index) for index in range(self._count)]


class _Program:
    """Three graphs, each run when what it depends on is new."""

    def __init__(self, payload: bytes) -> None:
        count = 2 * len(_PARTS)
        sizes = struct.unpack_from(f"<{count}Q", payload)
        contents, start = [], struct.calcsize(f"<{count}Q")
        for size in sizes:
            contents.append(payload[start : start + size])
            start += size
        pairs = zip(contents[::2], contents[1::2], strict=True)
        self._graphs = {part: _Graph(*pair) for part, pair in zip(_PARTS, pairs, strict=True) if pair[0]}
        self._values: Values | None = None
        self._lasting: _Prepared | None = None
        self._known: list[Any] = []
        self._running = threading.Lock()

    def __call__(self, values: Values, arguments: Sequence[Any]) -> Any:
        with self._running:
            self._prepare(values)
            tensors = {f"argument_{index}": _tensor(array) for index, array in enumerate(arguments)}
            if self._lasting is not None:
                known = [arguments[int(name.rpartition("_")[2])] for name in self._lasting.names]
                if [*map(id, known)] != [*map(id, self._known)]:
                    self._known = []  # what fails half-way may have overwritten what was made before
                    self._known, self._made = known, self._lasting(tensors)
                tensors |= {f"lasting_{index}": each for index, each in enumerate(self._made)}
            results = [np.array(result.data) for result in self._rest(tensors)]
        return results if len(results) > 1 else results[0]

    def prepare(self, values: Values) -> None:
        """Makes ready to run with values, as a call does."""
        with self._running:
            self._prepare(values)

    def _prepare(self, values: Values) -> None:
        if self._values is values:
            return
        self._values, self._known = None, []

        @functools.cache
        def constants() -> dict[str, np.ndarray]:
            given = {f"value_{index}": array for index, array in enumerate(values)}
            return given | {f"between_{index}": array for index, array in enumerate(self._between(values, given))}

        key = values.key if _size(values) < _SMALL else None
        of_lasting = self._graphs.get("lasting")
        with constant_files.given_back():
            self._lasting = None if of_lasting is None else of_lasting.prepared(constants, key)
            self._rest = self._graphs["rest"].prepared(constants, key)
        self._values = values

    def _between(self, values: Values, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What is computed of the values alone, once for all programs that need the same."""
        graph = self._graphs.get("between")
        if graph is None:
            return []
        digest = hashlib.sha256(graph.xml + graph.constants).hexdigest()
        if digest not in values.derived:
            key = None if values.key is None else f"{values.key[:16]}-{digest[:16]}"
            values.derived[digest] = graph.results(given, key)
        return values.derived[digest]


def _kind(element_type: Any) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if element_type == ov.Type.bf16 else element_type.to_dtype()


def _tensor(array: np.ndarray) -> Any:
    """A tensor that shares an array's memory, if that lies in order."""
    array = np.ascontiguousarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return ov.Tensor(array.view("uint16"), ov.Shape(array.shape), ov.Type.bf16)
    return ov.Tensor(array, ov.Shape(array.shape), ov.Type(array.dtype))


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def _properties() -> dict[str, Any]:
    """How graphs run: in the types that they have, on as many threads as this process may use, wherever they are."""
    count = _threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": count,
        "ENABLE_HYPER_THREADING": True,
        "ENABLE_CPU_PINNING": False,
    }


_CORE = ov.Core()
