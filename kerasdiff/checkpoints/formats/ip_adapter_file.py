"""Files of IP-Adapters, in the layout of h94/IP-Adapter: `image_proj.*` and `ip_adapter.N.to_k_ip.weight`.

Their configuration follows from the shapes of their tensors.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator

from kerasdiff.checkpoints.checkpoint import Checkpoint, Shapes
from kerasdiff.checkpoints.file_stamps import FileStamps
from kerasdiff.checkpoints.formats.image_encoder_folder import (
    image_encoder_config,
    image_encoder_files,
    image_encoder_slices,
    is_other,
)
from kerasdiff.checkpoints.image_encoders import find_image_encoder
from kerasdiff.checkpoints.mapped_source import LEAVES, LeftOverReport, MappedSource, TensorSlice
from kerasdiff.errors import ModelError
from kerasdiff.models.blocks import cross_attentions
from kerasdiff.models.config import FAMILIES, ModelConfig
from kerasdiff.models.control_configs import ControlModel, IPAdapterConfig
from kerasdiff.runtime.safetensors_map import TensorFiles

_READ = "kerasdiff reads the plain ones, Plus and full-face"
# How much an attention reads of a token -> the family in which it does so.
_CONTEXTS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
# What InsightFace gives of a face, which InstantID's resampler reads.
_FACE_WIDTH = 512


def is_ip_adapter(tensors: TensorFiles) -> bool:
    """Whether a file is one, of whatever kind."""
    return any(key.startswith(("image_proj.", "ip_adapter.")) for key in tensors)


def open_ip_adapter(path: pathlib.Path, model: ModelConfig, name: str, encoder: str | None = None) -> Checkpoint:
    """An IP-Adapter and its image encoder, that in the folder `encoder` or beside it, as a model of these networks.

    Its `config` is a `ControlModel`; `name` is what it was asked for by.

    Raises:
        ModelError: it cannot be read, is of a kind that is not, or was made for another family than `model`; or it has
            no image encoder.
    """
    config, report = ip_adapter_config(TensorFiles([path]), model), LeftOverReport()
    folder = find_image_encoder(path, config, name, encoder)
    files = {"ip_adapter": [path], "image_encoder": image_encoder_files(folder)}
    slices = {"ip_adapter": _slices, "image_encoder": image_encoder_slices}

    def source(network: str, shapes: Callable[[], Shapes]) -> MappedSource:
        tensors, ignored = TensorFiles(files[network]), is_other if network == "image_encoder" else lambda key: False
        made = MappedSource(tensors, shapes(), slices[network], ignored)
        report(tensors.where, made.left_over)
        return made

    found = ControlModel(ip_adapter=config, image_encoder=image_encoder_config(folder))
    stamps = FileStamps.of(path, folder)
    return Checkpoint(path.stem, found, None, source, files.__getitem__, stamps=stamps)  # type: ignore[arg-type]


def ip_adapter_config(tensors: TensorFiles, model: ModelConfig) -> IPAdapterConfig:
    """What the shapes of an IP-Adapter tell; `model` is what it steers."""
    _refuse_faces(tensors)
    shape = lambda name, sides: _shape(tensors, name, sides)  # noqa: E731
    if "image_proj.latents" in tensors:
        _, tokens, width = shape("image_proj.latents", 3)
        context, embedding = shape("image_proj.proj_out.weight", 2)[0], shape("image_proj.proj_in.weight", 2)[1]
        layers = map(re.compile(r"image_proj\.layers\.(\d+)\.0\.to_q\.weight").fullmatch, tensors)
        depth = 1 + max((int(match[1]) for match in layers if match), default=0)
        heads = shape("image_proj.layers.0.0.to_q.weight", 2)[0] // IPAdapterConfig.HEAD_WIDTH
        mlp = shape("image_proj.layers.0.1.1.weight", 2)[0]
        config = IPAdapterConfig(model.unet, "plus", embedding, tokens, width, depth, heads, mlp)
    elif "image_proj.proj.3.weight" in tensors:
        (context,), embedding = shape("image_proj.proj.3.weight", 1), shape("image_proj.proj.0.weight", 2)[1]
        config = IPAdapterConfig(model.unet, "full", embedding)
    elif "image_proj.proj.weight" in tensors:
        (context,), (rows, embedding) = shape("image_proj.norm.weight", 1), shape("image_proj.proj.weight", 2)
        config = IPAdapterConfig(model.unet, "plain", embedding, rows // context)
    else:
        raise ModelError(f"{tensors.where} is no IP-Adapter that is known here; {_READ}")
    _check_family(tensors, context, model)
    return config


def _refuse_faces(tensors: TensorFiles) -> None:
    """Raises ModelError for those that read faces as InsightFace sees them."""
    resampler, lora = (any(part in key for key in tensors) for part in ("perceiver_resampler.", ".to_q_lora."))
    portrait = {"image_proj.proj.0.weight", "image_proj.norm.weight"} <= {*tensors}
    first = "image_proj.proj_in.weight"
    instant = first in tensors and tensors.shape(first)[-1:] == (_FACE_WIDTH,)
    if resampler or lora or portrait or instant:
        name = "InstantID's IP-Adapter" if instant else "an IP-Adapter of FaceID"
        raise ModelError(
            f"{tensors.where} is {name}, which reads faces as InsightFace sees them; {_READ}: for faces use "
            "ip-adapter-plus-face or ip-adapter-full-face"
        )


def _shape(tensors: TensorFiles, name: str, sides: int) -> tuple[int, ...]:
    shape = tensors.shape(name) if name in tensors else ()
    if len(shape) != sides or 0 in shape:
        what = f"has shape {list(shape)}" if name in tensors else "is missing"
        raise ModelError(f"{tensors.where} is no whole IP-Adapter: {name} {what}")
    return shape


def _check_family(tensors: TensorFiles, context: int, model: ModelConfig) -> None:
    """Raises ModelError if it was made for other attentions than those of a model."""
    widths, unet = [*cross_attentions(model.unet).values()], model.unet
    theirs = sum(key.endswith(".to_k_ip.weight") for key in tensors)
    if context == unet.context_width and theirs == len(widths):
        return
    family = _CONTEXTS.get(context)
    if family not in (None, model.family):
        reason = f"made for {FAMILIES[family]}, and this model is {FAMILIES[model.family]}"
    elif context != unet.context_width:
        reason = f"made for texts of {context} numbers a token, and this model has {unet.context_width}"
    else:
        reason = f"made for {theirs} attentions to the text, and this model has {len(widths)}"
    raise ModelError(f"{tensors.where} is an IP-Adapter {reason}; use one of its family")


def _slices(name: str) -> Iterator[TensorSlice]:
    path, _, leaf = name.partition(".")[2].rpartition(".")
    yield TensorSlice(f"{path}.{LEAVES.get(leaf, leaf)}")
