"""KerasCV's published weights: one HDF5 file per network, in the layout of Keras 2.

Such a file lists its layers, and each layer its weights, in the order in which KerasCV made them. Ours are built in the
same order, so that the two lists are read side by side; every shape must fit.
"""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.checkpoints import hub, licence
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1
from kerasdiff.models.networks import text_to_image
from kerasdiff.runtime.safetensors_map import refuse_pickle

if TYPE_CHECKING:
    import h5py

_V1, _V2 = "fchollet/stable-diffusion", "ianstenbit/keras-sd2.1"
_VAE = {
    "decoder": (_V1, "kcv_decoder.h5", "ad350a65cc8bc4a80c8103367e039a3329b4231c2469a1093869a345f55b1962"),
    "encoder": (_V1, "vae_encoder.h5", "c60fb220a40d090e0f86a6ab4c312d113e115c87c40ff75d11ffcf380aab7ebb"),
}
# Preset -> network -> repository, file and SHA-256, from keras_cv 0.9.0.
PUBLISHED = {
    "sd-v1-4": {
        "text_encoder": (_V1, "kcv_encoder.h5", "4789e63e07c0e54d6a34a29b45ce81ece27060c499a709d556c7755b42bb0dc4"),
        "unet": (_V1, "kcv_diffusion_model.h5", "8799ff9763de13d7f30a683d653018e114ed24a6a819667da4f5ee10f9e805fe"),
        **_VAE,
    },
    "sd-v2-1": {
        "text_encoder": (
            _V2,
            "text_encoder_v2_1.h5",
            "985002e68704e1c5c3549de332218e99c5b9b745db7171d5f31fcd9a6089f25b",
        ),
        "unet": (_V2, "diffusion_model_v2_1.h5", "c31730e91111f98fe0e2dbde4475d381b5287ebb9672b1821796146a25c5132d"),
        **_VAE,
    },
}


def preset_of(folder: pathlib.Path) -> str | None:
    """The preset whose files a folder holds; None if it holds no set of them."""
    return next((preset for preset, files in PUBLISHED.items() if (folder / files["unet"][1]).is_file()), None)


Files = Callable[[str], list[pathlib.Path]]


def in_folder(folder: pathlib.Path, preset: str) -> Files:
    """The file of each network in one folder."""
    return lambda network: [folder / PUBLISHED[preset][network][1]]


def from_hub(preset: str, fetch: bool = True) -> Files:
    """The file of each network on the hub; with `fetch`, those that every image needs are downloaded at once."""
    if fetch:
        for network in text_to_image(SD_V1):
            hub.fetch_file(*PUBLISHED[preset][network])
        licence.give_notice(preset, PUBLISHED[preset]["unet"][0])
    return lambda network: [hub.fetch_file(*PUBLISHED[preset][network])]


def source(files: Files) -> Callable[..., H5Source]:
    """Where each network's parameters come from."""
    return lambda network, shapes: H5Source(files(network)[0], shapes())


class H5Source:
    """Parameters of one network from its file, for the names and shapes of `parameters_of`, in order."""

    def __init__(self, path: pathlib.Path, expected: dict[str, tuple[int, ...]]) -> None:
        import h5py

        refuse_pickle(path)
        try:
            self._file = h5py.File(path, "r")
        except Exception as error:  # h5py raises nearly anything for a damaged file
            raise _corrupt(path, error) from None
        try:
            self._datasets = _matched(self._file, path, expected)
        except BaseException:
            self._file.close()
            raise

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            return self._datasets.pop(name)[()].reshape(shape)
        except OSError as error:
            raise _corrupt(self._file.filename, error) from None

    def finish(self) -> None:
        """Closes the file."""
        self._file.close()


