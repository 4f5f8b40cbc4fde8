"""A program of OpenVINO: three graphs, and their parameters as constants."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import math
import os
import struct
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from kerasdiff.runtime import constant_files, platform_info, program_cache
from kerasdiff.runtime.layout import convert_into
from kerasdiff.runtime.oom import is_out_of_memory
from kerasdiff.runtime.safetensors_write import MappedTensors, Tensors
from kerasdiff.runtime.values import Values

# Importing openvino reports that to its makers; without this module it does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov  # noqa: E402
from openvino import opset13 as operations  # noqa: E402, F401

PARTS = ("between", "lasting", "rest")
# Networks of more bytes are laid out in each process: reading what was compiled is not faster.
_SMALL = 5 * 10**7
# Of the larger ones, a matrix of so many bytes that is the right side of products is an input, which may change.
_LEAST_INPUT = 2**16
# OpenVINO has its own copy of an input, too. In networks of more bytes matrices are inputs only as long as LoRAs change
# them: a step is faster without, and takes half the memory, but another LoRA would lay everything out anew.
_LARGE = 2 * 10**9
# Of constants, how many bytes are computed at once: OpenVINO has copies of them meanwhile.
_AT_ONCE = 2 * 10**8
_CORE = ov.Core()
# OpenVINO fills a table of NumPy's types when it is first used; two threads that did so would wait for each other for
# ever, one for the table and one for Python's lock. Here there is one thread.
ov.Type.f32.to_dtype()
_threads: int | None = None


def use_threads(count: int) -> None:
    """Programs that are prepared from now on run on so many threads."""
    global _threads
    _threads = count


def compiled(model: Any) -> Any:
    """A graph, ready to run."""
    return _CORE.compile_model(model, "CPU", _properties())


def _properties() -> dict[str, Any]:
    """How graphs run: in the types that they have, on as many threads as this process may use, wherever they are."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": _thread_count(),
        "ENABLE_HYPER_THREADING": True,
        "ENABLE_CPU_PINNING": False,
    }


def _thread_count() -> int:
    return _threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class OpenVINOProgram:
    """Three graphs, each run when what it depends on is new; for one thread at a time."""

    def __init__(self, payload: bytes) -> None:
        count = 2 * len(PARTS)
        sizes = struct.unpack_from(f"<{count}Q", payload)
        contents, start = [], struct.calcsize(f"<{count}Q")
        for size in sizes:
            contents.append(payload[start : start + size])
            start += size
        pairs = zip(contents[::2], contents[1::2], strict=True)
        self._graphs = {part: _Graph(*pair) for part, pair in zip(PARTS, pairs, strict=True) if pair[0]}
        self._values: Values | None = None
        self._ready: dict[str, _Prepared] = {}
        self._known: list[Any] = []
        self._running = threading.Lock()

    def __call__(self, values: Values, arguments: Sequence[Any]) -> Any:
        with self._running:
            self._prepare(values)
            arrays = {f"argument_{index}": np.ascontiguousarray(array) for index, array in enumerate(arguments)}
            tensors = {name: _tensor(array) for name, array in arrays.items()}
            lasting = self._ready.get("lasting")
            if lasting is not None:
                known = [arguments[int(name.rpartition("_")[2])] for name in lasting.names]
                if [*map(id, known)] != [*map(id, self._known)]:
                    self._known = []  # what fails half-way may have overwritten what was made before
                    self._known, self._made = known, lasting(tensors)
                tensors |= {f"lasting_{index}": each for index, each in enumerate(self._made)}
            results = [np.array(result.data) for result in self._ready["rest"](tensors)]
        return results if len(results) > 1 else results[0]

    def prepare(self, values: Values) -> None:
        """Makes ready to run with values, as a call does."""
        with self._running:
            self._prepare(values)

    def idle(self) -> None:
        """Gives back memory of what is computed on the way, which OpenVINO keeps otherwise, if nobody is running it.

        Pages of mapped files go, too: they are read again when it runs.
        """
        if self._running.acquire(blocking=False):
            try:
                for prepared in self._ready.values():
                    prepared.compiled.release_memory()
            finally:
                self._running.release()
            constant_files.release_pages()

    def _prepare(self, values: Values) -> None:
        if self._values is values:
            return
        self._values, self._known = None, []
        size = size_of(values)
        small, inputs = size < _SMALL, size >= _SMALL and (size < _LARGE or values.base is not None)

        @functools.cache
        def constants() -> dict[str, Any]:
            return _named(values) | {f"between_{index}": array for index, array in enumerate(self._between(values))}

        with constant_files.given_back():
            for part in ("lasting", "rest"):
                before = self._ready.pop(part, None)
                if before is not None and not small and before.has_inputs == inputs and before.takes(constants()):
                    self._ready[part] = before
                elif part in self._graphs:
                    before = None  # its copies of weights are dropped before others are made
                    self._ready[part] = self._graphs[part].prepared(constants, values.key if small else None, inputs)
        self._values = values

    def _between(self, values: Values) -> list[np.ndarray]:
        """What is computed of the values alone, once for all programs that need the same."""
        graph = self._graphs.get("between")
        if graph is None:
            return []
        digest = hashlib.sha256(graph.xml + graph.constants).hexdigest()
        if digest not in values.derived:
            if values.base is None:
                key = None if values.key is None else f"{values.key[:16]}-{digest[:16]}"
                values.derived[digest] = graph.results(_named(values), key)
            else:
                changed = {f"value_{index}" for index in values.changed}
                values.derived[digest] = graph.updated(self._between(values.base), _named(values), changed)
        return values.derived[digest]


