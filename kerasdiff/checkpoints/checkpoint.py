"""A model that was found: what the rest of the package sees of any checkpoint.

Keras is imported when a network is built: a wrong argument is found out without waiting for it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.checkpoints import weight_cache
from kerasdiff.checkpoints.formats.native import NativeSource
from kerasdiff.checkpoints.formats.random_weights import RandomSource
from kerasdiff.models.config import ModelConfig

if TYPE_CHECKING:
    import keras

    from kerasdiff.runtime.precision import Execution

# Name to shape of every parameter of a network, in order.
Shapes = dict[str, tuple[int, ...]]
# How names of parameters begin that are in float32 in whatever type the network is.
_FLOAT32 = ("safety_checker.concept_embeds", "safety_checker.special_care_embeds")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model that was found: what it is, and where each network's parameters come from.

    Attributes:
        name: for messages.
        config: of all networks.
        tokenizer: text to ids.
        source: network and its `shapes` -> where parameters come from (`kerasdiff.models.layers.Source`).
        files: network -> the files that it is read from, if it is read from files.
        native: whether these are of our format, and mapped into memory as they are.
        requested: "model", "weights", "revision" and "variant", as far as it was asked for by them.
    """

    name: str
    config: ModelConfig
    tokenizer: Any
    source: Callable[[str, Callable[[], Shapes]], Any]
    files: Callable[[str], list[pathlib.Path]] | None = None
    native: bool = False
    requested: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    @property
    def origin(self) -> dict[str, Any]:
        """How to open it again, as embedded metadata has it."""
        return {"model": self.name, "weights": "pretrained", "revision": None, "variant": None, **self.requested}

    def provenance(self, network: str) -> tuple[Any, ...] | None:
        """What tells its parameters from others while they do not change; None where that is not known."""
        config = getattr(self.config, "vae" if network in ("encoder", "decoder") else network)
        if self.files is None:
            return ("random", config) if isinstance(self.source(network, dict), RandomSource) else None
        try:
            stats = [(str(path), path.stat()) for path in self.files(network)]
        except OSError:
            return None
        # A live model has no files, and parameters that change.
        return (config, *((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)) if stats else None

    def shapes(self, network: str) -> Shapes:
        """Name and shape of every parameter of a network, e.g. "unet.conv_in.kernel", in order; nothing is made."""
        from kerasdiff.runtime.tf_setup import import_keras

        import_keras()
        from kerasdiff.models.layers import parameters_of
        from kerasdiff.models.networks import make_network

        return parameters_of(make_network(network, self.config, "float32"))

    def parameters(self, network: str) -> Iterator[tuple[str, np.ndarray]]:
        """Name and value of every parameter of a network; a value may be overwritten when the next one comes.

        Raises:
            ModelError: a parameter is missing, left over or of the wrong shape.
        """
        return self._parameters(network, self.shapes(network))

    def _parameters(self, network: str, shapes: Shapes) -> Iterator[tuple[str, np.ndarray]]:
        source = self.source(network, lambda: shapes)
        for name, shape in shapes.items():
            yield name, np.asarray(source(name, shape))
        if hasattr(source, "finish"):
            source.finish()

    def load(self, network: str, execution: Execution, shapes: Shapes) -> dict[str, Any]:
        """Every parameter of a network as a tensor, by name; `shapes` are what `shapes(network)` gives.

        Raises:
            ModelError: a parameter is missing, left over or of the wrong shape.
        """
        from kerasdiff.runtime.backend import adopt

        source, dtype = self._source(network, execution, lambda: shapes), execution.variable_dtype
        lasting = getattr(source, "lasting", False)
        values = {
            name: adopt(source(name, shape), "float32" if name.startswith(_FLOAT32) else dtype, lasting)
            for name, shape in shapes.items()
        }
        if hasattr(source, "finish"):
            source.finish()
        return values

    def build(self, network: str, execution: Execution, values: Mapping[str, Any] | None = None) -> keras.layers.Layer:
        """One of "text_encoder", "unet", "decoder", "encoder", "safety_checker", with its parameters.

        Args:
            network: by name.
            execution: decides the type.
            values: what `load` gave, if it was called; the layer's variables share their memory.

        Raises:
            ModelError: a parameter is missing, left over or of the wrong shape.
        """
        from kerasdiff.runtime.tf_setup import import_keras

        import_keras()
        from kerasdiff.models.layers import values_from
        from kerasdiff.models.networks import make_network

        layer = make_network(network, self.config, execution.policy)
        if values is None:
            source = self._source(network, execution, lambda: self.shapes(network))
        else:
            source = lambda name, shape: values[name]  # noqa: E731
        with values_from(source):
            layer.build()
        if hasattr(source, "finish"):
            source.finish()
        layer.trainable = False
        return layer

    def _source(self, network: str, execution: Execution, shapes: Callable[[], Shapes]) -> Any:
        # A kept file has one type, and some of the safety checker's numbers need float32.
        dtype = "float32" if network == "safety_checker" else execution.variable_dtype
        if self.files is not None and not self.native:
            place = weight_cache.place_of(self.files(network), network, self.config, dtype)
            if place is not None and (weight_cache.is_kept(place) or self._keep(place, network, shapes(), dtype)):
                return NativeSource(place)
        return self.source(network, shapes)

    def _keep(self, place: pathlib.Path, network: str, shapes: Shapes, dtype: str) -> bool:
        return weight_cache.keep(place, shapes, self._parameters(network, shapes), dtype)

    def randomised(self) -> Checkpoint:
        """The same architecture with random parameters, without a safety checker: it would flag at random."""
        random = RandomSource()
        return dataclasses.replace(
            self,
            name=f"{self.name} (random weights)",
            config=dataclasses.replace(self.config, safety_checker=None),
            source=lambda network, _: random,
            files=None,
        )
