"""What the tensors of one module of an adapter make of a weight: the arithmetic of every kind, in torch's layout.

`KINDS` is the table. A kind says how it is known by its tensors, which shape its change has (from shapes alone, before
anything is computed, so that no file can ask for more than the weight's own size), and what it makes of the weight.

Most kinds give W + factor * change, where factor is strength * alpha / rank. The others, for a strength s:

- IA3 multiplies inputs or outputs by 1 + s * w.
- OFT and BOFT multiply by I + s * (R - I), one stage after the other, and by 1 + s * (rescale - 1), as LyCORIS does
  but for `rescale`, which it applies in full at every strength.
- DoRA gives W + s * (W' - W), as AUTOMATIC1111's interface and ComfyUI do. W' is W + change brought to the lengths in
  `dora_scale`; the lengths it had are those of W + change on either axis, as in LyCORIS and peft. For other strengths
  these two give something else, which is not W at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from kerasdiff.errors import ModelError

Tensors = Mapping[str, np.ndarray]
# Of a change: (outputs, inputs * height * width) or (outputs, inputs, height, width); None is any.
_Shape = tuple[int | None, ...]

# An inpainting or depth model's first convolution has up to 9 inputs, of which these, the latents, are the first.
_LATENTS, _MOST_INPUTS = 4, 9


class Kind(NamedTuple):
    """A kind of adapter: suffixes of tensors that mark it, others that it may have, and what it computes.

    `measure` gives shape and rank of its change and reads shapes only; `change` gives a new weight for a factor.
    `known` tells kinds with the same marks apart.
    """

    marks: tuple[str, ...]
    others: tuple[str, ...]
    measure: Callable[[Tensors], tuple[_Shape, int | None]]
    change: Callable[[Tensors, np.ndarray, float], np.ndarray]
    known: Callable[[Tensors], bool] = lambda _: True


def changed(tensors: Tensors, weight: np.ndarray, strength: float) -> np.ndarray:
    """A weight as one module of an adapter changes it: a new array.

    Args:
        tensors: by their suffixes in kohya's and LyCORIS' spelling; float32. peft's magnitudes are a vector
            "dora_scale": of more than one axis, (1, n, 1, 1) are lengths by input.
        weight: float32, (outputs, inputs), (outputs, inputs, height, width) or (outputs,). Of a first convolution with
            more inputs than latents have, a change of 4 inputs changes the first 4.
        strength: 0 gives the weight back, bit by bit.

    Raises:
        ModelError: the tensors are of no known kind, or fit neither each other nor the weight.
    """
    kind, inputs = KINDS[_name(tensors)], check(tensors, weight.shape)
    factor = _scale(tensors, measured(tensors)[1])
    if not strength:
        return weight.copy()
    part = weight.reshape(len(weight), -1, *weight.shape[2:])[:, :inputs]
    with np.errstate(over="ignore", invalid="ignore"):
        if "dora_scale" in tensors:
            new = _decomposed(tensors, part, kind.change(tensors, part, factor), strength)
        else:
            new = kind.change(tensors, part, strength * factor)
    if new.size < weight.size:
        new = np.concatenate([new, weight[:, inputs:]], axis=1)
    return new.reshape(weight.shape)


def check(tensors: Tensors, weight: tuple[int, ...]) -> int:
    """How many inputs of a weight of this shape the tensors change. Reads shapes only, and raises as `changed` does."""
    shape, whole = measured(tensors)[0], (weight[0], weight[1] if len(weight) > 1 else 1, *weight[2:])
    inputs = next((number for number in _inputs(whole) if _fits(shape, (whole[0], number, *whole[2:]))), None)
    lengths = [math.prod(tensors[suffix].shape) for suffix in ("dora_scale", "weight") if suffix in tensors]
    if inputs is None or any(length not in (whole[0], inputs) for length in lengths):
        raise ModelError(f"{_shapes(tensors)} do not fit a weight of {weight}")
    return inputs


def measured(tensors: Tensors) -> tuple[_Shape, int | None]:
    """The shape of the change, and its rank if it has one. Reads shapes only, and raises as `changed` does."""
    return KINDS[_name(tensors)].measure(tensors)


def kind_of(tensors: Tensors) -> str:
    """A name of `KINDS`, or "DoRA". "LoCon" is LoRA of a convolution larger than 1 x 1.

    Reads shapes only, and raises a ModelError as `changed` does.
    """
    name = _name(tensors)
    return "DoRA" if "dora_scale" in tensors else name


def _name(tensors: Tensors) -> str:
    names = [
        name for name, kind in KINDS.items() if any(mark in tensors for mark in kind.marks) and kind.known(tensors)
    ]
    if len(names) != 1:
        raise ModelError(f"{_shapes(tensors)} are of {'more than one' if names else 'no known'} kind of adapter")
    (name,) = names
    unknown = [suffix for suffix in tensors if suffix not in (*KINDS[name].marks, *KINDS[name].others)]
    if unknown:
        raise ModelError(f"{', '.join(unknown)} has no meaning in {name}")
    return name


def _inputs(weight: tuple[int, ...]) -> list[int]:
    inputs = weight[1]
    return [inputs, _LATENTS] if len(weight) == 4 and _LATENTS < inputs <= _MOST_INPUTS else [inputs]


def _fits(shape: _Shape, weight: tuple[int, ...]) -> bool:
    full = (*weight, 1, 1)[:4] if len(shape) == 4 else (weight[0], math.prod(weight[1:]))
    return all(length in (None, there) for length, there in zip(shape, full, strict=True))


def _shapes(tensors: Tensors) -> str:
    return ", ".join(f"{suffix} {tuple(tensor.shape)}" for suffix, tensor in tensors.items())


def _check(tensors: Tensors, condition: bool) -> None:
    if not condition:
        raise ModelError(f"{_shapes(tensors)} do not fit together")


def _shape(tensors: Tensors, suffix: str, *axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with one of these numbers of axes."""
    if suffix not in tensors:
        raise ModelError(f"{suffix} is missing beside {_shapes(tensors)}")
    shape = tuple(tensors[suffix].shape)
    _check(tensors, len(shape) in axes and 0 not in shape)
    return shape


