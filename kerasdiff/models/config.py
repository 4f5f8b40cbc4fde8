"""The configuration of a model: frozen values that its networks are built from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from kerasdiff.models.config_checks import (
    check,
    check_choice,
    check_heads,
    check_levels,
    check_scaling_factor,
    check_size,
    check_sizes,
)

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
MIDDLES = ("attention", "plain", None)
TINY_VAE_ACTIVATIONS = ("relu", "silu", "gelu", "mish")
BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """A CLIP text transformer. `activation` is "quick_gelu" (CLIP), "gelu" (OpenCLIP) or "gelu_tanh" (KerasCV's).

    `mlp_width` is the inner width of the feed-forward layers; None is four times `width`.
    """

    vocab_size: int = 49408
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    max_length: int = 77
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    mlp_width: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "width", "num_layers", "num_heads", "max_length")
        check_heads(self.width, self.num_heads)
        check_choice("activation", self.activation, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The denoising network; tuples have one entry per resolution level, finest first.

    `middle` is what follows the coarsest level: "attention" is two residual blocks around a transformer, "plain" one
    residual block, None nothing. At a level with `only_cross_attention`, what is elsewhere attention of the pixels to
    each other reads the text as well; () is none.

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
        attends = self.middle == "attention" or any(self.attention)
        check(attends, "a U-Net without attention at any level and in its middle reads no text")

    @property
    def embeds_guidance(self) -> bool:
        """Whether the weight of guidance is an input, so that a step needs no second half without the prompt."""
        return self.time_cond_proj_dim is not None

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
    """The autoencoder between images and latents; every level but the last halves the size."""

    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_level: int = 2
    norm_groups: int = 32
    norm_epsilon: float = 1e-5
    scaling_factor: float = 0.18215

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
class SafetyCheckerConfig:
    """The safety filter of Stable Diffusion 1.x: a CLIP vision transformer and its preprocessing.

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
    num_concepts: int = 17
    num_special: int = 3
    resize: int | tuple[int, ...] = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        check_sizes(self, "image_size", "patch_size", "width", "num_layers", "num_heads", "mlp_width", "projection")
        check_sizes(self, "num_concepts", "num_special")
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


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule that a model was trained with, and what its U-Net predicts.

    The names are those of diffusers' scheduler settings. `trained_betas` replaces the other betas.
    `rescale_betas_zero_snr` leaves no signal at the last timestep. `steps_offset` is what spacing "leading" adds;
    `set_alpha_to_one` says whether DDIM and PNDM end without noise. None leaves it to the sampler.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"] = (
        "scaled_linear"
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow_prediction"] = "epsilon"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    steps_offset: int | None = None
    set_alpha_to_one: bool | None = None

    def __post_init__(self) -> None:
        check_size("num_train_timesteps", self.num_train_timesteps)
        if self.trained_betas is not None:
            check(
                len(self.trained_betas) == self.num_train_timesteps,
                f"trained_betas has {len(self.trained_betas)} entries for {self.num_train_timesteps} timesteps",
            )
            check(
                all(isinstance(beta, int | float) and 0 < beta < 1 for beta in self.trained_betas),
                "trained_betas must lie between 0 and 1",
            )
        else:
            check(
                0 < self.beta_start <= self.beta_end < 1,
                f"betas must rise within 0 and 1, not from {self.beta_start} to {self.beta_end}",
            )
        check_choice("beta schedule", self.beta_schedule, BETA_SCHEDULES)
        check_choice("prediction type", self.prediction_type, PREDICTION_TYPES)


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Defaults of a request; spacing None is the sampler's own. `sampler_options` go with `sampler` alone.

    `recipe` replaces the others where a request asks for none. `loras` and `embeddings` are a generator's own; files of
    models have none.
    """

    height: int = 512
    width: int = 512
    sampler: str = "dpmpp_2m"
    spacing: str | None = None
    num_steps: int = 25
    guidance_scale: float = 7.5
    sampler_options: tuple[tuple[str, Any], ...] = ()
    loras: tuple[Any, ...] = ()
    embeddings: tuple[Any, ...] = ()
    recipe: str | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model: its networks, the schedule that they were trained with, and defaults.

    `other_encoder` is that of another autoencoder than `vae`, where only a decoder took the place of a model's own.
    """

    text_encoder: TextEncoderConfig = TextEncoderConfig()
    unet: UNetConfig = UNetConfig()
    vae: AnyVAEConfig = VAEConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    defaults: Defaults = Defaults()
    safety_checker: SafetyCheckerConfig | None = None
    other_encoder: AnyVAEConfig | None = None

    def __post_init__(self) -> None:
        check(
            self.text_encoder.width == self.unet.context_width,
            f"the U-Net reads context of width {self.unet.context_width}, "
            f"the text encoder gives {self.text_encoder.width}",
        )
        sizes = [(half.latent_channels, half.factor) for half in (self.vae, self.encoder)]
        check(
            sizes[0] == sizes[1],
            "an encoder to {} channels of 1/{} the size does not go with a decoder of {} channels and {} times".format(
                *sizes[1], *sizes[0]
            ),
        )

    @property
    def encoder(self) -> AnyVAEConfig:
        """What the encoder is built from."""
        return self.vae if self.other_encoder is None else self.other_encoder

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net has channels for a mask and a picture; such a model generates only into masked pictures."""
        return self.unet.in_channels == 2 * self.vae.latent_channels + 1

    @property
    def latent_factor(self) -> int:
        """Pixels per side of one latent pixel."""
        return self.vae.factor

    @property
    def size_multiple(self) -> int:
        """Height and width of an image are multiples of this."""
        return self.latent_factor

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` takes them."""
        values = dataclasses.asdict(self)
        if self.other_encoder is None:
            del values["other_encoder"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_json` after a trip through JSON (lists become tuples)."""

        def part(name: str, made: type) -> Any:
            items = values[name].items()
            return made(**{key: _tuples(value) for key, value in items})

        def autoencoder(name: str) -> Any:
            return part(name, TinyVAEConfig if "decoder_blocks" in values[name] else VAEConfig)

        guarded = values.get("safety_checker") is not None  # older files do not say
        return cls(
            part("text_encoder", TextEncoderConfig),
            part("unet", UNetConfig),
            autoencoder("vae"),
            part("schedule", ScheduleConfig),
            part("defaults", Defaults),
            part("safety_checker", SafetyCheckerConfig) if guarded else None,
            autoencoder("other_encoder") if "other_encoder" in values else None,
        )


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


SD_V1_VAE = VAEConfig()
SD_V1 = ModelConfig(vae=SD_V1_VAE, schedule=ScheduleConfig(steps_offset=1))
SD_V2 = ModelConfig(
    schedule=ScheduleConfig(steps_offset=1),
    text_encoder=TextEncoderConfig(width=1024, num_layers=23, num_heads=16, activation="gelu_tanh"),
    unet=UNetConfig(num_heads=(5, 10, 20, 20), context_width=1024),
)
TINY_VAE = VAEConfig(widths=(16, 32, 64, 64), layers_per_level=1, norm_groups=8, scaling_factor=1.0)
TINY = ModelConfig(
    text_encoder=TextEncoderConfig(vocab_size=628, width=128, num_layers=4, num_heads=4),
    unet=UNetConfig(
        widths=(64, 128),
        layers_per_level=1,
        attention=(False, True),
        num_heads=(4, 4),
        context_width=128,
        norm_groups=8,
    ),
    vae=TINY_VAE,
    schedule=ScheduleConfig(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="v_prediction"),
    defaults=Defaults(height=128, width=128, spacing="trailing", num_steps=20, guidance_scale=3.0),
)
