"""What values of configurations are refused, with a ModelError of one line."""

from typing import Any

from kerasdiff.errors import ModelError

_MOST_LEVELS = 8
_LARGEST = {
    "num_layers": 128,
    "layers_per_level": 32,
    "width": 2**16,
    "num_train_timesteps": 10**5,
    "image_size": 2**12,
    "resize": 2**12,
}


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)


def check_size(name: str, value: int) -> None:
    # A settings file from a stranger must not make us build for ever.
    limit = _LARGEST.get(name, 10**6)
    check(1 <= value <= limit, f"{name}={value} is out of range; it must be between 1 and {limit}")


def check_sizes(config: Any, *names: str) -> None:
    for name in names:
        check_size(name, getattr(config, name))


def check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    check(value in known, f"unknown {what} {value!r}; known: {', '.join(known)}")


def check_scaling_factor(value: float) -> None:
    check(0 < value < 1e6, f"scaling_factor {value} is not a positive number")


def check_heads(width: int, num_heads: int) -> None:
    check(width % num_heads == 0, f"width {width} is not a multiple of {num_heads} heads")


def check_levels(widths: tuple[int, ...], norm_groups: int) -> None:
    levels = len(widths)
    check(1 <= levels <= _MOST_LEVELS, f"{levels} levels are out of range; 1 to {_MOST_LEVELS} can be built")
    for width in widths:
        check_size("width", width)
        check(width % norm_groups == 0, f"width {width} is not a multiple of {norm_groups} groups")


def check_depths(name: str, depths: tuple[int | tuple[int, ...], ...], levels: int, blocks: int) -> None:
    """Depths of transformers: per level one number, or one per block that a transformer follows."""
    check(len(depths) in (0, levels), f"{name} needs {levels} entries, one per level, or none")
    for depth in depths:
        counts = (depth,) if isinstance(depth, int) else depth
        fits = isinstance(depth, int) or len(depth) == blocks
        check(fits, f"{name}={depths!r:.80} needs one number per level, or {blocks} of them")
        for count in counts:
            check(isinstance(count, int) and 0 <= count <= 64, f"{name}={depths!r:.80} is out of range; 0 to 64 blocks")