def _number(tensors: Tensors, suffix: str) -> float:
    tensor = tensors[suffix]
    if tensor.size != 1 or not np.isfinite(tensor).all():
        raise ModelError(f"{suffix} must be a number, not {tensor if tensor.size == 1 else tensor.shape}")
    return float(tensor.reshape(()))


def _scale(tensors: Tensors, rank: int | None) -> float:
    """`scale`, or else alpha / rank. Alpha is the rank if it is 0 or missing."""
    if "scale" in tensors:
        return _number(tensors, "scale")
    alpha = _number(tensors, "alpha") if "alpha" in tensors else 0
    return alpha / rank if alpha and rank else 1.0


def _measured_pair(tensors: Tensors, left: str, right: str, core: str) -> tuple[tuple[int, ...], int]:
    """Two factors (outputs, rank) and (rank, inputs...), or with a core (Tucker) (rank, outputs) and (rank, inputs)."""
    first, second = _shape(tensors, left, 2), _shape(tensors, right, 2, 4)
    if core not in tensors:
        _check(tensors, first[1] == second[0])
        return (first[0], *second[1:]), second[0]
    middle = _shape(tensors, core, 4)
    # One rank, so that nothing in between is larger than a factor times the kernel.
    _check(tensors, len(second) == 2 and first[0] == second[0] and middle[:2] == (first[0], second[0]))
    return (first[1], second[1], *middle[2:]), second[0]


def _product(left: np.ndarray, right: np.ndarray, core: np.ndarray | None) -> np.ndarray:
    """What `_measured_pair` measured, as a matrix."""
    if core is None:
        return left @ right.reshape(len(right), -1)
    between = right.T @ core.reshape(*core.shape[:2], -1)
    return left.T @ between.reshape(len(between), -1)