@dataclasses.dataclass(frozen=True)
class _Graph:
    """One of the graphs, as it was traced."""

    xml: bytes
    constants: bytes

    def prepared(self, given: Callable[[], Mapping[str, Any]], key: str | None, inputs: bool) -> "_Prepared":
        """The graph with the parameters that are `given` by name; a `key` that says which they are is cached.

        They become constants, but for matrices if these are to be `inputs`.
        """
        if key is None:
            return self._with(given(), inputs)
        parts = key.encode(), repr(_properties()).encode(), self.xml, self.constants
        key = hashlib.sha256(b"\0".join(parts)).hexdigest()
        blobs = program_cache.open_cache("openvino", "CPU", (), "blobs")
        blob = blobs.read(key)
        if blob is not None:
            try:
                return _Prepared(_CORE.import_model(io.BytesIO(blob), "CPU", _properties()))
            except RuntimeError as error:  # of another version, or none at all
                if is_out_of_memory(error):
                    raise
                blobs.remove(key)
        prepared = self._with(given(), inputs)
        content = io.BytesIO()
        prepared.compiled.export_model(content)  # what it returns otherwise depends on the version
        blobs.write(key, content.getvalue())
        return prepared

    def _with(self, given: Mapping[str, Any], has_inputs: bool) -> "_Prepared":
        model, inputs, constants, used = self._model(), [], {}, []
        for parameter in model.get_parameters():
            name = parameter.get_friendly_name()
            if name not in given:
                continue
            if has_inputs and _is_input(parameter, given[name]):
                inputs.append(name)
                continue
            constants[name] = given[name]
            used.append(np.ascontiguousarray(given[name]))
            constant = ov.op.Constant(_tensor(used[-1]), shared_memory=True)
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
        prepared = _Prepared(compiled(model), constants, used, inputs, has_inputs)
        prepared.takes(given)
        return prepared

    def _model(self) -> Any:
        return _CORE.read_model(self.xml, self.constants)

    def results(self, given: Mapping[str, Any], key: str | None) -> list[np.ndarray]:
        """What the graph gives for parameters by name, from the cache if `key` says which they are."""
        model = self._model()
        nodes = {f"{index}": node for index, node in enumerate(model.get_results())}
        return self._computed(model, nodes, given, key, _thread_count())

    def updated(self, before: Sequence[np.ndarray], given: Mapping[str, Any], changed: set[str]) -> list[np.ndarray]:
        """What the graph gives, if it gave `before` when some parameters had other values."""
        model = self._model()
        nodes = {f"{index}": node for index, node in enumerate(model.get_results())}
        new = {
            name: node
            for name, node in nodes.items()
            if not changed.isdisjoint(each.get_friendly_name() for each in _depended_on(node).values())
        }
        # Values that change are products, which have threads of their own.
        arrays = dict(zip(new, self._computed(model, new, given, None, 1), strict=True))
        return [arrays.get(f"{index}", array) for index, array in enumerate(before)]

    def _computed(
        self, model: Any, nodes: Mapping[str, Any], given: Mapping[str, Any], key: str | None, threads: int
    ) -> list[np.ndarray]:
        """What some results of the graph are; those that are copies are made by so many threads."""
        kinds = {name: _kind(node.output(0)) for name, node in nodes.items()}
        moved = {name: move for name, node in nodes.items() if (move := _transposition(node)) is not None}
        others = {name: kind for name, kind in kinds.items() if name not in moved}

        def compute(arrays: Mapping[str, np.ndarray]) -> None:
            release = arrays.release if isinstance(arrays, MappedTensors) else str

            def move(name: str) -> None:
                parameter, order = moved[name]
                convert_into(given[parameter].transpose(order), arrays[name])
                release(name)

            with concurrent.futures.ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(move, moved):  # raises what one of them raised
                    pass
            for names in _chunks(others):
                prepared = _Prepared(compiled(only([nodes[name] for name in names], model.get_parameters())))
                inputs = {name: np.ascontiguousarray(given[name]) for name in prepared.names}
                outputs = {index: _tensor(arrays[name]) for index, name in enumerate(names)}
                prepared({name: _tensor(array) for name, array in inputs.items()}, outputs)
                for name in names:
                    release(name)

        found = None if key is None else constant_files.kept(key, kinds, compute)
        if found is None:
            arrays = {name: np.empty(shape, kind) for name, (shape, kind) in kinds.items()}
            compute(arrays)
            found = list(arrays.values())
        return found


