"""A stage's function, compiled once for each set of shapes."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

import numpy as np

from kerasdiff.runtime import backend, tf_setup
from kerasdiff.runtime.cache_dir import cache_key
from kerasdiff.runtime.oom import is_out_of_memory
from kerasdiff.runtime.program_cache import ProgramCache
from kerasdiff.runtime.safetensors_map import pages_given_back
from kerasdiff.runtime.values import Values


class Traceable(Protocol):
    """What a stage needs of a network."""

    identity: str | None  # what its programs are cached under; None if they are not cached
    backend: Any  # the module that runs them, of `kerasdiff.runtime.backend.of`

    @property
    def precision(self) -> str:
        """What it computes in, as a Keras policy."""

    @property
    def values(self) -> Values:
        """Tensors, in the order of the layer's weights."""

    @property
    def layer_to_trace(self) -> Any:
        """What is called, with a list `weights` of Keras variables if it has any."""

    def in_float32(self) -> Traceable:
        """The same network, computing in float32."""


class LayerNetwork:
    """A layer or a plain function as it is: its weights are read anew at each call, and its programs are not cached."""

    identity: str | None = None
    precision = "float32"

    def __init__(self, layer: Any) -> None:
        self.layer_to_trace, self.backend = layer, backend.of(backend.of_keras())

    def in_float32(self) -> LayerNetwork:
        """Itself."""
        return self

    @property
    def values(self) -> Values:
        """The values of its variables now."""
        return values_of(self.layer_to_trace, self.backend)


def values_of(layer: Any, runs: Any) -> Values:
    """What a layer's variables hold, as the backend `runs` takes it."""
    variables = getattr(layer, "weights", [])
    return Values(runs.adopt(backend.value_of(variable), variable.dtype, True) for variable in variables)


class Compiled:
    """A function of a network's layer and of arrays, run with the values that the network has at that moment.

    `function(layer, *tensors)` gives a tensor, or a tuple of them. What it was traced to is cached in `programs`, and
    read from there in the next process; then the layer is not made. `lasting` are the indices of tensors that stay the
    same from call to call.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        network: Traceable,
        jit_compile: bool,
        programs: ProgramCache | None = None,
        lasting: Collection[int] = (),
    ) -> None:
        self.name, self._function, self.network = name, function, network
        self._jit_compile, self._lasting = jit_compile, lasting
        self._programs = ProgramCache(None) if programs is None or network.identity is None else programs
        self._made: dict[tuple[Any, ...], Any] = {}
        self._making = threading.Lock()
        self.traces = 0
        self.times = {"trace": 0.0, "load": 0.0, "first": 0.0}

    @property
    def programs(self) -> int:
        """For how many sets of shapes it can run at once, traced here or read."""
        return len(self._made)

    def state(self, shapes: tuple[Any, ...]) -> str:
        """For arguments of these shapes, each (*shape, type): "ready", "kept" by an earlier process, or "new"."""
        if shapes in self._made:
            return "ready"
        return "kept" if self._programs.has(self._key(shapes)) else "new"

    def prefetch(self, shapes: tuple[Any, ...]) -> None:
        """Begins to prepare, in a thread, what an earlier process traced for shapes, where the backend can do that."""
        values = self.network.values
        if self.network.backend.prefetches(values) and self.state(shapes) == "kept":
            # Not a daemon: a process that ends while a library is at work would be aborted.
            threading.Thread(target=self._prefetch, args=(values, shapes)).start()

    def _prefetch(self, values: Values, shapes: tuple[Any, ...]) -> None:
        with self._making, contextlib.suppress(Exception):  # whoever needs it does it again, and is told
            payload = self._programs.read(self._key(shapes)) if shapes not in self._made else None
            if payload is not None:
                program = self._load(payload)
                program.prepare(values)
                self._made[shapes] = program

    def release(self) -> None:
        """Unloads what is ready; it is read or traced again when it is needed."""
        self._made.clear()

    def idle(self) -> None:
        """Gives back what programs hold between runs besides weights, where the backend can do that."""
        for program in [*self._made.values()]:
            getattr(program, "idle", str)()

    def __call__(self, *arguments: Any) -> Any:
        tensors = [self.network.backend.tensor(argument) for argument in arguments]
        shapes = tuple((*tensor.shape, tensor.dtype.name) for tensor in tensors)
        values = self.network.values
        program = self._made.get(shapes)
        if program is not None:
            return program(values, tensors)
        with self._making:  # of several threads the first one traces it
            program = self._made.get(shapes)
            if program is None:
                program = self._made[shapes] = self._program(values, tensors, shapes)
        started = time.perf_counter()
        # Where weights are frozen, oneDNN now makes its own copy of each, and does not look at ours again.
        with pages_given_back() if tf_setup.is_inference_only() else contextlib.nullcontext():
            results = program(values, tensors)
        self.times["first"] += time.perf_counter() - started
        return results

    def _program(self, values: Values, tensors: list[Any], shapes: tuple[Any, ...]) -> Any:
        """What these shapes were traced to, now or by an earlier process."""
        kept = self._key(shapes)
        payload = self._programs.read(kept)
        if payload is not None:
            try:
                return self._load(payload)
            except Exception as error:  # whatever a library says of bytes that it does not understand
                if is_out_of_memory(error):
                    raise
                self._programs.remove(kept)
        return self._load(self._trace(values, tensors, kept))

    def keep(self, shapes: tuple[Any, ...]) -> None:
        """Traces for shapes, and caches, what is not cached; nothing is prepared to run."""
        if self.state(shapes) == "new":
            tensors = [self.network.backend.tensor(np.empty(shape, kind)) for *shape, kind in shapes]
            self._trace(self.network.values, tensors, self._key(shapes))

    def _trace(self, values: Values, tensors: list[Any], key: str) -> bytes:
        started = time.perf_counter()
        traced = functools.partial(self._traced, self.network.layer_to_trace)
        payload: bytes = self.network.backend.trace(traced, values, tensors, self._jit_compile, self._lasting)
        self.traces += 1
        self.times["trace"] += time.perf_counter() - started
        self._programs.write(key, payload)
        return payload

    def _key(self, shapes: tuple[Any, ...]) -> str:
        return cache_key(self.name, self.network.identity, self._jit_compile, shapes)

    def _load(self, payload: bytes) -> Any:
        started = time.perf_counter()
        program = self.network.backend.load(payload)
        self.times["load"] += time.perf_counter() - started
        return program

    def _traced(self, layer: Any, values: list[Any], *arguments: Any) -> Any:
        import keras

        variables = getattr(layer, "weights", [])
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return self._function(layer, *arguments)
