"""Small networks that steer a model, made by diffusers, with random weights in place of zeros."""

from __future__ import annotations

import torch
from checkpoints import diffusers


def controlnet(unet, seed: int = 0, gain: float = 0.3, **settings):
    """A ControlNet for a U-Net of diffusers, whose residuals are not zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        made = diffusers.ControlNetModel.from_unet(
            unet, **{"conditioning_embedding_out_channels": (16, 24, 32, 32)} | settings
        )
        for name, parameter in made.named_parameters():
            if name.startswith(("controlnet_", "time_embedding")):
                parameter.normal_(std=gain / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.02)
    return made.eval()


def t2i_adapter(unet, seed: int = 0, **settings):
    """A T2I-Adapter whose features have the channels of a U-Net of diffusers."""
    torch.manual_seed(seed)
    kind = settings.pop("adapter_type", "full_adapter")
    channels = settings.pop("channels", tuple(unet.config.block_out_channels))
    defaults = {"channels": channels, "num_res_blocks": 2, "downscale_factor": 8, "adapter_type": kind}
    return diffusers.T2IAdapter(**defaults | settings).eval()
