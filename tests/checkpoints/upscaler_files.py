"""Upscalers with random numbers in the published layouts, and what they compute, in plain torch."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

Tensors = dict[str, torch.Tensor]


def _conv(rng: np.random.Generator, name: str, out: int, into: int, side: int = 3, gain: float = 1.0) -> Tensors:
    kernel = rng.standard_normal((out, into, side, side)) * gain / (into * side**2) ** 0.5
    bias = {} if side == 1 else {f"{name}.bias": torch.tensor(0.1 * rng.standard_normal(out), dtype=torch.float32)}
    return {f"{name}.weight": torch.tensor(kernel, dtype=torch.float32), **bias}


def rrdb(
    features: int = 8, blocks: int = 2, growth: int = 4, doublings: int = 2, unshuffle: int = 1, plus: bool = False
) -> Tensors:
    """Tensors of an RRDBNet as Real-ESRGAN names them."""
    rng = np.random.default_rng([features, blocks, doublings, unshuffle])
    tensors = _conv(rng, "conv_first", features, 3 * unshuffle**2)
    for block in range(blocks):
        for number in (1, 2, 3):
            name = f"body.{block}.rdb{number}"
            for index in range(5):
                out = features if index == 4 else growth
                tensors |= _conv(rng, f"{name}.conv{index + 1}", out, features + index * growth)
            if plus:
                tensors |= _conv(rng, f"{name}.conv1x1", growth, features, 1)
    tensors |= _conv(rng, "conv_body", features, features)
    for number in range(doublings):
        tensors |= _conv(rng, f"conv_up{number + 1}", features, features, gain=1.4)
    tensors |= _conv(rng, "conv_hr", features, features, gain=1.4) | _conv(rng, "conv_last", 3, features, gain=0.2)
    tensors["conv_last.bias"] += 0.5
    return tensors


def compact(features: int = 8, blocks: int = 2, scale: int = 4) -> Tensors:
    """Tensors of an SRVGGNetCompact."""
    rng = np.random.default_rng([features, blocks, scale])
    tensors: Tensors = {}
    for index in range(blocks + 1):
        tensors |= _conv(rng, f"body.{2 * index}", features, features if index else 3, gain=1.4)
        tensors[f"body.{2 * index + 1}.weight"] = torch.tensor(0.3 * rng.random(features), dtype=torch.float32)
    return tensors | _conv(rng, f"body.{2 * blocks + 2}", 3 * scale**2, features, gain=0.1)


def bsrgan(tensors: Tensors) -> Tensors:
    """The same in BSRGAN's names."""
    words = {"conv_body": "trunk_conv", "conv_up": "upconv", "conv_hr": "HRconv"}
    named = {}
    for name, tensor in tensors.items():
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        named[re.sub(r"body\.(\d+)\.rdb", r"RRDB_trunk.\1.RDB", name)] = tensor
    return named


def old_esrgan(tensors: Tensors) -> Tensors:
    """The same in the names of the first ESRGAN, whose modules are counted."""
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))
    up = 3 * sum(re.fullmatch(r"conv_up\d\.weight", name) is not None for name in tensors)
    places = {"conv_first": "0", "conv_body": f"1.sub.{blocks}", "conv_hr": f"{up + 2}", "conv_last": f"{up + 4}"}
    places |= {f"conv_up{number}": f"{3 * number}" for number in (1, 2, 3)}
    named = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        block = re.fullmatch(r"body\.(\d+)\.rdb(\d)\.(\w+)", module)
        if block is not None:
            inner = block[3] if block[3] == "conv1x1" else f"{block[3]}.0"
            named[f"model.1.sub.{block[1]}.RDB{block[2]}.{inner}.{leaf}"] = tensor
        else:
            named[f"model.{places[module]}.{leaf}"] = tensor
    return named


def save(tensors: Tensors, path: pathlib.Path) -> pathlib.Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def reference(tensors: Tensors, pictures: np.ndarray) -> np.ndarray:
    """What the network makes of pictures (B, h, w, 3), in torch and in float64.

    spandrel 0.4.2 gives the same to 1e-14 for each of these networks and layouts. It is no requirement of the tests, as
    it needs a torchvision that fits torch.
    """
    x = torch.tensor(pictures, dtype=torch.float64).permute(0, 3, 1, 2)
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    made = _of_compact(tensors, x) if "body.0.weight" in tensors else _of_rrdb(tensors, x)
    return made.permute(0, 2, 3, 1).numpy()


def _through(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    kernel = tensors[f"{name}.weight"]
    return functional.conv2d(x, kernel, tensors.get(f"{name}.bias"), padding=kernel.shape[-1] // 2)


def _of_compact(tensors: Tensors, pictures: torch.Tensor) -> torch.Tensor:
    last = max(int(name.split(".")[1]) for name in tensors)
    x = pictures
    for index in range(0, last, 2):
        x = functional.prelu(_through(tensors, f"body.{index}", x), tensors[f"body.{index + 1}.weight"])
    scale = round((tensors[f"body.{last}.weight"].shape[0] / 3) ** 0.5)
    enlarged = pictures.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return functional.pixel_shuffle(_through(tensors, f"body.{last}", x), scale) + enlarged


def _of_rrdb(tensors: Tensors, pictures: torch.Tensor) -> torch.Tensor:
    def leaky(x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(x, 0.2)

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        grown = [x]
        for index in (1, 2, 3, 4):
            more = leaky(_through(tensors, f"{name}.conv{index}", torch.cat(grown, 1)))
            if f"{name}.conv1x1.weight" in tensors:
                more = more + {2: _through(tensors, f"{name}.conv1x1", x), 4: grown[2] if index == 4 else 0}.get(
                    index, 0
                )
            grown.append(more)
        return x + 0.2 * _through(tensors, f"{name}.conv5", torch.cat(grown, 1))

    unshuffle = round((tensors["conv_first.weight"].shape[1] / 3) ** 0.5)
    x = first = _through(tensors, "conv_first", functional.pixel_unshuffle(pictures, unshuffle))
    block = 0
    while f"body.{block}.rdb1.conv1.weight" in tensors:
        inner = x
        for number in (1, 2, 3):
            inner = dense(f"body.{block}.rdb{number}", inner)
        x, block = x + 0.2 * inner, block + 1
    x = first + _through(tensors, "conv_body", x)
    for number in (1, 2, 3):
        if f"conv_up{number}.weight" in tensors:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = leaky(_through(tensors, f"conv_up{number}", x))
    return _through(tensors, "conv_last", leaky(_through(tensors, "conv_hr", x)))
