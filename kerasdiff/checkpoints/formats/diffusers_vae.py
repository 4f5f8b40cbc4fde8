"""The settings of diffusers' autoencoders, large and small: read to a configuration, and written from one."""

from collections.abc import Mapping
from typing import Any

from kerasdiff.checkpoints.formats import fixed_settings
from kerasdiff.checkpoints.formats.json_settings import JsonSettings, written
from kerasdiff.errors import ModelError
from kerasdiff.models.network_configs import AnyVAEConfig, TinyVAEConfig, VAEConfig

# Our name of a setting -> their name, and their default.
_Table = Mapping[str, tuple[str, Any]]
_VAE: _Table = {
    "layers_per_level": ("layers_per_block", 1),
    "latent_channels": ("latent_channels", 4),
    "norm_groups": ("norm_num_groups", 32),
    "scaling_factor": ("scaling_factor", 0.18215),
}
_TINY_VAE: _Table = {
    "latent_channels": ("latent_channels", 4),
    "activation": ("act_fn", "relu"),
    "latent_magnitude": ("latent_magnitude", 3.0),
    "latent_shift": ("latent_shift", 0.5),
    "scaling_factor": ("scaling_factor", 1.0),
}
# Our names of a half's width and numbers of blocks -> theirs, which have an entry per level, and the defaults.
_TINY_LEVELS = {
    ("encoder_width", "encoder_blocks"): ("encoder_block_out_channels", "num_encoder_blocks", [1, 3, 3, 3]),
    ("decoder_width", "decoder_blocks"): ("decoder_block_out_channels", "num_decoder_blocks", [3, 3, 3, 1]),
}
_VAE_READ = ("block_out_channels", "down_block_types", "up_block_types")


def vae_config(settings: JsonSettings, usual: VAEConfig) -> AnyVAEConfig:
    """An autoencoder; one of the large kind that states no scaling factor has the `usual` one's.

    Only Stable Diffusion XL looks at `force_upcast`: where the usual one has it, it is what the settings say.
    """
    if settings.get("_class_name", None, str) == "AutoencoderTiny":
        return _tiny_vae(settings)
    widths = settings.numbers("block_out_channels", [64])
    settings = settings.per_level({"layers_per_block": [True] * len(widths)})
    settings.require(fixed_settings.VAE, fixed_settings.VAE_MEANINGS)
    known = (key for key, _ in _VAE.values())
    settings.report_unknown((*known, *_VAE_READ, *fixed_settings.VAE, *fixed_settings.VAE_UNREAD))
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if settings.get(name, [kind], list) != [kind] * len(widths):
            raise ModelError(f"{settings.path}: {name} must be {kind!r} at all {len(widths)} levels")
    fields = settings.fields({**_VAE, "scaling_factor": ("scaling_factor", usual.scaling_factor)})
    fields["force_upcast"] = usual.force_upcast and settings.get("force_upcast", True, bool)
    return settings.made(VAEConfig, widths=widths, norm_epsilon=1e-6, **fields)


def _tiny_vae(settings: JsonSettings) -> TinyVAEConfig:
    settings.require(fixed_settings.TINY_VAE)
    fields = settings.fields(_TINY_VAE)
    fields |= {name: float(value) for name, value in fields.items() if type(value) is int and name != "latent_channels"}
    fields["activation"] = {"swish": "silu"}.get(fields["activation"], fields["activation"])
    for (width, blocks), (widths_key, blocks_key, usual) in _TINY_LEVELS.items():
        counts = settings.get(blocks_key, usual, list)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ModelError(f"{settings.path}: {blocks_key}={counts!r:.80} must hold whole numbers")
        widths = settings.numbers(widths_key, [64] * len(counts))
        if len(widths) != len(counts) or len(set(widths)) != 1:
            raise ModelError(
                f"{settings.path}: {widths_key}={list(widths)!r:.80} is not supported; the same at all "
                f"{len(counts)} levels of {blocks_key} is"
            )
        fields |= {width: widths[0], blocks: tuple(counts)}
    known = (key for key, _ in _TINY_VAE.values())
    levels = (key for keys in _TINY_LEVELS.values() for key in keys[:2])
    settings.report_unknown((*known, *levels, *fixed_settings.TINY_VAE, *fixed_settings.TINY_VAE_UNREAD))
    return settings.made(TinyVAEConfig, **fields)


def vae_settings(vae: AnyVAEConfig) -> dict[str, Any]:
    """The config.json of an autoencoder."""
    if isinstance(vae, VAEConfig):
        return {
            "_class_name": "AutoencoderKL",
            "block_out_channels": list(vae.widths),
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.widths),
            "force_upcast": vae.force_upcast,
            **written(vae, _VAE),
        }
    levels: dict[str, list[int]] = {}
    for (width, blocks), (widths_key, blocks_key, _) in _TINY_LEVELS.items():
        counts = list(getattr(vae, blocks))
        levels |= {widths_key: [getattr(vae, width)] * len(counts), blocks_key: counts}
    return {"_class_name": "AutoencoderTiny", **levels, **written(vae, _TINY_VAE)}
