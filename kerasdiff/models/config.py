"""The configuration of a model: frozen values that its networks are built from."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from kerasdiff.models.config_checks import (
    check,
    check_choice,
    check_size,
)
from kerasdiff.models.network_configs import (
    AnyVAEConfig,
    SafetyCheckerConfig,
    TextEncoderConfig,
    TinyVAEConfig,
    UNetConfig,
    VAEConfig,
)

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
# Names of families for people.
FAMILIES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sdxl_refiner": "the refiner of Stable Diffusion XL",
}
BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")


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
    A model has one text encoder or both; what they make of a token is joined, the first one's first. With
    `force_zeros_for_empty_prompt`, a negative prompt that is not given is zeros, not the embeddings of "". `refiner` is
    a model that was opened beside it to finish its images; files say nothing of it.
    """

    text_encoder: TextEncoderConfig | None = TextEncoderConfig()
    unet: UNetConfig = UNetConfig()
    vae: AnyVAEConfig = VAEConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    defaults: Defaults = Defaults()
    safety_checker: SafetyCheckerConfig | None = None
    other_encoder: AnyVAEConfig | None = None
    text_encoder_2: TextEncoderConfig | None = None
    force_zeros_for_empty_prompt: bool = False
    refiner: ModelConfig | None = None

    def __post_init__(self) -> None:
        encoders = self.text_encoders.values()
        check(bool(encoders), "a model needs a text encoder")
        context = sum(encoder.width for encoder in encoders)
        check(
            context == self.unet.context_width,
            f"the U-Net reads context of width {self.unet.context_width}, the text encoder gives {context}",
        )
        pooled = [encoder.projection for encoder in encoders if encoder.projection is not None]
        if self.unet.pooled_width is not None:
            check(
                pooled == [self.unet.pooled_width],
                f"the U-Net reads a pooled embedding of width {self.unet.pooled_width}, the encoders give {pooled}",
            )
        sizes = [(half.latent_channels, half.factor) for half in (self.vae, self.encoder)]
        check(
            sizes[0] == sizes[1],
            "an encoder to {} channels of 1/{} the size does not go with a decoder of {} channels and {} times".format(
                *sizes[1], *sizes[0]
            ),
        )

    @property
    def text_encoders(self) -> dict[str, TextEncoderConfig]:
        """The text encoders, by the names of their networks, in the order in which their embeddings are joined."""
        both = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: config for name, config in both.items() if config is not None}

    @property
    def main_text_encoder(self) -> TextEncoderConfig:
        """The first of them, whose tokens prompts are counted in."""
        return next(iter(self.text_encoders.values()))

    @property
    def most_clip_skip(self) -> int:
        """How many layers `clip_skip` may leave out of each text encoder, so that there is one left."""
        encoders = self.text_encoders.values()
        return min(encoder.num_layers - encoder.skipped_layers for encoder in encoders) - 1

    @property
    def family(self) -> str:
        """What LoRAs and other parts must be made for: "sd1", "sd2", "sdxl" or "sdxl_refiner"."""
        if self.unet.embeds_sizes:
            return "sdxl" if self.text_encoder is not None else "sdxl_refiner"
        return "sd2" if self.unet.context_width == SD_V2.unet.context_width else "sd1"

    @property
    def encoder(self) -> AnyVAEConfig:
        """What the encoder is built from."""
        return self.vae if self.other_encoder is None else self.other_encoder

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net has channels for a mask and a picture; such a model generates only into masked pictures."""
        return self.unet.in_channels == 2 * self.vae.latent_channels + 1

    @property
    def edits(self) -> bool:
        """Whether the U-Net has channels for a picture that a text says how to change (InstructPix2Pix)."""
        return self.unet.in_channels == 2 * self.vae.latent_channels and self.unet.may_edit

    @property
    def needs_pictures(self) -> bool:
        """Whether the model generates nothing from a text alone."""
        return self.inpaints or self.edits

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
        for name in ("other_encoder", "text_encoder_2", "refiner"):
            if values[name] is None or name == "refiner":
                del values[name]
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
            None if values["text_encoder"] is None else part("text_encoder", TextEncoderConfig),
            part("unet", UNetConfig),
            autoencoder("vae"),
            part("schedule", ScheduleConfig),
            part("defaults", Defaults),
            part("safety_checker", SafetyCheckerConfig) if guarded else None,
            autoencoder("other_encoder") if "other_encoder" in values else None,
            part("text_encoder_2", TextEncoderConfig) if "text_encoder_2" in values else None,
            bool(values.get("force_zeros_for_empty_prompt", False)),
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
_CLIP_L = TextEncoderConfig(mlp_width=3072, skipped_layers=1, final_norm=False)
_OPEN_CLIP_G = TextEncoderConfig(
    width=1280,
    num_layers=32,
    num_heads=20,
    activation="gelu",
    mlp_width=5120,
    skipped_layers=1,
    final_norm=False,
    projection=1280,
)
_SDXL_UNET = UNetConfig(
    widths=(320, 640, 1280),
    attention=(False, True, True),
    num_heads=(5, 10, 20),
    context_width=2048,
    gelu="erf",
    transformer_epsilon=1e-6,
    transformer_depth=(1, 2, 10),
    pooled_width=1280,
)
SDXL_VAE = VAEConfig(norm_epsilon=1e-6, scaling_factor=0.13025, force_upcast=True)
SDXL = ModelConfig(
    text_encoder=_CLIP_L,
    unet=_SDXL_UNET,
    vae=SDXL_VAE,
    schedule=ScheduleConfig(steps_offset=1, set_alpha_to_one=False),
    defaults=Defaults(height=1024, width=1024, sampler="euler", spacing="leading", guidance_scale=5.0),
    text_encoder_2=_OPEN_CLIP_G,
    force_zeros_for_empty_prompt=True,
)
SDXL_REFINER = dataclasses.replace(
    SDXL,
    text_encoder=None,
    unet=UNetConfig(
        widths=(384, 768, 1536, 1536),
        attention=(False, True, True, False),
        num_heads=(6, 12, 24, 24),
        context_width=1280,
        gelu="erf",
        transformer_epsilon=1e-6,
        transformer_depth=(4, 4, 4, 4),
        pooled_width=1280,
        num_time_ids=5,
    ),
    force_zeros_for_empty_prompt=False,
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
# SDXL's shape on the embedded model: its first text encoder and its autoencoder are that model's.
TINY_XL = dataclasses.replace(
    TINY,
    text_encoder=dataclasses.replace(TINY.main_text_encoder, skipped_layers=1, final_norm=False),
    unet=dataclasses.replace(
        TINY.unet,
        context_width=192,
        gelu="erf",
        transformer_epsilon=1e-6,
        transformer_depth=(1, 2),
        up_transformer_depth=(1, 1),
        pooled_width=64,
        time_id_width=32,
    ),
    text_encoder_2=TextEncoderConfig(
        vocab_size=628,
        width=64,
        num_layers=3,
        num_heads=4,
        activation="gelu",
        skipped_layers=1,
        final_norm=False,
        projection=64,
    ),
    force_zeros_for_empty_prompt=True,
)
