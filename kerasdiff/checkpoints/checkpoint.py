"""What the rest of the package sees of any checkpoint.

Keras is imported when a network is built, so that wrong arguments are found without waiting for it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from kerasdiff.checkpoints import weight_cache
from kerasdiff.checkpoints.file_stamps import FileStamps
from kerasdiff.checkpoints.formats.native import NativeSource
from kerasdiff.checkpoints.formats.random_weights import RandomSource
from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.network_configs import AnyVAEConfig
from kerasdiff.models.networks import NETWORKS, config_of, make_network
from kerasdiff.runtime import backend
from kerasdiff.runtime.layout import ALIGNMENT

if TYPE_CHECKING:
    import keras

    from kerasdiff.checkpoints.vae_files import VAEFiles
    from kerasdiff.runtime.precision import Execution

# Name to shape of every parameter of a network, in order.
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model that was found: what it is, and where each network's parameters come from."""

    name: str
    config: ModelConfig
    tokenizer: Any
    # Network and its `shapes` -> its parameters, a `kerasdiff.models.layers.Source`.
    source: Callable[[str, Callable[[], Shapes]], Any]
    # Network -> the files that it is read from; None for random weights and live models.
    files: Callable[[str], list[pathlib.Path]] | None = None
    # Networks whose files are of our format, and mapped into memory as they are.
    native: Collection[str] = ()
    # The files as they were when it was opened; None if they cannot change.
    stamps: FileStamps | None = None
    # "model", "weights", "revision", "variant", "vae" and "refiner", as far as it was asked for by them.
    requested: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    # What took the place of the model's own autoencoder, or of a half of it, and what that was.
    autoencoder: VAEFiles | None = None
    own_vae: AnyVAEConfig | None = None
    # The model that finishes its images.
    refiner: Checkpoint | None = None
    # Of the second text encoder, where there are two.
    tokenizer_2: Any = None
    # Networks that the files lack.
    missing: tuple[str, ...] = ()

    @property
    def origin(self) -> dict[str, Any]:
        """How to open it again, as embedded metadata has it."""
        unsaid = {"weights": "pretrained", "revision": None, "variant": None, "vae": None, "refiner": None}
        return {"model": self.name, **unsaid, **self.requested}

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The tokenizers, by the names of their text encoders."""
        both = (self.tokenizer, self.tokenizer if self.tokenizer_2 is None else self.tokenizer_2)
        return dict(zip(self.config.text_encoders, both, strict=False))

    @property
    def fixed(self) -> bool:
        """Whether parameters stay as they are; those of a live model may change."""
        own = self.files is not None or isinstance(self.source("unet", dict), RandomSource)
        return own and (self.refiner is None or self.refiner.fixed)

    def check_unchanged(self, network: str) -> None:
        """Raises ModelError if a network's files are not those that the model was opened from."""
        stamps = self._stamps(network)
        if stamps is not None and self.files is not None:
            stamps.check(self.name, self.files(network))

    def check_mapped(self, network: str) -> None:
        """Raises ModelError if a network's values, which are in a mapped file, may have changed in memory."""
        stamps = self._stamps(network)
        if stamps is not None and self.files is not None and network in self.native:
            stamps.check_mapped(self.name, self.files(network))

    def _stamps(self, network: str) -> FileStamps | None:
        replaced = self.autoencoder is not None and network in self.autoencoder.halves
        return self.autoencoder.stamps if self.autoencoder is not None and replaced else self.stamps

    @property
    def latents_of(self) -> AnyVAEConfig:
        """The autoencoder that the U-Net was trained with, by which its latents are known."""
        return self.config.vae if self.own_vae is None else self.own_vae

    def with_autoencoder(self, other: VAEFiles) -> Checkpoint:
        """The same model with another autoencoder, or another half of one, in place of its own."""
        source, files, halves = self.source, self.files, other.halves
        config, own = self.config, self.config.encoder
        if "decoder" in halves:
            config = dataclasses.replace(config, vae=other.config, other_encoder=None if len(halves) == 2 else own)
        else:
            config = dataclasses.replace(config, other_encoder=other.config)
        return dataclasses.replace(
            self,
            config=config,
            source=lambda network, shapes: (other.source if network in halves else source)(network, shapes),
            files=None if files is None else lambda network: (other.files if network in halves else files)(network),
            native=({*self.native} - {*halves}) | {*other.native},
            autoencoder=other,
            own_vae=self.latents_of,
            missing=tuple(network for network in self.missing if network not in halves),
        )

    def with_refiner(self, other: Checkpoint) -> Checkpoint:
        """The same with a model that finishes its images; ModelError if that cannot go on from its latents."""
        here, there = self.latents_of, other.latents_of
        spaces = [(one.latent_channels, one.factor, one.scaling_factor) for one in (here, there)]
        ends = [config.schedule.num_train_timesteps for config in (self.config, other.config)]
        problem = None
        if spaces[0] != spaces[1]:
            problem = "latents of {} channels, 1/{} the size and scale {}, and not of {}, 1/{} and {}".format(
                *spaces[1], *spaces[0]
            )
        elif ends[0] != ends[1]:
            problem = f"{ends[1]} timesteps, and not {ends[0]}"
        elif other.config.unet.in_channels != there.latent_channels:
            problem = f"a U-Net for {'editing' if other.config.edits else 'inpainting'}"
        if problem is not None:
            raise ModelError(f"{other.name} cannot refine what {self.name} draws: it has {problem}")
        return dataclasses.replace(self, config=dataclasses.replace(self.config, refiner=other.config), refiner=other)

    def provenance(self, network: str) -> tuple[Any, ...] | None:
        """A key that identifies a network's parameters; None where there is none. Raises as `check_unchanged` does."""
        self.check_unchanged(network)
        config = config_of(self.config, network)
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

        return parameters_of(make_network(network, self.config, "float32"))

    def parameters(self, network: str) -> Iterator[tuple[str, np.ndarray]]:
        """Name and value of every parameter of a network; a value may be overwritten when the next one comes."""
        shapes = self.shapes(network)
        self.check_unchanged(network)
        for name, value in _read(self.source(network, lambda: shapes), shapes):
            yield name, np.asarray(value)
        self.check_unchanged(network)

    def load(self, network: str, execution: Execution, shapes: Shapes) -> dict[str, Any]:
        """Every parameter of a network as a tensor, by name; `shapes` are those of `shapes(network)`."""
        runs, dtype = backend.of(execution.backend), execution.variable_dtype
        precise = {f"{network}.{name}" for name in NETWORKS[network].float32}
        dtypes = {name: "float32" if name in precise else dtype for name in shapes}
        source = self._rereadable(network, shapes) if runs.READS_LATE else None
        if source is not None:
            read = functools.partial(self._read_late, network, source)
            return {
                name: runs.Stored(shape, dtypes[name], functools.partial(read, name, shape))
                for name, shape in shapes.items()
            }
        source = self._source(network, execution, lambda: shapes)
        lasting = getattr(source, "lasting", False)
        tensors = {name: runs.adopt(value, dtypes[name], lasting) for name, value in _read(source, shapes)}
        self.check_unchanged(network)  # reading takes seconds
        return tensors

    def build(
        self, network: str, execution: Execution, values: Mapping[str, Any] | Zeros | None = None
    ) -> keras.layers.Layer:
        """A network as a Keras layer with its parameters; its variables share the memory of `values` from `load`.

        With `Zeros` it has none, and is of use for tracing only.
        """
        from kerasdiff.runtime.tf_setup import import_keras

        import_keras()
        from kerasdiff.models.layers import values_from

        layer = make_network(network, self.config, execution.policy)
        source: Any = _Values(values) if isinstance(values, Mapping) else values
        if source is None:
            source = self._source(network, execution, lambda: self.shapes(network))
        with values_from(source):
            layer.build()
        if hasattr(source, "finish"):
            source.finish()
        self.check_unchanged(network)
        layer.trainable = False
        return layer

    def _source(self, network: str, execution: Execution, shapes: Callable[[], Shapes]) -> Any:
        self.check_unchanged(network)
        # A cached file has one type.
        dtype = "float32" if NETWORKS[network].float32 else execution.variable_dtype
        if self.files is not None and network not in self.native:
            meaning = config_of(self.config, network)
            path = weight_cache.path_for(self.files(network), network, meaning, dtype)
            if path is not None and not weight_cache.is_valid(path):
                expected = shapes()
                parameters = _read(self.source(network, lambda: expected), expected)
                path = path if weight_cache.put(path, expected, parameters, dtype) else None
            if path is not None:
                return NativeSource(path)
        return self.source(network, shapes)

    def _rereadable(self, network: str, shapes: Shapes) -> Any | None:
        """A source whose parameters can be read at any time, in any order; None if it is of another kind."""
        if network in self.native:
            return None
        self.check_unchanged(network)
        source = self.source(network, lambda: shapes)
        if getattr(source, "rereadable", False):
            return source
        if hasattr(source, "finish"):
            source.finish()
        return None

    def _read_late(self, network: str, source: Any, name: str, shape: tuple[int, ...]) -> Any:
        self.check_unchanged(network)
        return source(name, shape)

    def with_recipe(self, recipe: str | None) -> Checkpoint:
        """The same, with a recipe among its defaults."""
        defaults = dataclasses.replace(self.config.defaults, recipe=recipe)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, defaults=defaults))

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


class Zeros:
    """Parameters that take no memory."""

    lasting = True

    def __init__(self, dtype: str) -> None:
        self._kind, self._zeros = np.dtype(getattr(ml_dtypes, dtype, dtype)), np.zeros(ALIGNMENT, "uint8")

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        count = math.prod(shape) * self._kind.itemsize
        if self._zeros.nbytes < count + ALIGNMENT:
            self._zeros = np.zeros(count + ALIGNMENT, "uint8")  # of which no page is there before it is read
        start = -self._zeros.ctypes.data % ALIGNMENT
        return self._zeros[start : start + count].view(self._kind).reshape(shape)


class _Values:
    """Parameters that are in memory, to stay there."""

    lasting = True

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __call__(self, name: str, shape: tuple[int, ...]) -> Any:
        return self._values[name]


def _read(source: Any, shapes: Shapes) -> Iterator[tuple[str, Any]]:
    """Raises ModelError if a parameter is missing, left over or of the wrong shape."""
    for name, shape in shapes.items():
        yield name, source(name, shape)
    if hasattr(source, "finish"):
        source.finish()
