"""One network of a model as the stages see it: values of parameters, and a layer only if something must be traced."""

from __future__ import annotations

import dataclasses
import json
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kerasdiff.runtime import backend, program_cache
from kerasdiff.runtime.cache_dir import cache_key
from kerasdiff.runtime.compiled import values_of
from kerasdiff.runtime.values import Values

if TYPE_CHECKING:
    import keras

    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.runtime.precision import Execution


# Which part of a model's configuration a network is made from.
_CONFIG = {
    "text_encoder": "text_encoder",
    "unet": "unet",
    "decoder": "vae",
    "encoder": "vae",
    "safety_checker": "safety_checker",
}
# What is loaded in this process, by what it is of: two generators of one model hold its weights once.
_LOADED: weakref.WeakValueDictionary[tuple[Any, ...], Values] = weakref.WeakValueDictionary()


class Network:
    """A network of a model: its values are loaded when it is made, its Keras layer when a program must be traced.

    Args:
        name: "text_encoder", "unet", "decoder" or "encoder".
        model: where parameters come from.
        execution: decides their type.
        programs: where names and shapes are remembered, which otherwise only the layer knows.

    Raises:
        ModelError: a parameter is missing, left over or of the wrong shape.
    """

    def __init__(
        self, name: str, model: Checkpoint, execution: Execution, programs: program_cache.ProgramCache
    ) -> None:
        self.name, self._model, self._execution = name, model, execution
        self.identity: str | None = cache_key(name, getattr(model.config, _CONFIG[name]), execution.precision)
        self._layer: keras.layers.Layer | None = None
        self._loaded: Values | None = None
        self._shared = False
        known = programs.read(f"{self.identity}.shapes")
        if known is None:
            layer = self._built()
            self._shapes = {_name(weight): tuple(weight.shape) for weight in layer.weights}
            programs.write(f"{self.identity}.shapes", json.dumps(self._shapes).encode())
            self._loaded = values_of(layer)
            self._remember(execution, self._loaded)
        else:
            self._shapes = {name: tuple(shape) for name, shape in json.loads(known).items()}
            self._loaded = self._load()

    @property
    def num_parameters(self) -> int:
        """How many numbers it has."""
        return sum(map(math.prod, self._shapes.values()))

    @property
    def nbytes(self) -> int:
        """What its values take in memory; 0 while they are not loaded."""
        itemsize = 4 if self._execution.variable_dtype == "float32" else 2
        return 0 if self._loaded is None else self.num_parameters * itemsize

    @property
    def precision(self) -> str:
        """What it computes in, as a Keras policy."""
        return self._execution.precision

    @property
    def values(self) -> Values:
        """Tensors, in the order of the layer's weights."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @property
    def layer(self) -> keras.layers.Layer:
        """The Keras layer; its variables and `values` share their memory."""
        return self._built()

    def share(self) -> keras.layers.Layer:
        """The layer for somebody who may change its variables; from now on `follow` looks at them."""
        self._shared = True
        return self.layer

    def follow(self) -> None:
        """Takes the values that a shared layer has now."""
        if self._shared:
            self._loaded = values_of(self.layer)

    def reload(self) -> None:
        """Takes the values that the model's source has now; nothing is copied if their types agree."""
        self._loaded = self._load()
        if self._layer is not None:
            for weight, value in zip(self._layer.weights, self._loaded, strict=True):
                weight.assign(value)

    def release(self) -> bool:
        """Lets go of values that can be loaded again when they are needed; whether there were any."""
        if self._shared or self._loaded is None:
            return False
        self._loaded = self._layer = None
        return True

    def in_float32(self) -> InFloat32:
        """The same network, computing in float32."""
        return InFloat32(self)

    def _load(self, execution: Execution | None = None) -> Values:
        execution = self._execution if execution is None else execution
        key = self._provenance(execution)
        values = None if key is None else _LOADED.get(key)
        if values is None:
            values = Values(self._model.load(self.name, execution, self._shapes).values())
            self._remember(execution, values)
        return values

    def _remember(self, execution: Execution, values: Values) -> None:
        key = self._provenance(execution)
        if key is not None:
            _LOADED[key] = values

    def _provenance(self, execution: Execution) -> tuple[Any, ...] | None:
        source = self._model.provenance(self.name)
        return None if source is None else (self.name, execution.variable_dtype, *source)

    def _built(self) -> keras.layers.Layer:
        if self._layer is None:
            values = None if not hasattr(self, "_shapes") else dict(zip(self._shapes, self.values, strict=True))
            self._layer = self._model.build(self.name, self._execution, values)
        return self._layer


class InFloat32:
    """A network's twin that computes in float32, with the values that the network has at each moment.

    Args:
        network: in half precision.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._execution = dataclasses.replace(network._execution, precision="float32")
        config = getattr(network._model.config, _CONFIG[network.name])
        self.identity: str | None = cache_key(network.name, config, "float32")
        self._of: Values | None = None
        self._values = Values([])

    @property
    def values(self) -> Values:
        """Tensors, in the order of the layer's weights."""
        network = self._network
        if network.values is not self._of:
            self._of = network.values
            if network._shared:  # what the layer holds now is nowhere else
                self._values = Values(backend.adopt(value, "float32") for value in self._of)
            else:
                self._values = network._load(self._execution)
        return self._values

    @property
    def layer(self) -> keras.layers.Layer:
        """The Keras layer."""
        values = dict(zip(self._network._shapes, self.values, strict=True))
        return self._network._model.build(self._network.name, self._execution, values)


class Networks(Mapping[str, Any]):
    """The Keras layers of a model by name, each built when somebody looks at it.

    Their variables may be changed: the next image is drawn with the values that they have then.

    Args:
        make: a network by name.
    """

    def __init__(self, make: Callable[[str], Network]) -> None:
        self._make = make
        self.made = {name: make(name) for name in ("text_encoder", "unet", "decoder")}

    def network(self, name: str) -> Network:
        """A network as stages see it; the encoder is loaded when it is first asked for."""
        if name not in self.made:
            self.made[name] = self._make(name)
        return self.made[name]

    def follow(self) -> None:
        """Takes the values that the layers have now that somebody looked at."""
        for network in self.made.values():
            network.follow()

    def __getitem__(self, name: str) -> keras.layers.Layer:
        if name not in _CONFIG:
            raise KeyError(name)
        return self.network(name).share()

    def __contains__(self, name: object) -> bool:
        return name in self.made  # without making a layer to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)


def _name(variable: Any) -> str:
    return variable.path.replace("/", ".")
