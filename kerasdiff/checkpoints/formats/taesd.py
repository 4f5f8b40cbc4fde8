"""Files of a small autoencoder (TAESD): both halves with diffusers' names, or one or both with their first ones.

Those number the layers of `torch.nn.Sequential`: "1.weight", "3.conv.0.weight"; the decoder's first layer, which has no
tensors, is not counted in diffusers. Widths and numbers of blocks follow from names and shapes.
"""

import itertools
import pathlib
import re
from collections.abc import Callable

from kerasdiff.errors import ModelError
from kerasdiff.models.network_configs import TinyVAEConfig
from kerasdiff.runtime.safetensors_map import TensorFiles

_KEY = re.compile(r"(?:(?:taesd_)?(encoder|decoder)\.)?(layers\.)?(\d{1,4})\.((?:conv\.\d+\.)?(?:weight|bias))")
# What other programs add to say how their latents are scaled.
UNREAD = ("vae_scale", "vae_shift")
HALVES = ("encoder", "decoder")


def is_tiny(names: TensorFiles) -> bool:
    """Whether a file's tensors are those of a small autoencoder or of a half of one."""
    return any(_KEY.fullmatch(name) and re.search(r"\d\.conv\.", name) for name in names)


def open_tiny(paths: list[pathlib.Path]) -> tuple[TinyVAEConfig, dict[str, TensorFiles]]:
    """The configuration, and the tensors of each half that is there, with diffusers' names.

    What it says of a half that is not there means nothing.
    """
    halves: dict[str, TensorFiles] = {}
    for path in paths:
        tensors = TensorFiles([path], _usual_names(TensorFiles([path])))
        halves |= {half: tensors for half in HALVES if any(name.startswith(f"{half}.layers.") for name in tensors)}
    fields: dict[str, int | tuple[int, ...]] = {}
    for half, tensors in halves.items():
        width, blocks, channels = _half(tensors, half)
        if fields.setdefault("latent_channels", channels) != channels:
            raise ModelError(f"{tensors.where}: its encoder gives other latents than its decoder reads")
        fields |= {f"{half}_width": width, f"{half}_blocks": blocks}
    for half, other in (HALVES, HALVES[::-1]):
        if half not in halves:
            fields[f"{half}_blocks"] = fields[f"{other}_blocks"]
    try:
        return TinyVAEConfig(**fields), halves  # type: ignore[arg-type]
    except ModelError as error:
        raise ModelError(f"{paths[0]}: {error}") from None


def _usual_names(names: TensorFiles) -> Callable[[str], str]:
    """A function to diffusers' name of a tensor."""
    alone = "encoder" if "0.weight" in names else "decoder"

    def usual(name: str) -> str:
        match = _KEY.fullmatch(name)
        if match is None:
            return name
        half, layers, index, rest = match.groups(default="")
        half = half or alone
        return f"{half}.layers.{int(index) - (half == 'decoder' and not layers)}.{rest}"

    return usual


def _half(tensors: TensorFiles, half: str) -> tuple[int, tuple[int, ...], int]:
    """Width, blocks per level and latent channels."""
    found = [re.match(rf"{half}\.layers\.(\d+)\.(conv\.0\.)?weight$", name) for name in tensors]
    blocks = {int(match[1]) for match in found if match and match[2]}
    convolutions = sorted(int(match[1]) for match in found if match and not match[2])
    if len(convolutions) < 2:
        raise ModelError(f"{tensors.where} has only a part of a small autoencoder's {half}")
    first, last = (tensors.shape(f"{half}.layers.{index}.weight") for index in (convolutions[0], convolutions[-1]))
    if len(first) != 4 or len(last) != 4:
        raise ModelError(f"{tensors.where} has a small autoencoder of another make")
    counts = tuple(sum(begin < block < end for block in blocks) for begin, end in itertools.pairwise(convolutions))
    return first[0], counts, last[0] if half == "encoder" else first[1]
