"""Small networks that steer a model, made by diffusers, with random weights in place of zeros."""

from __future__ import annotations

import torch
from checkpoints import diffusers
from xl_checkpoints import unet_name


def controlnet(unet, seed: int = 0, gain: float = 0.3, **settings):
    """A ControlNet for a U-Net of diffusers, whose residuals are not zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        config = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False).config
        # A U-Net for inpainting, or a distilled one, has ordinary ControlNets.
        defaults = {"conditioning_embedding_out_channels": (16, 24, 32, 32), "in_channels": 4}
        made = diffusers.ControlNetModel.from_config({**config, **defaults, **settings})
        own = made.state_dict()
        fits = {name: value for name, value in unet.state_dict().items() if name in own}
        made.load_state_dict({name: value for name, value in fits.items() if value.shape == own[name].shape}, False)
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


def original(net, prefix: str = "control_model.") -> dict[str, torch.Tensor]:
    """A ControlNet's tensors with the names of the original layout, as single files have them."""
    state = net.state_dict()
    attends = {key.split(".attentions.")[0] for key in state if ".attentions." in key}
    last = 2 * len(net.config.conditioning_embedding_out_channels) * 2 - 2
    found = {}
    for key, value in state.items():
        path, _, leaf = key.rpartition(".")
        part, _, rest = path.partition(".")
        if part == "controlnet_cond_embedding":
            number = {"conv_in": 0, "conv_out": last}.get(rest) if "." not in rest else 2 * int(rest.split(".")[1]) + 2
            name = f"input_hint_block.{number}.{leaf}"
        elif part == "controlnet_down_blocks":
            name = f"zero_convs.{rest}.0.{leaf}"
        elif part == "controlnet_mid_block":
            name = f"middle_block_out.0.{leaf}"
        else:
            name = unet_name(key, net.config.layers_per_block, attends)
        found[prefix + name] = value.contiguous()
    return found
