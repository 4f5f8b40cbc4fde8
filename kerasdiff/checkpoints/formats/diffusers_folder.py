"""Folders in the layout of diffusers: a `model_index.json` and one folder for each component."""

import contextlib
import dataclasses
import logging
import pathlib
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator

from kerasdiff.checkpoints.formats.json_settings import JsonSettings, read_json
from kerasdiff.checkpoints.mapped_source import LEAVES, LeftOverReport, MappedSource, TensorSlice
from kerasdiff.errors import ModelError
from kerasdiff.models.networks import NETWORKS
from kerasdiff.runtime.safetensors_map import TensorFiles

_LOG = logging.getLogger("kerasdiff")


def files(folder: pathlib.Path, variant: str | None) -> Callable[[str], list[pathlib.Path]]:
    """The files of each network's weights."""
    return lambda network: weight_files(folder / COMPONENTS[network].folder, COMPONENTS[network].stem, variant)


def autoencoder_files(folder: pathlib.Path, variant: str | None) -> Callable[[str], list[pathlib.Path]]:
    """The same of an autoencoder's own folder."""
    return lambda network: weight_files(folder, COMPONENTS[network].stem, variant)


def has_autoencoder(folder: pathlib.Path, variant: str | None) -> bool:
    """Whether all files of an autoencoder's weights are in its folder, in the variant or another."""
    try:
        return all(path.is_file() for path in autoencoder_files(folder, variant)("decoder"))
    except ModelError:
        return False


def torch_stem(stem: str) -> str:
    """How the names of a component's `.bin` files begin."""
    return "pytorch_model" if stem == "model" else stem


def source(files: Callable[[str], list[pathlib.Path]]) -> Callable[..., MappedSource]:
    """Where each network's parameters come from."""
    report = LeftOverReport()

    def of(network: str, shapes: Callable[[], dict[str, tuple[int, ...]]]) -> MappedSource:
        component = COMPONENTS[network]
        found = MappedSource(TensorFiles(files(network)), shapes(), component.slices, component.is_unread)
        report(str(files(network)[0]), found.left_over)
        return found

    return of


def text_encoders_in(folder: pathlib.Path) -> list[str]:
    """The text encoders of a model, which are those that its index names, or those with a folder; one at least."""
    index, both = folder / "model_index.json", ["text_encoder", "text_encoder_2"]
    if not index.is_file():
        return [name for name in both if (folder / name).is_dir()] or both[:1]
    entries = read_json(index)
    return [name for name in both if isinstance(entries.get(name), list) and any(entries[name])] or both[:1]


def tokenizer_of(encoder: str) -> str:
    """The folder of a text encoder's tokenizer."""
    return encoder.replace("text_encoder", "tokenizer")


def needed_in(folder: pathlib.Path) -> list[str]:
    """The networks that every image of a model needs."""
    encoders = text_encoders_in(folder)
    needed = (name for name, spec in NETWORKS.items() if spec.text_to_image)
    return [name for name in needed if name in encoders or not name.startswith("text_encoder")]


def check(folder: pathlib.Path, variant: str | None) -> None:
    """Raises ModelError if a file is missing that every image needs; weights are not read."""
    needed = [folder / "scheduler" / "scheduler_config.json"]
    for network in needed_in(folder):
        needed += [folder / COMPONENTS[network].folder / "config.json", *files(folder, variant)(network)]
    for file in needed:
        if not file.is_file():
            raise ModelError(f"there is no {file}")


def has_weights(folder: pathlib.Path, network: str, variant: str | None) -> bool:
    """Whether all files of a network's weights are there, in the variant or another that is taken instead."""
    try:
        return all(path.is_file() for path in files(folder, variant)(network))
    except ModelError:
        return False


def variants(names: Iterable[str], stem: str) -> dict[str | None, str]:
    """The sets of weights among a component's files: variant, None for the plain one -> its file or index.

    PyTorch's own `.bin` files count where there is no such set of safetensors.
    """
    names = sorted(names, key=lambda name: ("index" in name, name))
    found: dict[str | None, str] = {}
    for kind in (rf"{stem}#\.safetensors", rf"{torch_stem(stem)}#\.bin"):
        pattern = kind.replace("#", r"(\.(?P<file>[^.]+))?") + r"(\.index(\.(?P<index>[^.]+))?\.json)?"
        for match in (re.fullmatch(pattern, name) for name in names):
            if match and not re.fullmatch(r".*-\d{5}-of-\d{5}", match["file"] or ""):
                found.setdefault(match["file"] or match["index"], match[0])
    return found