def _sum(change: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Both, in the memory of the change."""
    change = change.reshape(weight.shape)
    change += weight
    return change


def _measured_lora(tensors: Tensors) -> tuple[_Shape, int]:
    up, down = _shape(tensors, "lora_up.weight", 2, 4), _shape(tensors, "lora_down.weight", 2, 4)
    rank = down[0]
    _check(tensors, math.prod(up[1:]) == rank)
    if "lora_mid.weight" not in tensors:
        return (up[0], *down[1:]), rank
    middle = _shape(tensors, "lora_mid.weight", 4)
    _check(tensors, middle[:2] == (rank, rank) and math.prod(down[2:]) == 1)
    return (up[0], down[1], *middle[2:]), rank


def _lora(tensors: Tensors, weight: np.ndarray, factor: float) -> np.ndarray:
    up, down = (tensors[suffix].reshape(len(tensors[suffix]), -1) for suffix in ("lora_up.weight", "lora_down.weight"))
    up, core = up * factor, tensors.get("lora_mid.weight")
    return _sum(_product(up if core is None else up.T, down, core), weight)


def _is_convolution(tensors: Tensors) -> bool:
    down = tensors.get("lora_down.weight")
    return "lora_mid.weight" in tensors or (down is not None and math.prod(down.shape[2:]) > 1)


def _measured_loha(tensors: Tensors) -> tuple[_Shape, int]:
    (shape, rank), second = (
        _measured_pair(tensors, f"hada_w{number}_a", f"hada_w{number}_b", f"hada_t{number}") for number in (1, 2)
    )
    _check(tensors, shape == second[0])
    return shape, rank


def _loha(tensors: Tensors, weight: np.ndarray, factor: float) -> np.ndarray:
    change = _product(tensors["hada_w1_a"] * factor, tensors["hada_w1_b"], tensors.get("hada_t1"))
    change *= _product(tensors["hada_w2_a"], tensors["hada_w2_b"], tensors.get("hada_t2"))
    return _sum(change, weight)


def _measured_half(tensors: Tensors, half: str, *axes: int) -> tuple[tuple[int, ...], int | None]:
    left, right = f"{half}_a", f"{half}_b"
    if half not in tensors:
        return _measured_pair(tensors, left, right, half.replace("w", "t"))
    _check(tensors, left not in tensors and right not in tensors)
    return _shape(tensors, half, *axes), None


def _measured_lokr(tensors: Tensors) -> tuple[_Shape, int | None]:
    first, first_rank = _measured_half(tensors, "lokr_w1", 2)
    second, second_rank = _measured_half(tensors, "lokr_w2", 2, 4)
    _check(tensors, len(first) == 2)
    # Of two full halves there is no rank, and alpha has no meaning.
    return (first[0] * second[0], first[1] * second[1], *second[2:]), second_rank or first_rank


def _lokr(tensors: Tensors, weight: np.ndarray, factor: float) -> np.ndarray:
    """kron(w1, w2), where the kernel belongs to w2."""
    first, second = (
        tensors[half]
        if half in tensors
        else _product(tensors[f"{half}_a"], tensors[f"{half}_b"], tensors.get(half.replace("w", "t")))
        for half in ("lokr_w1", "lokr_w2")
    )
    return _sum((first * factor)[:, None, :, None] * second.reshape(len(second), 1, -1), weight)


def _measured_difference(tensors: Tensors) -> tuple[_Shape, None]:
    suffixes = [suffix for suffix in tensors if suffix not in _SCALES]
    _check(tensors, len(suffixes) == 1)
    shape = _shape(tensors, suffixes[0], 1, 2, 4)
    return (*shape, 1) if len(shape) == 1 else shape, None


def _difference(tensors: Tensors, weight: np.ndarray, factor: float) -> np.ndarray:
    (difference,) = (tensor for suffix, tensor in tensors.items() if suffix not in _SCALES)
    return _sum(difference * factor, weight)


def _measured_ia3(tensors: Tensors) -> tuple[_Shape, None]:
    _shape(tensors, "weight", 1, 2, 4)
    _shape(tensors, "on_input", 0, 1)
    return (None, None), None


def _ia3(tensors: Tensors, weight: np.ndarray, factor: float) -> np.ndarray:
    axis = 1 if _number(tensors, "on_input") else 0
    _check(tensors, tensors["weight"].size == weight.shape[axis])
    shape = np.ones(weight.ndim, int)
    shape[axis] = -1
    return weight * (1 + factor * tensors["weight"].reshape(shape))


def _axes(tensors: Tensors) -> set[int]:
    return {tensors[suffix].ndim for suffix in _OFT if suffix in tensors}


def _measured_rotation(tensors: Tensors) -> tuple[_Shape, None]:
    """Blocks (number, size, size), or (stages, number, size, size) each mixing twice as far as the last."""
    _check(tensors, ("oft_blocks" in tensors) != ("oft_diag" in tensors))
    *stages, number, rows, columns = _shape(tensors, "oft_blocks" if "oft_blocks" in tensors else "oft_diag", 3, 4)
    outputs = number * rows
    _check(tensors, rows == columns)
    _check(tensors, "rescale" not in tensors or math.prod(tensors["rescale"].shape) == outputs)
    for count in stages:
        _check(tensors, rows % 2 == 0 and count <= 64 and outputs % (2 ** (count - 1) * rows) == 0)
    return (outputs, None), None


def _turns(tensors: Tensors, outputs: int, strength: float) -> np.ndarray:
    """R - I, times strength. R is `oft_diag` (LyCORIS 2.0), or Cayley's transform of the skew part of `oft_blocks`.

    The skew part's norm is at most alpha * outputs, if there is an alpha, for kohya and LyCORIS alike.
    """
    if "oft_diag" in tensors:
        identity = np.eye(tensors["oft_diag"].shape[-1], dtype=np.float32)
        return (tensors["oft_diag"] - identity) * strength
    blocks = tensors["oft_blocks"]
    identity = np.eye(blocks.shape[-1], dtype=np.float32)
    skew = blocks - blocks.swapaxes(-1, -2)
    limit = _number(tensors, "alpha") * outputs if "alpha" in tensors else 0
    norm = float(np.linalg.norm(skew))
    if 0 < limit < norm:
        skew *= limit / norm
    # Turns of nearly half a circle, for which float32 would not do.
    if not np.abs(skew).max() <= 1000:
        raise ModelError("oft_blocks has values that are too large")
    # (I + Q) (I - Q)^-1 - I = (I - Q)^-1 2 Q
    return np.linalg.solve(identity - skew, (2 * strength) * skew)


def _rescaled(tensors: Tensors, weight: np.ndarray, strength: float) -> np.ndarray:
    if "rescale" in tensors:
        weight *= 1 + strength * (tensors["rescale"].reshape(-1, *[1] * (weight.ndim - 1)) - 1)
    return weight


def _oft(tensors: Tensors, weight: np.ndarray, strength: float) -> np.ndarray:
    turns = _turns(tensors, len(weight), strength)
    # Both trainers multiply by the transposed blocks.
    change = turns.swapaxes(-1, -2) @ weight.reshape(*turns.shape[:2], -1)
    return _rescaled(tensors, _sum(change, weight), strength)


def _boft(tensors: Tensors, weight: np.ndarray, strength: float) -> np.ndarray:
    rows = weight.reshape(len(weight), -1)
    for stage, turns in enumerate(_turns(tensors, len(weight), strength)):
        number, size, _ = turns.shape
        far = 2**stage * size // 2
        blocks = rows.reshape(-1, 2, far, rows.shape[1]).swapaxes(1, 2).reshape(number, size, -1)
        rows = _sum(turns @ blocks, blocks).reshape(-1, far, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return _rescaled(tensors, rows.reshape(weight.shape), strength)


def _glora_parts(tensors: Tensors) -> tuple[str, str, str, str]:
    """The suffixes of a1 (inputs, rank), a2 (rank, inputs), b1 (outputs, rank), b2 (rank, inputs).

    Before LyCORIS 3.0, 1 and 2 changed places.
    """
    now = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    before = ("a2.weight", "a1.weight", "b2.weight", "b1.weight")
    for suffix in now:
        _shape(tensors, suffix, 2, 4)
    a1, a2, b1, b2 = (tensors[suffix].shape for suffix in now)
    is_now, is_before = a1[1] == a2[0] == b1[1] == b2[0], a1[0] == a2[1] == b1[0] == b2[1]
    # Of a square weight both are; then the rank is the shorter side.
    return before if is_before and (not is_now or a1[0] < a1[1]) else now


def _measured_glora(tensors: Tensors) -> tuple[_Shape, int]:
    a1, a2, b1, b2 = (tensors[suffix].shape for suffix in _glora_parts(tensors))
    rank, inputs = a2[0], a2[1]
    _check(tensors, a1[:2] == (inputs, rank) and b1[1] == rank and b2[:2] == (rank, inputs))
    _check(tensors, all(math.prod(shape[2:]) == 1 for shape in (a1, a2, b1)))
    return (b1[0], *b2[1:]), rank


def _glora(tensors: Tensors, weight: np.ndarray, factor: float) -> np.ndarray:
    """W a1 a2 + b1 b2."""
    a1, a2, b1, b2 = (tensors[suffix].reshape(len(tensors[suffix]), -1) for suffix in _glora_parts(tensors))
    through = np.tensordot(np.tensordot(weight, a1 * factor, (1, 0)), a2, (-1, 0))
    return _sum(_sum((b1 * factor) @ b2, weight), np.moveaxis(through, -1, 1))


def _decomposed(tensors: Tensors, weight: np.ndarray, new: np.ndarray, strength: float) -> np.ndarray:
    """DoRA: a new weight with the lengths of `dora_scale`, by output or by input, and of it what strength says."""
    lengths = tensors["dora_scale"]
    by_input = lengths.ndim > 1 and lengths.shape[0] == 1 and lengths.size == weight.shape[1]
    axis = 1 if by_input else 0
    _check(tensors, lengths.size == weight.shape[axis])
    norms = np.square(new).sum(tuple({*range(weight.ndim)} - {axis}), keepdims=True)
    np.sqrt(norms, out=norms)
    norms += np.finfo(np.float32).eps
    new *= lengths.reshape(norms.shape) / norms
    if strength != 1:
        new -= weight
        new *= strength
        new += weight
    return new


_SCALES = ("alpha", "scale")
_LORA = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_OFT = ("oft_blocks", "oft_diag")
KINDS = {
    "LoRA": Kind(_LORA, (*_SCALES, "dora_scale"), _measured_lora, _lora, lambda tensors: not _is_convolution(tensors)),
    "LoCon": Kind(_LORA, (*_SCALES, "dora_scale"), _measured_lora, _lora, _is_convolution),
    "LoHa": Kind(_LOHA, (*_SCALES, "dora_scale"), _measured_loha, _loha),
    "LoKr": Kind(_LOKR, (*_SCALES, "dora_scale"), _measured_lokr, _lokr),
    "full": Kind(("diff", "diff_b"), _SCALES, _measured_difference, _difference),
    "norm": Kind(("w_norm", "b_norm"), _SCALES, _measured_difference, _difference),
    "IA3": Kind(("on_input",), ("weight", *_SCALES), _measured_ia3, _ia3),
    "OFT": Kind(_OFT, ("rescale", "alpha"), _measured_rotation, _oft, lambda t: 3 in _axes(t)),
    "BOFT": Kind(_OFT, ("rescale", "alpha"), _measured_rotation, _boft, lambda t: 4 in _axes(t)),
    "GLoRA": Kind(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), _SCALES, _measured_glora, _glora),
}
# How names of tensors may end, longer ones first: "weight" ends others.
_ALL = {suffix for kind in KINDS.values() for suffix in (*kind.marks, *kind.others)}
SUFFIXES = tuple(sorted(_ALL, key=lambda suffix: (-len(suffix), suffix)))