class _Prepared:
    """A graph with its constants, whose memory `used` is; `inputs` are those inputs that stay from call to call.

    `has_inputs` says whether matrices were to be such.
    """

    def __init__(
        self,
        compiled: Any,
        constants: Mapping[str, Any] | None = None,
        used: Sequence[np.ndarray] = (),
        inputs: Collection[str] = (),
        has_inputs: bool = False,
    ) -> None:
        self.has_inputs = has_inputs
        names = [port.get_node().get_friendly_name() for port in compiled.inputs]
        self._places = {name: index for index, name in enumerate(names) if name not in inputs}
        self._inputs = {name: index for index, name in enumerate(names) if name in inputs}
        self.compiled, self._request, self._used = compiled, compiled.create_infer_request(), used
        self._constants = constants or {}
        self._taken: list[np.ndarray] = []
        self._count = len(compiled.outputs)

    @property
    def names(self) -> list[str]:
        """The inputs of a call."""
        return list(self._places)

    def takes(self, given: Mapping[str, Any]) -> bool:
        """Takes values of inputs that stay; False if a constant would have to be another one."""
        if any(given[name] is not value for name, value in self._constants.items()):
            return False
        self._taken = [np.ascontiguousarray(given[name]) for name in self._inputs]
        for index, array in zip(self._inputs.values(), self._taken, strict=True):
            self._request.set_input_tensor(index, _tensor(array))
        return True

    def __call__(self, tensors: Mapping[str, Any], results: Mapping[int, Any] | None = None) -> list[Any]:
        """What comes out, as OpenVINO's tensors, which the next call overwrites; `results` are to be taken for it."""
        for index, tensor in (results or {}).items():
            self._request.set_output_tensor(index, tensor)
        for name, index in self._places.items():
            self._request.set_input_tensor(index, tensors[name])
        self._request.infer()
        return [self._request.get_output_tensor(index) for index in range(self._count)]


def _is_input(parameter: Any, value: Any) -> bool:
    """Whether a value may as well be an input: the right side of products, which are as fast with it.

    Not where the processor multiplies tiles (AMX), which wants it in another order.
    """
    if value.ndim != 2 or value.nbytes < _LEAST_INPUT or "amx_bf16" in platform_info.processor().split():
        return False
    users = parameter.output(0).get_target_inputs()
    return all(port.get_node().get_type_name() == "MatMul" and port.get_index() == 1 for port in users)


def only(results: Sequence[Any], parameters: Sequence[Any]) -> Any:
    """A graph of some results, with those parameters that they depend on."""
    needed = _depended_on(*results)
    return ov.Model(list(results), [each for each in parameters if each.get_name() in needed])


def _depended_on(*results: Any) -> dict[str, Any]:
    """All nodes that some nodes depend on, by name."""
    seen: dict[str, Any] = {}
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node.get_name() not in seen:
            seen[node.get_name()] = node
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return seen


def _named(values: Values) -> dict[str, Any]:
    """Values as parameters of a graph."""
    return {f"value_{index}": value for index, value in enumerate(values)}


def size_of(values: Values) -> int:
    """Bytes of all values."""
    return sum(value.nbytes for value in values)


def dtype_of(name: str) -> np.dtype:
    """A type by its name."""
    return np.dtype(getattr(ml_dtypes, name, name))


def _transposition(result: Any) -> tuple[str, tuple[int, ...]] | None:
    """The parameter that a result is the transposition of, and the order of its axes; None if it is something else."""
    node = result.input_value(0).get_node()
    if node.get_type_name() != "Transpose":
        return None
    parameter, order = (port.get_source_output().get_node() for port in node.inputs())
    if parameter.get_type_name() != "Parameter" or order.get_type_name() != "Constant":
        return None
    return parameter.get_friendly_name(), tuple(order.data.tolist())


def _chunks(kinds: Tensors) -> Iterator[list[str]]:
    """Names of arrays that are computed together."""
    names, size = [], 0
    for name, (shape, kind) in kinds.items():
        names.append(name)
        size += math.prod(shape) * kind.itemsize
        if size > _AT_ONCE:
            yield names
            names, size = [], 0
    if names:
        yield names


def _kind(port: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of what comes out."""
    bfloat16 = port.get_element_type() == ov.Type.bf16
    return tuple(port.get_shape()), np.dtype(ml_dtypes.bfloat16) if bfloat16 else port.get_element_type().to_dtype()


def _tensor(array: np.ndarray) -> Any:
    """A tensor in the memory of an array that lies in order; that must stay."""
    if array.dtype == ml_dtypes.bfloat16:
        return ov.Tensor(array.view("uint16"), ov.Shape(array.shape), ov.Type.bf16)
    return ov.Tensor(array, ov.Shape(array.shape), ov.Type(array.dtype))