def _matched(file: h5py.File, path: pathlib.Path, expected: dict[str, tuple[int, ...]]) -> dict[str, h5py.Dataset]:
    try:
        datasets = list(_datasets(file))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except Exception as error:
        raise _corrupt(path, error) from None
    if len(datasets) != len(expected):
        raise ModelError(f"{path} holds {len(datasets)} weights; this model has {len(expected)}")
    matched = dict(zip(expected, datasets, strict=True))
    for name, shape in expected.items():
        stored = matched[name].shape
        # A 1 x 1 convolution there is a dense layer here.
        if stored != shape and (len(stored) != 4 or stored != (1, 1, *shape)):
            raise ModelError(
                f"{path} does not fit the model: {matched[name].name} has shape {list(stored)}, "
                f"{name} needs {list(shape)}"
            )
    return matched


def _corrupt(path: pathlib.Path | str, error: Exception) -> ModelError:
    return ModelError(f"{path} is corrupt or incomplete: {' '.join(str(error).split())[:200]}")


def _datasets(file: h5py.File) -> Iterator[h5py.Dataset]:
    import h5py

    layers = _names(file, "layer_names")
    if layers is None:
        raise ModelError("it is no file of KerasCV's published weights (it has no layer_names)")
    for layer in layers:
        group = _plain(file, layer, h5py.Group)
        for weight in _names(group, "weight_names") or []:
            dataset = _plain(group, weight, h5py.Dataset)
            # Both can make reading one file read another.
            if dataset.external or dataset.is_virtual:
                raise ModelError(f"{weight} keeps its values in another file, which is not followed")
            if dataset.dtype.kind != "f":
                raise ModelError(f"{weight} holds {dataset.dtype}, not floating-point numbers")
            yield dataset


def _names(group: h5py.Group, attribute: str) -> list[str] | None:
    """A list of names, which Keras cuts into several attributes when it is long; None if there is none."""
    keys: Iterable[str] = [attribute]
    if attribute not in group.attrs:
        keys = itertools.takewhile(group.attrs.__contains__, (f"{attribute}{number}" for number in itertools.count()))
    names = [name for key in keys for name in group.attrs[key]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names] or None


def _plain(group: h5py.Group, path: str, kind: type) -> Any:
    """The object at a path below a group; no link on the way may lead elsewhere."""
    import h5py

    node = group
    for step in path.split("/"):
        if not isinstance(node, h5py.Group) or not isinstance(node.get(step, getlink=True), h5py.HardLink):
            raise ModelError(f"{path} is a link to elsewhere or missing")
        node = node[step]
    if not isinstance(node, kind):
        raise ModelError(f"{path} is not a {kind.__name__.lower()}")
    return node


def write(path: pathlib.Path, parameters: Iterator[tuple[str, np.ndarray]], convolutions: str) -> None:
    """Writes one network's file from our names and values, in order; `convolutions` is of the function of that name."""
    import h5py

    with h5py.File(path, "w") as file:
        names: dict[str, list[str]] = {}
        for name, values in parameters:
            layer = _layer_of(name)
            kernel = values[None, None] if values.ndim == 2 and re.search(convolutions, name) else values
            file.create_dataset(f"{layer}/{name}:0", data=kernel)
            names.setdefault(layer, []).append(f"{name}:0")
        file.attrs["layer_names"] = [name.encode() for name in names]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.10.0"
        for layer, weights in names.items():
            file[layer].attrs["weight_names"] = [weight.encode() for weight in weights]


def convolutions(preset: str, network: str) -> str:
    """A pattern of the kernels that are dense here and 1 x 1 convolutions in KerasCV."""
    if network == "unet":
        return r"attentions\.\d+\.proj_(in|out)\.kernel$" if preset == "sd-v1-4" else "$^"
    return r"mid_block\.attentions\.0\.to_.*\.kernel$"


def _layer_of(name: str) -> str:
    """The layer of KerasCV's model that a parameter is in: a block, or a single layer."""
    path = name.partition(".")[2].rpartition(".")[0]
    if path in ("token_embedding", "position_embedding"):
        return "clip_embedding"
    block = re.match(r"(layers\.\d+|.*?(?:resnets|attentions)\.\d+)", path)
    return block[1] if block else path
