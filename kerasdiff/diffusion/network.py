"""One network of a model as the stages see it: values of parameters, and a layer only if something must be traced."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kerasdiff.adapters.patches import LoraStack
from kerasdiff.checkpoints.checkpoint import Zeros
from kerasdiff.models.networks import config_of, names_of
from kerasdiff.runtime import backend
from kerasdiff.runtime.cache_dir import cache_key
from kerasdiff.runtime.compiled import values_of
from kerasdiff.runtime.values import Values

if TYPE_CHECKING:
    import keras

    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.runtime.precision import Execution
    from kerasdiff.runtime.program_cache import ProgramCache

# What is loaded in this process, by where it comes from: two generators of one model hold its weights once.
_LOADED: weakref.WeakValueDictionary[tuple[Any, ...], Values] = weakref.WeakValueDictionary()

_NONE = LoraStack()
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _one_thread(method: _Method) -> _Method:
    """A method of a network that one thread at a time runs, so that each thing is loaded and built once."""

    @functools.wraps(method)
    def locked(network: Network, *arguments: Any) -> Any:
        with network._lock:
            return method(network, *arguments)

    return locked  # type: ignore[return-value]


class Network:
    """A network of a model: its values are loaded when they are first needed, its Keras layer when a program is traced.

    Threads may share it. Names and shapes, which otherwise only the layer knows, are cached in `programs`. `half` is
    the network in half precision whose values this one has in float32. `applied` gives the LoRAs that this thread
    applies at the moment.
    """

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        execution: Execution,
        programs: ProgramCache,
        applied: Callable[[], LoraStack] = LoraStack,
        half: Network | None = None,
    ) -> None:
        execution = execution.upcast(config_of(checkpoint.config, name))
        self.name, self._checkpoint, self._execution, self._programs = name, checkpoint, execution, programs
        self.precision, self.backend = execution.precision, backend.of(execution.backend)
        self.identity: str | None = cache_key(name, config_of(checkpoint.config, name), execution.precision)
        self._lock: Any = threading.RLock() if half is None else half._lock
        self._half, self._half_values = half, half and half.base_values
        self._applied = applied
        self._merged: tuple[Any, Values] | None = None
        self._float32: Network | None = None
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._weight_bytes: int | None = None
        self._values: Values | None = None
        self._layer: keras.layers.Layer | None = None
        self._hollow: keras.layers.Layer | None = None
        self._exposed = False

    @property
    def is_known(self) -> bool:
        """Whether it was loaded before; `release` changes nothing about that."""
        return self._shapes is not None

    @property
    def num_parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    @property
    def weight_bytes(self) -> int:
        """What its values take, wherever they are; nothing is loaded to find out."""
        if self._weight_bytes is None:
            shapes = self._shapes or self._cached_shapes() or self._checkpoint.shapes(self.name)
            itemsize = 4 if self._execution.variable_dtype == "float32" else 2
            self._weight_bytes = itemsize * sum(map(math.prod, shapes.values()))
        return self._weight_bytes

    @property
    def nbytes(self) -> int:
        """What its values take in memory; 0 while they are not loaded, or if they are read from files when needed."""
        if self._values is None or (self.backend.READS_LATE and isinstance(self._values[0], self.backend.Stored)):
            return 0
        return self.weight_bytes

    @property
    @_one_thread
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order of the layer's weights."""
        if self._shapes is None:
            self._shapes = self._cached_shapes()
            if self._shapes is None:
                if not self.backend.READS_LATE:
                    self._layer = self._checkpoint.build(self.name, self._execution, None)
                    self._values = self._remember(values_of(self._layer, self.backend))
                layer = self.layer_to_trace
                self._shapes = {weight.path.replace("/", "."): tuple(weight.shape) for weight in layer.weights}
                self._programs.write(f"{self.identity}.shapes", json.dumps(self._shapes).encode())
        return self._shapes

    def _cached_shapes(self) -> dict[str, tuple[int, ...]] | None:
        saved = self._programs.read(f"{self.identity}.shapes")
        return None if saved is None else {name: tuple(shape) for name, shape in json.loads(saved).items()}

    @property
    @_one_thread
    def values(self) -> Values:
        """Tensors, in the order of the layer's weights, with the LoRAs that are applied at the moment.

        ModelError if a file does not have just these, or a LoRA does not fit.
        """
        base, applied = self.base_values, self._applied()
        key = applied.key(self.name)
        if not key:
            return base
        if self._merged is None or self._merged[0] != key or self._merged[1].base is not base:
            self._merged = None  # before there are others: there is no room for many
            self._merged = key, self._merge(base, applied)
        return self._merged[1]

    @property
    @_one_thread
    def base_values(self) -> Values:
        """Tensors, in the order of the layer's weights, without LoRAs."""
        if self._half is not None and self._half.base_values is not self._half_values:
            self._half_values, self._values = self._half.base_values, None
        if self._half is not None and self._half._exposed:
            if self._values is None:  # what a layer holds that somebody may have changed is nowhere else
                self._values = Values(self.backend.adopt(value, "float32") for value in self._half.base_values)
            return self._values
        shapes = self.shapes
        if self._values is None:
            self._values = self._load(shapes)
        return self._values

    @property
    @_one_thread
    def layer(self) -> keras.layers.Layer:
        """The Keras layer; its variables and `values` share their memory."""
        if self._layer is None:
            values = dict(zip(self.shapes, map(self.backend.tensor, self.base_values), strict=True))
            if self._layer is None:  # which learning the shapes may have built
                self._layer = self._checkpoint.build(self.name, self._execution, values)
        return self._layer

    @property
    @_one_thread
    def layer_to_trace(self) -> keras.layers.Layer:
        """The Keras layer, or one like it whose parameters take no memory."""
        if self._layer is not None:
            return self._layer
        if not self.backend.READS_LATE:
            return self.layer
        if self._hollow is None:
            zeros = Zeros(self._execution.variable_dtype)
            self._hollow = self._checkpoint.build(self.name, self._execution, zeros)
        return self._hollow

    @_one_thread
    def expose(self) -> keras.layers.Layer:
        """The layer for somebody who may change its variables; from now on `refresh` looks at them."""
        self._exposed = True
        return self.layer

    @_one_thread
    def refresh(self) -> None:
        """Takes the values that an exposed layer has now. Raises ModelError if a file in memory was overwritten."""
        if self._values is not None:
            self._checkpoint.check_mapped(self.name)
        if self._exposed:
            self._values = self.backend.latest(values_of(self.layer, self.backend), self._values)

    @_one_thread
    def reload(self) -> None:
        """Takes the values that the checkpoint has now; nothing is copied if their types agree."""
        self._values = self._load(self.shapes)
        if self._layer is not None:
            for weight, value in zip(self._layer.weights, self._values, strict=True):
                weight.assign(value)

    @_one_thread
    def release(self) -> bool:
        """Unloads values that can be loaded again when they are needed. Returns whether there were any."""
        if self._exposed or self._values is None:
            return False
        self._values = self._layer = self._merged = None
        if self._float32 is not None:
            self._float32.release()
        return True

    @_one_thread
    def in_float32(self) -> Network:
        """The same network, computing in float32, with the values that this one has at each moment."""
        if self._float32 is None:
            execution = dataclasses.replace(self._execution, precision="float32")
            self._float32 = Network(
                self.name, self._checkpoint, execution, self._programs, applied=self._applied, half=self
            )
        return self._float32

    def _load(self, shapes: dict[str, tuple[int, ...]]) -> Values:
        key = self._provenance()
        loaded = None if key is None else _LOADED.get(key)
        if loaded is None:
            loaded = self._remember(Values(self._checkpoint.load(self.name, self._execution, shapes).values()))
        return loaded

    def _merge(self, base: Values, applied: LoraStack) -> Values:
        """The values with LoRAs: those that change are new, the others are the same tensors."""
        patches = applied.patches(self.name, self.shapes)
        dtype = self._execution.variable_dtype

        def merged(name: str, shape: tuple[int, ...], value: Any) -> Any:
            patch = patches.get(name)
            if patch is None:
                return value
            if self.backend.READS_LATE:
                return self.backend.Stored(shape, dtype, lambda: patch(getattr(value, "as_stored", value)))
            return self.backend.adopt(patch(np.asarray(value)), dtype)

        # One after the other: products and copies have threads of their own.
        tensors = map(merged, self.shapes, self.shapes.values(), base)
        values = Values(tensors, base, [index for index, name in enumerate(self.shapes) if name in patches])
        if base.key is not None:
            values.key = cache_key(base.key, applied.key(self.name))
        return values

    def _remember(self, values: Values) -> Values:
        key = self._provenance()
        if key is not None:
            values.key = cache_key(key)
            _LOADED[key] = values
        return values

    def _provenance(self) -> tuple[Any, ...] | None:
        source = self._checkpoint.provenance(self.name)
        dtype, runs = self._execution.variable_dtype, self._execution.backend
        return None if source is None else (self.name, dtype, runs, *source)


