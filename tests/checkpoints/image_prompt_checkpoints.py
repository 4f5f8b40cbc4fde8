"""Small IP-Adapters in the layout of published files, and an image encoder of transformers, with random weights."""

from __future__ import annotations

import pathlib

import safetensors.torch
import torch
from checkpoints import transformers


def image_encoder(seed: int = 0, **settings):
    """CLIP's vision transformer with its projection, as IP-Adapters read it."""
    torch.manual_seed(seed)
    defaults = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 18,
        "patch_size": 6,
        "projection_dim": 24,
        "hidden_act": "gelu",
    }
    made = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**defaults | settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def ip_adapter(unet, kind: str, encoder, seed: int = 0, tokens: int = 4) -> dict[str, torch.Tensor]:
    """The tensors of an IP-Adapter for a U-Net of diffusers, as published files name them.

    `kind` is "plain", "plus" or "full".
    """
    generator = torch.Generator().manual_seed(seed)
    context, (projection, hidden) = unet.config.cross_attention_dim, (encoder.config.projection_dim, 32)
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name, width):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def dense(name, outputs, inputs, bias=True):
        shapes.update({f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})})

    if kind == "plain":
        dense("image_proj.proj", tokens * context, projection)
        norm("image_proj.norm", context)
    elif kind == "full":
        dense("image_proj.proj.0", encoder.config.hidden_size, encoder.config.hidden_size)
        dense("image_proj.proj.2", context, encoder.config.hidden_size)
        norm("image_proj.proj.3", context)
    else:
        shapes["image_proj.latents"] = (1, tokens, hidden)
        dense("image_proj.proj_in", hidden, encoder.config.hidden_size)
        dense("image_proj.proj_out", context, hidden)
        norm("image_proj.norm_out", context)
        for layer in (f"image_proj.layers.{index}" for index in range(4)):
            for name in ("0.norm1", "0.norm2", "1.0"):
                norm(f"{layer}.{name}", hidden)
            for name, outputs, inputs in (("q", 128, hidden), ("kv", 256, hidden), ("out", hidden, 128)):
                dense(f"{layer}.0.to_{name}", outputs, inputs, False)
            dense(f"{layer}.1.1", 4 * hidden, hidden, False)
            dense(f"{layer}.1.3", hidden, 4 * hidden, False)
    reading = (module for name, module in unet.named_modules() if name.endswith("attn2"))
    for number, attention in enumerate(reading):
        for part in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * number + 1}.{part}.weight"] = (attention.inner_dim, context)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        tensors[name] = (
            0.3 * values + (name.endswith("weight") and len(shape) == 1)
            if len(shape) == 1
            else (values / shape[-1] ** 0.5)
        )
    return tensors


def save_ip_adapter(path: pathlib.Path, tensors: dict[str, torch.Tensor], encoder=None) -> pathlib.Path:
    """A file of these tensors; its image encoder is beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            nested[part][rest] = value
        torch.save(nested, path)
    if encoder is not None:
        encoder.save_pretrained(path.parent / "image_encoder")
    return path
