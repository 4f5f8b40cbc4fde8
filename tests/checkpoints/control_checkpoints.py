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


def t2i_adapter(seed: int = 0, kind: str = "full_adapter", gain: float = 1.0, **settings):
    """A T2I-Adapter with random weights, whose features are so many times as large as diffusers' own would be."""
    torch.manual_seed(seed)
    made = diffusers.T2IAdapter(adapter_type=kind, **settings)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith(("adapter.conv_in", "adapter.body.0.in_conv")):
                parameter.mul_(gain)
    return made.eval()
