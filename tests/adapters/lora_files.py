"""LoRA files for tests, as kohya's scripts name their tensors."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

_TEXT = {"q_proj": "self_attn_q_proj", "v_proj": "self_attn_v_proj", "fc1": "mlp_fc1"}


def write_lora(path, shapes, seed, rank=4, size=0.1, networks=("unet", "text_encoder"), layers=("to_q", "to_v", "ff")):
    """Random pairs for some layers of networks whose parameters have `shapes`, by network; returns the path."""
    rng, tensors = np.random.default_rng(seed), {}
    for network in networks:
        for name, shape in shapes[network].items():
            parts = name.split(".")[1:-1]
            if not name.endswith(".kernel"):
                continue
            if network == "unet" and {*layers} & {*parts}:
                module = "lora_unet_" + "_".join(parts)
            elif network == "text_encoder" and parts[-1] in _TEXT:
                module = f"lora_te_text_model_encoder_layers_{parts[1]}_{_TEXT[parts[-1]]}"
            else:
                continue
            inputs, outputs = shape[-2:]
            kernel = shape[:-2]
            pair = {"down": (rank, inputs, *kernel), "up": (outputs, rank, *(1 for _ in kernel))}
            for half, lengths in pair.items():
                values = rng.normal(0, size, lengths).astype("float32")
                tensors[f"{module}.lora_{half}.weight"] = values
            tensors[f"{module}.alpha"] = np.array(rank / 2, "float32")
    save_file(tensors, str(path))
    return path


def merged_by_hand(path, values, scales):
    """Parameters by name with a file of `write_lora` added to them, in plain NumPy."""
    from safetensors.numpy import load_file

    tensors, out = load_file(str(path)), {}
    for name, value in values.items():
        network, *parts, leaf = name.split(".")
        module = "lora_unet_" + "_".join(parts)
        if network == "text_encoder" and parts[-1] in _TEXT:
            module = f"lora_te_text_model_encoder_layers_{parts[1]}_{_TEXT[parts[-1]]}"
        out[name] = np.array(value, "float32")
        if leaf == "kernel" and f"{module}.lora_up.weight" in tensors:
            up, down = (tensors[f"{module}.lora_{half}.weight"] for half in ("up", "down"))
            scale = scales[network] * float(tensors[f"{module}.alpha"]) / len(down)
            change = scale * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
            kernel = change.reshape(len(up), *down.shape[1:])
            out[name] += kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0)
    return out
