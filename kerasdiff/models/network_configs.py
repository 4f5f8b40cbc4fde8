"""The configurations of networks: frozen values that they are built from."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from kerasdiff.models.config_checks import (
    check,
    check_choice,
    check_depths,
    check_heads,
    check_levels,
    check_scaling_factor,
    check_size,
    check_sizes,
)

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
MIDDLES = ("attention", "plain", None)
TINY_VAE_ACTIVATIONS = ("relu", "silu", "gelu", "mish")


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """A CLIP text transformer. `activation` is "quick_gelu" (CLIP), "gelu" (OpenCLIP) or "gelu_tanh" (KerasCV's).

    `mlp_width` is the inner width of the feed-forward layers; None is four times `width`. Its embeddings leave out the
    last `skipped_layers`, and go through the final norm or not. `projection` is the width of a pooled embedding, which
    is made of all layers; None is an encoder without.
    """

    vocab_size: int = 49408
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    max_length: int = 77
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    mlp_width: int | None = None
    skipped_layers: int = 0
    final_norm: bool = True
    projection: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "width", "num_layers", "num_heads", "max_length")
        fits = 0 <= self.skipped_layers < self.num_layers
        check(fits, f"skipped_layers={self.skipped_layers} leaves nothing of {self.num_layers} layers")
        if self.projection is not None:
            check_size("width", self.projection)
        check_heads(self.width, self.num_heads)
        check_choice("activation", self.activation, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The denoising network; tuples have one entry per resolution level, finest first.

    `middle` is what follows the coarsest level: "attention" is two residual blocks around a transformer, "plain" one
    residual block, None nothing. At a level with `only_cross_attention`, what is elsewhere attention of the pixels to
    each other reads the text as well; () is none. `transformer_depth` is how many transformer blocks follow a residual
    block, one number per level or one per residual block of it, `up_transformer_depth` the same where it differs in the
    second half; () is one everywhere, or the same.

    `pooled_width` is the width of a pooled text embedding that is an input beside the text, together with
    `num_time_ids` numbers (sizes and the like), each as sinusoids `time_id_width` wide (Podell et al. 2023, SDXL,
    arXiv:2307.01952); None is a network without.

    In `gelu` and `transformer_epsilon` the references differ: KerasCV has "tanh" and 1e-5, the original and diffusers
    have "erf" and 1e-6. `time_cond_proj_dim` is the width of the embedding in which a latent consistency model takes
    the weight of guidance (Luo et al. 2023, arXiv:2310.04378); None is a network without.
    """

    in_channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_level: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    context_width: int = 768
    norm_groups: int = 32
    gelu: Literal["tanh", "erf"] = "tanh"
    transformer_epsilon: float = 1e-5
    norm_epsilon: float = 1e-5
    middle: Literal["attention", "plain"] | None = "attention"
    only_cross_attention: tuple[bool, ...] = ()
    time_cond_proj_dim: int | None = None
    transformer_depth: tuple[int | tuple[int, ...], ...] = ()
    up_transformer_depth: tuple[int | tuple[int, ...], ...] = ()
    pooled_width: int | None = None
    num_time_ids: int = 6
    time_id_width: int = 256

    def __post_init__(self) -> None:
        check_sizes(self, "in_channels", "out_channels", "layers_per_level", "context_width", "norm_groups")
        if self.time_cond_proj_dim is not None:
            least, most = 4, 2**16  # two frequencies, or their distance is not known
            fits = least <= self.time_cond_proj_dim <= most
            check(fits, f"time_cond_proj_dim={self.time_cond_proj_dim} must be between {least} and {most}")
        check_levels(self.widths, self.norm_groups)
        levels = len(self.widths)
        check(len(self.attention) == levels, f"attention needs {levels} entries, one per level")
        check(len(self.num_heads) == levels, f"num_heads needs {levels} entries, one per level")
        check(
            len(self.only_cross_attention) in (0, levels),
            f"only_cross_attention needs {levels} entries, one per level, or none",
        )
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            check_heads(width, heads)
        check_choice("gelu", self.gelu, ("tanh", "erf"))
        check(self.middle in MIDDLES, f"unknown middle {self.middle!r:.80}; known: {', '.join(map(str, MIDDLES))}")
        for name, blocks in (
            ("transformer_depth", self.layers_per_level),
            ("up_transformer_depth", self.layers_per_level + 1),
        ):
            check_depths(name, getattr(self, name), levels, blocks)
        # What means the same is equal.
        down, up = self._plain_depths(), self._plain_depths(up=True)
        object.__setattr__(self, "transformer_depth", () if set(down) == {1} else down)
        object.__setattr__(self, "up_transformer_depth", ())
        if up != self._plain_depths(up=True):
            object.__setattr__(self, "up_transformer_depth", up)
        if self.pooled_width is not None:
            check_size("width", self.pooled_width)
            for name in ("num_time_ids", "time_id_width"):
                check(1 <= getattr(self, name) <= 2**12, f"{name}={getattr(self, name)} is out of range")
        attends = self.middle == "attention" or any(self.attention)
        check(attends, "a U-Net without attention at any level and in its middle reads no text")

    @property
    def may_edit(self) -> bool:
        """Whether such U-Nets with channels for a picture that is edited are read."""
        return not self.embeds_sizes and not self.embeds_guidance

    @property
    def embeds_guidance(self) -> bool:
        """Whether the weight of guidance is an input, so that a step needs no second half without the prompt."""
        return self.time_cond_proj_dim is not None

    @property
    def embeds_sizes(self) -> bool:
        """Whether a pooled text embedding, and numbers such as sizes, are inputs."""
        return self.pooled_width is not None

    def depths(self, level: int, up: bool = False) -> tuple[int, ...]:
        """How many transformer blocks follow each residual block of a level, in the second half with one more."""
        count = self.layers_per_level + up
        given = (self.up_transformer_depth if up else ()) or self.transformer_depth
        depth = given[level] if given else 1
        if isinstance(depth, int):
            return (depth,) * count
        return depth if len(depth) == count else (*depth, depth[-1])

    def _plain_depths(self, up: bool = False) -> tuple[int | tuple[int, ...], ...]:
        """One number for blocks of the same depth, 1 where nothing attends; the middle has the last level's first."""
        found: list[int | tuple[int, ...]] = []
        for level, attends in enumerate(self.attention):
            last = level == len(self.widths) - 1 and self.middle == "attention" and not up
            depths = self.depths(level, up) if attends else self.depths(level)[:1] if last else (1,)
            found.append(depths[0] if len(set(depths)) == 1 else depths)
        return tuple(found)

    @property
    def branches(self) -> int:
        """How many skip connections there are."""
        return len(self.widths) * (self.layers_per_level + 1)

    @property
    def finest_attention(self) -> int:
        """The finest level with attention, which may be the middle's."""
        return self.attention.index(True) if any(self.attention) else len(self.widths) - 1

    @property
    def large(self) -> bool:
        """Whether a step spends its time in arithmetic, as the full-size networks do."""
        return max(self.widths) >= 512


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The autoencoder between images and latents; every level but the last halves the size.

    With `force_upcast` its numbers leave the range of float16, and it runs in float32 where the others have float16.
    """

    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_level: int = 2
    norm_groups: int = 32
    norm_epsilon: float = 1e-5
    scaling_factor: float = 0.18215
    force_upcast: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "latent_channels", "layers_per_level", "norm_groups")
        check_scaling_factor(self.scaling_factor)
        check_levels(self.widths, self.norm_groups)

    @property
    def factor(self) -> int:
        """Pixels per side of one latent pixel."""
        return 2 ** (len(self.widths) - 1)


@dataclasses.dataclass(frozen=True)
class TinyVAEConfig:
    """A small autoencoder without norms and attention, of the kind of TAESD (github.com/madebyollin/taesd).

    `encoder_blocks` and `decoder_blocks` are numbers of residual blocks per level, in the order in which data pass
    through them; each half has one width at all levels. `latent_magnitude` and `latent_shift` say how such latents are
    stored as bytes; no image depends on them.
    """

    latent_channels: int = 4
    encoder_width: int = 64
    decoder_width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    activation: Literal["relu", "silu", "gelu", "mish"] = "relu"
    latent_magnitude: float = 3.0
    latent_shift: float = 0.5
    scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        check_sizes(self, "latent_channels")
        check_scaling_factor(self.scaling_factor)
        check_choice("activation", self.activation, TINY_VAE_ACTIVATIONS)
        for width, blocks in ((self.encoder_width, self.encoder_blocks), (self.decoder_width, self.decoder_blocks)):
            check_levels((width,) * len(blocks), 1)
            for count in blocks:
                check_size("layers_per_level", max(count, 1))
        check(
            len(self.encoder_blocks) == len(self.decoder_blocks),
            f"an encoder of {len(self.encoder_blocks)} levels does not go with a decoder of {len(self.decoder_blocks)}",
        )

    @property
    def factor(self) -> int:
        """Pixels per side of one latent pixel."""
        return 2 ** (len(self.decoder_blocks) - 1)


AnyVAEConfig = VAEConfig | TinyVAEConfig


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """A CLIP vision transformer and its preprocessing; `projection` is the width of an embedding.

    An image is resized until its shorter side is `resize`, or to a height and width if these are two numbers. The
    `image_size` x `image_size` pixels in its middle are scaled to 0 to 1 and normalised with `mean` and `std`, one
    number per colour.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int = 4096
    projection: int = 768
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    resize: int | tuple[int, ...] = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        check_sizes(self, "image_size", "patch_size", "width", "num_layers", "num_heads", "mlp_width", "projection")
        check(
            self.patch_size <= self.image_size, f"patches of {self.patch_size} do not fit into {self.image_size} pixels"
        )
        check_heads(self.width, self.num_heads)
        check_choice("activation", self.activation, ACTIVATIONS)
        resize = (self.resize,) * 2 if isinstance(self.resize, int) else self.resize
        check(len(resize) == 2, f"resize={self.resize} must be one number, or a height and a width")
        for size in resize:
            check_size("resize", size)
        for name, least in (("mean", -math.inf), ("std", 0)):
            values = getattr(self, name)
            fits = all(isinstance(value, int | float) and least < value < math.inf for value in values)
            kind = "numbers" if name == "mean" else "positive numbers"
            check(fits and len(values) == 3, f"{name}={values!r:.80} must be three {kind}")

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class SafetyCheckerConfig(CLIPVisionConfig):
    """The safety filter of Stable Diffusion 1.x."""

    num_concepts: int = 17
    num_special: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "num_concepts", "num_special")
