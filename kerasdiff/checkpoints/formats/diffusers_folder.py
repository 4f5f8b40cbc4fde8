"""Folders in the layout of diffusers: a `model_index.json` and one folder for each component."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator

from kerasdiff.checkpoints.formats.json_settings import JsonSettings
from kerasdiff.checkpoints.mapped_source import LEAVES, MappedSource, TensorSlice
from kerasdiff.errors import ModelError
from kerasdiff.models.networks import TEXT_TO_IMAGE
from kerasdiff.runtime.safetensors_map import TensorFiles


def files(folder: pathlib.Path, variant: str | None) -> Callable[[str], list[pathlib.Path]]:
    """The files of each network's weights."""
    return lambda network: _weight_files(folder / COMPONENTS[network].folder, COMPONENTS[network].stem, variant)


def source(files: Callable[[str], list[pathlib.Path]]) -> Callable[..., MappedSource]:
    """Where each network's parameters come from."""

    def of(network: str, shapes: Callable[[], dict[str, tuple[int, ...]]]) -> MappedSource:
        component = COMPONENTS[network]
        return MappedSource(TensorFiles(files(network)), shapes(), component.slices, component.is_unread)

    return of


def check(folder: pathlib.Path, variant: str | None) -> None:
    """Raises ModelError if a file is missing that every image needs; weights are not read."""
    needed = [folder / "scheduler" / "scheduler_config.json"]
    for network in TEXT_TO_IMAGE:
        needed += [folder / COMPONENTS[network].folder / "config.json", *files(folder, variant)(network)]
    for file in needed:
        if not file.is_file():
            raise ModelError(f"there is no {file}")


def _weight_files(folder: pathlib.Path, stem: str, variant: str | None) -> list[pathlib.Path]:
    name = stem if variant is None else f"{stem}.{variant}"
    if (folder / f"{name}.safetensors").is_file():
        return [folder / f"{name}.safetensors"]
    for index in (folder / f"{name}.safetensors.index.json", folder / f"{stem}.safetensors.index.{variant}.json"):
        if index.is_file():
            return _shards(folder, index)
    pickles = sorted(folder.glob("*.bin"))
    if pickles:
        raise ModelError(
            f"{folder} has its weights only as a pickle ({pickles[0].name}), which can run code when it is read; "
            "use a revision or a copy of the model with .safetensors files"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"it has {', '.join(others)}; choose one with variant=" if others else "it has no .safetensors file at all"
    raise ModelError(f"{folder} has no {name}.safetensors; {found}")


def _shards(folder: pathlib.Path, index: pathlib.Path) -> list[pathlib.Path]:
    shards = JsonSettings(index).get("weight_map", {}, dict).values()
    if not all(isinstance(shard, str) and re.fullmatch(r"[\w.-]+\.safetensors", shard) for shard in shards):
        raise ModelError(f"{index} names files that are not beside it")
    return [folder / shard for shard in sorted(set(shards))]


def renamed(name: str) -> tuple[str, str]:
    """Our name without the network and with torch's leaf: ("conv_in", "weight")."""
    path, _, leaf = name.partition(".")[2].rpartition(".")
    return path, LEAVES[leaf]


def _unet_slices(name: str) -> Iterator[TensorSlice]:
    yield TensorSlice(".".join(renamed(name)))


def _vae_slices(name: str) -> Iterator[TensorSlice]:
    path, leaf = renamed(name)
    half = name.partition(".")[0]
    if path not in ("quant_conv", "post_quant_conv"):
        path = f"{half}.{path}"
    yield TensorSlice(f"{path}.{leaf}")
    # Before 2023 the attention's layers had other names.
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    block, _, layer = path.rpartition("attentions.0.")
    if layer in old:
        yield TensorSlice(f"{block}attentions.0.{old[layer]}.{leaf}")


_CLIP = {
    r"(token|position|patch)_embedding": r"embeddings.\1_embedding",
    r"layers\.(\d+)\.([qkv]_proj|out_proj)": r"encoder.layers.\1.self_attn.\2",
    r"layers\.(\d+)\.(fc\d)": r"encoder.layers.\1.mlp.\2",
    r"layers\.(\d+)\.(layer_norm\d)": r"encoder.layers.\1.\2",
    r"final_layer_norm|pre_layrnorm|post_layernorm": r"\g<0>",
}


def clip_path(path: str) -> str:
    """Our name of a layer of CLIP's text or vision transformer, as transformers has it."""
    for ours, theirs in _CLIP.items():
        if re.fullmatch(ours, path):
            return re.sub(ours, theirs, path)
    raise ValueError(path)


def _text_slices(name: str) -> Iterator[TensorSlice]:
    path, leaf = renamed(name)
    yield TensorSlice(f"text_model.{clip_path(path)}.{leaf}")
    yield TensorSlice(f"{clip_path(path)}.{leaf}")


def _safety_slices(name: str) -> Iterator[TensorSlice]:
    path, _, leaf = name.partition(".")[2].rpartition(".")
    if path == "visual_projection":
        yield TensorSlice(f"{path}.{LEAVES[leaf]}")
    elif not path and leaf != "class_embedding":
        yield TensorSlice(leaf)
    else:
        key = f"{clip_path(path)}.{LEAVES[leaf]}" if path else f"embeddings.{leaf}"
        yield TensorSlice(f"vision_model.vision_model.{key}")
        yield TensorSlice(f"vision_model.{key}")  # since transformers 5


@dataclasses.dataclass(frozen=True)
class Component:
    """A network in a folder of diffusers; `stem` begins the names of its weight files."""

    folder: str
    stem: str
    # Our name of a parameter -> the tensors that may hold it, the first that exists is taken.
    slices: Callable[[str], Iterator[TensorSlice]]
    # How the names of tensors begin or end that are not the network's.
    unread: tuple[str, ...] = ()

    def is_unread(self, key: str) -> bool:
        """Whether a tensor may be left over."""
        return key.startswith(self.unread) or key.endswith(self.unread)


COMPONENTS = {
    "text_encoder": Component("text_encoder", "model", _text_slices, ("embeddings.position_ids",)),
    "unet": Component("unet", "diffusion_pytorch_model", _unet_slices),
    "decoder": Component("vae", "diffusion_pytorch_model", _vae_slices, ("encoder.", "quant_conv.")),
    "encoder": Component("vae", "diffusion_pytorch_model", _vae_slices, ("decoder.", "post_quant_conv.")),
    "safety_checker": Component("safety_checker", "model", _safety_slices, ("embeddings.position_ids",)),
}