def chosen(found: Collection[str | None], variant: str | None) -> str | None:
    """The variant that is taken: the one that was asked for, else the plain one, else the only one.

    Raises KeyError if there is none, or several without a plain one.
    """
    if variant in found or None in found:
        return variant if variant in found else None
    if len(found) != 1:
        raise KeyError(variant)
    return next(iter(found))


def with_shards(name: str) -> list[str]:
    """What is to be had of a set of weights: its file, or its index and a pattern of the files that this names."""
    return [name, f"{name.partition('.')[0]}-*"] if name.endswith(".json") else [name]


def check_variant(where: object, found: Collection[str | None], variant: str | None) -> None:
    """Raises ModelError if none of a model's sets of weights is the variant."""
    if variant is not None and found and variant not in found:
        there = ", ".join(sorted(repr(name) for name in found if name is not None)) or "none"
        raise ModelError(f"{where} has no variant {variant!r} of any network; variants that it has: {there}")


def report_variants(folder: pathlib.Path, variant: str | None) -> None:
    """Logs one warning if networks come in other variants than the one that was asked for.

    Raises ModelError if none comes in it.
    """
    taken: dict[str, str | None] = {}
    everything: set[str | None] = set()
    for component in {component.folder: component for component in COMPONENTS.values()}.values():
        found = variants(_names(folder / component.folder), component.stem)
        everything |= found.keys()
        with contextlib.suppress(KeyError):  # said when the file is wanted
            taken[component.folder] = chosen(found, variant)
    check_variant(folder, everything, variant)
    others = ", ".join(f"{name} ({kind or 'plain'})" for name, kind in taken.items() if kind != variant)
    if others and variant is None:
        _LOG.warning("%s has only a variant of some weights, which is taken: %s", folder, others)
    elif others:
        warnings.warn(
            f"{folder} has variant {variant!r} of some networks only; taken for the others: {others}", stacklevel=2
        )


def _names(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def weight_files(folder: pathlib.Path, stem: str, variant: str | None) -> list[pathlib.Path]:
    found = variants(_names(folder), stem)
    with contextlib.suppress(KeyError):
        path = folder / found[chosen(found, variant)]
        return _shards(folder, path) if path.suffix == ".json" else [path]
    name = stem if variant is None else f"{stem}.{variant}"
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    what = f"it has {', '.join(others)}" if others else "it has no .safetensors file at all"
    if others:
        rename = f"rename the right one (several parts need {name}.safetensors.index.json as well)"
        what += "; " + ("choose one with variant=" if found else rename)
    raise ModelError(f"{folder} has no {name}.safetensors; {what}")


def _shards(folder: pathlib.Path, index: pathlib.Path) -> list[pathlib.Path]:
    shards = JsonSettings(index).get("weight_map", {}, dict).values()
    if not shards:
        raise ModelError(f"{index} names no files")
    if not all(isinstance(shard, str) and re.fullmatch(r"[\w.-]+\.(safetensors|bin)", shard) for shard in shards):
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
    path = re.sub(r"^(layers\.\d+)\.conv$", r"\1", path)  # of a small one, whose layer doubles as well
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
    if path == "text_projection":
        yield TensorSlice(f"{path}.{leaf}")
        return
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


# How the names begin of what training leaves: copies of the weights, losses, counters.
_TRAINING = ("model_ema.", "loss.", "epoch", "global_step", "embedding_manager.")


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
        return key.startswith((*self.unread, *_TRAINING)) or key.endswith(self.unread)


# The rest of a whole CLIP.
_CLIP_REST = ("embeddings.position_ids", "text_projection.weight", "logit_scale", "vision_model.", "visual_projection.")
COMPONENTS = {
    "text_encoder": Component("text_encoder", "model", _text_slices, _CLIP_REST),
    "text_encoder_2": Component("text_encoder_2", "model", _text_slices, _CLIP_REST),
    "unet": Component("unet", "diffusion_pytorch_model", _unet_slices),
    "decoder": Component("vae", "diffusion_pytorch_model", _vae_slices, ("encoder.", "quant_conv.")),
    "encoder": Component("vae", "diffusion_pytorch_model", _vae_slices, ("decoder.", "post_quant_conv.")),
    "safety_checker": Component("safety_checker", "model", _safety_slices, ("embeddings.position_ids",)),
}