class Networks(Mapping[str, Any]):
    """The Keras layers of a model by name, each built when somebody looks at it.

    Their variables may be changed: the next image is generated with the values that they have then.
    """

    def __init__(self, checkpoint: Checkpoint, execution: Execution, programs: ProgramCache) -> None:
        names = names_of(checkpoint.config)
        self._here = threading.local()
        self._networks = {name: Network(name, checkpoint, execution, programs, self._applied) for name in names}

    @property
    def known(self) -> dict[str, Network]:
        return {name: network for name, network in self._networks.items() if network.is_known}

    def network(self, name: str) -> Network:
        """A network as stages see it."""
        return self._networks[name]

    @contextlib.contextmanager
    def applying(self, loras: LoraStack) -> Iterator[None]:
        """In this block, stages that this thread runs have the values with some LoRAs."""
        before = self._applied()
        self._here.loras = loras
        try:
            yield
        finally:
            self._here.loras = before

    def _applied(self) -> LoraStack:
        return getattr(self._here, "loras", _NONE)

    def refresh(self) -> None:
        """Takes the values that the layers have now that somebody looked at."""
        for network in self._networks.values():
            network.refresh()

    def __getitem__(self, name: str) -> keras.layers.Layer:
        return self._networks[name].expose()

    def __contains__(self, name: object) -> bool:
        return name in self.known  # without making a layer to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)
