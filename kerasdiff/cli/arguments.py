"""What the flags of python -m kerasdiff say, as arguments of functions."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.cli import options as flags
from kerasdiff.errors import RequestError


def jit_compile() -> bool | str:
    """What --jit_compile says."""
    return {"true": True, "false": False}.get(flags.JIT_COMPILE.value, "auto")


def seed() -> int | list[int] | None:
    """What --seed says."""
    return one_or_all(_numbers(flags.SEED, int))


def source() -> dict[str, Any]:
    """Where the model comes from, as arguments beside `model`."""
    return {"weights": flags.WEIGHTS.value, "revision": flags.REVISION.value, "variant": flags.VARIANT.value}


def arguments() -> dict[str, Any]:
    """What the flags say of a request, but for prompts, their number and seeds.

    Raises:
        RequestError: a list has something else than numbers.
    """
    return {
        "negative_prompt": one_or_all(flags.NEGATIVE_PROMPT.value),
        "height": flags.HEIGHT.value,
        "width": flags.WIDTH.value,
        "num_steps": flags.NUM_STEPS.value,
        "guidance_scale": _weights(),
        "guidance_interval": _numbers(flags.GUIDANCE_INTERVAL),
        "guidance_rescale": flags.GUIDANCE_RESCALE.value,
        "sampler": flags.SAMPLER.value,
        "sampler_options": _options(flags.SAMPLER_OPTIONS.value) or None,
        "spacing": flags.SPACING.value,
        "timesteps": _numbers(flags.TIMESTEPS),
        "sigmas": _numbers(flags.SIGMAS),
        "rng": flags.RNG.value,
        "long_prompts": flags.LONG_PROMPTS.value,
        **pictures(),
        "strength": one_or_all(_numbers(flags.STRENGTH)),
        "resize": flags.RESIZE.value,
        "feather": flags.FEATHER.value,
        "safety": flags.SAFETY.value,
        "exact": flags.EXACT.value,
    }


def pictures() -> dict[str, Any]:
    """What the flags say of pictures to start from."""
    return {"image": one_or_all(flags.IMAGE.value), "mask": one_or_all(flags.MASK.value)}


def _weights() -> Any:
    """Guidance: of a flag that was given once a number or a list, of one that was given several times nested lists."""
    given = flags.GUIDANCE_SCALE.value
    if given is None:
        return None
    each = [_read("guidance_scale", texts.split(","), float) for texts in given]
    return one_or_all(each[0]) if len(each) == 1 else each


def _numbers(flag: Any, kind: type = float) -> Any:
    return None if flag.value is None else _read(flag.name, flag.value, kind)


def _read(name: str, texts: Sequence[str], kind: type) -> list[Any]:
    try:
        return [kind(text) for text in texts]
    except ValueError:
        expected = "a whole number or a list of them" if kind is int else "a number or a list of them"
        raise RequestError(f"{name}={validation.line(','.join(texts))} is not {expected}") from None


def one_or_all(values: Any) -> Any:
    """The only value of a list by itself."""
    return values[0] if values is not None and len(values) == 1 else values


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """What ["name=value", ...] says, numbers and truth values as such."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise RequestError(f"sampler_options={','.join(pairs)}: {pair!r} is not of the form name=value")
        try:
            found[name] = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            found[name] = text
    return found
