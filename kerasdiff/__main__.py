"""python -m kerasdiff "a prompt": draws images and saves them."""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from absl import app, flags

import kerasdiff
from kerasdiff import receipts
from kerasdiff.command_line import parser
from kerasdiff.engine.precision import check
from kerasdiff.engine.process import import_tensorflow, inference_only
from kerasdiff.errors import KerasdiffError
from kerasdiff.request import make_request
from kerasdiff.result import Result
from kerasdiff.saving import check_output
from kerasdiff.weights.presets import open_model

_MODEL = flags.DEFINE_string(
    "model", "tiny", "tiny, sd-v1-4, sd-v2-1, a folder, a .safetensors file, or org/name on the Hugging Face hub."
)
_REVISION = flags.DEFINE_string("revision", None, "Of a model on the hub: a branch, tag or commit.")
_VARIANT = flags.DEFINE_string("variant", None, "Which of several sets of weights to take, such as fp16.")
_WEIGHTS = flags.DEFINE_string("weights", "pretrained", "pretrained, or random: the architecture without a download.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images for each prompt.")
_NEGATIVE_PROMPT = flags.DEFINE_string("negative_prompt", None, "What to stay away from.")
_HEIGHT = flags.DEFINE_integer("height", None, "Pixels; the model's own size if not given.")
_WIDTH = flags.DEFINE_integer("width", None, "Pixels; the model's own size if not given.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps of the sampler; the model's own number if not given.")
_GUIDANCE_SCALE = flags.DEFINE_list(
    "guidance_scale", None, "Weight of the prompt: one number, one a step, or one an image; 1 switches guidance off."
)
_GUIDANCE_INTERVAL = flags.DEFINE_list(
    "guidance_interval", ["0", "1"], "Shares of the run between which guidance is on: start,end."
)
_GUIDANCE_RESCALE = flags.DEFINE_float(
    "guidance_rescale", 0.0, "0 to 1: how far guided predictions are scaled back to the deviation of unguided ones."
)
_SAMPLER = flags.DEFINE_string(
    "sampler", None, "A name from --list_samplers, or of a class in diffusers; the model's own if not given."
)
_SAMPLER_OPTIONS = flags.DEFINE_list("sampler_options", [], "Of the sampler: name=value,name=value.")
_SPACING = flags.DEFINE_string(
    "spacing", None, "Which noise levels are visited: a name from --list_samplers; the sampler's own if not given."
)
_TIMESTEPS = flags.DEFINE_list("timesteps", None, "Instead of a spacing: falling timesteps, one a step.")
_SIGMAS = flags.DEFINE_list("sigmas", None, "Instead of a spacing: falling noise levels, the last one 0.")
_RNG = flags.DEFINE_string("rng", "philox", "philox, or torch: the noise that a seed gives in diffusers on a CPU.")
_LONG_PROMPTS = flags.DEFINE_string(
    "long_prompts", "cut", "cut, or chunk: what happens to what the text encoder cannot read at once."
)
_LIST_SAMPLERS = flags.DEFINE_bool("list_samplers", False, "Print all samplers and spacings, one line each, and exit.")
_SEED = flags.DEFINE_list("seed", None, "One seed, or one an image, separated by commas; drawn if not given.")
_IMAGE = flags.DEFINE_multi_string(
    "image", None, "A picture to start from: .png, .jpg or .webp; given several times, one a prompt or one an image."
)
_MASK = flags.DEFINE_multi_string("mask", None, "What to draw anew in it, white where that is; as often as --image.")
_STRENGTH = flags.DEFINE_list(
    "strength", None, "0 to 1: how much of the picture is drawn anew, one or one an image; 0.8, or 1 with a mask."
)
_RESIZE = flags.DEFINE_enum(
    "resize", None, ["cover", "fit", "stretch"], "How a picture of another size is brought to height x width."
)
_FEATHER = flags.DEFINE_integer("feather", 0, "Pixels over which what is drawn fades in behind the mask's edge.")
_SAFETY = flags.DEFINE_enum(
    "safety", None, ["on", "flag", "off"], "The model's safety filter: flagged images black, only told, or not run."
)
_METADATA = flags.DEFINE_enum("metadata", "on", ["on", "off"], "Whether files say how they were made.")
_REPLAY = flags.DEFINE_string("replay", None, "A picture made here: make it again from what its file says.")
_PRECISION = flags.DEFINE_string(
    "precision", "auto", "auto, float32, mixed_float16, mixed_bfloat16, float16, bfloat16."
)
_JIT_COMPILE = flags.DEFINE_enum("jit_compile", "auto", ["auto", "true", "false"], "Whether XLA compiles the stages.")
_OUTPUT = flags.DEFINE_string("output", "out.png", "Where to save; several images become out_1.png, out_2.png, ...")
_GRID = flags.DEFINE_string("grid", None, "Where to save all images on one sheet as well.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Whether to show a progress bar.")

_USAGE = 'usage: python -m kerasdiff "a prompt" ["another prompt" ...] [--flag=value ...]; --help lists the flags'
_parse = parser("kerasdiff", _USAGE)


def main(argv: list[str]) -> int:
    """Draws what the arguments say; 0, or 2 with one line on stderr if they are wrong."""
    try:
        _draw(argv[1:])
    except KerasdiffError as error:
        print(f"kerasdiff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kerasdiff: interrupted", file=sys.stderr)
        return 130
    return 0


def _draw(prompts: list[str]) -> None:
    if _LIST_SAMPLERS.value:
        print(f"samplers\n{kerasdiff.SAMPLERS}\n\nspacings\n{kerasdiff.SPACINGS}")
        return
    if _REPLAY.value is not None:
        _replay(_REPLAY.value, prompts)
        return
    if not prompts:
        raise kerasdiff.RequestError(f"there is no prompt; {_USAGE}")
    _check_targets()
    # All that can be wrong is found out before TensorFlow is imported.
    jit_compile = {"true": True, "false": False}.get(_JIT_COMPILE.value, "auto")
    check(_PRECISION.value, jit_compile)
    source = {"revision": _REVISION.value, "variant": _VARIANT.value}
    request = make_request(
        open_model(_MODEL.value, _WEIGHTS.value, **source).config,
        prompts,
        batch_size=_BATCH_SIZE.value,
        negative_prompt=_NEGATIVE_PROMPT.value,
        height=_HEIGHT.value,
        width=_WIDTH.value,
        num_steps=_NUM_STEPS.value,
        guidance_scale=_one_or_all(_numbers(_GUIDANCE_SCALE)),
        guidance_interval=_numbers(_GUIDANCE_INTERVAL),
        guidance_rescale=_GUIDANCE_RESCALE.value,
        sampler=_SAMPLER.value,
        sampler_options=_options(_SAMPLER_OPTIONS.value),
        spacing=_SPACING.value,
        timesteps=_numbers(_TIMESTEPS),
        sigmas=_numbers(_SIGMAS),
        rng=_RNG.value,
        long_prompts=_LONG_PROMPTS.value,
        seed=_one_or_all(_numbers(_SEED, int)),
        image=_one_or_all(_IMAGE.value),
        mask=_one_or_all(_MASK.value),
        strength=_one_or_all(_numbers(_STRENGTH)),
        resize=_RESIZE.value,
        feather=_FEATHER.value,
        safety=_SAFETY.value,
    )
    with _notices_dropped():
        import_tensorflow()
        from kerasdiff.generator import Generator

        generator = Generator(
            _MODEL.value, weights=_WEIGHTS.value, **source, precision=_PRECISION.value, jit_compile=jit_compile
        )
    if _PROGRESS.value:
        print(f"{generator.name}: {generator.execution}", file=sys.stderr)
        if request.safety == "on" and _SAFETY.value is None:
            print("images that its safety filter flags are black; --safety=flag or off shows them", file=sys.stderr)
    _save(generator.run(request, progress=_PROGRESS.value))


def _check_targets() -> None:
    for target in (_OUTPUT.value, _GRID.value):
        if target is not None:
            check_output(target)


def _replay(path: str, prompts: list[str]) -> None:
    if prompts:
        raise kerasdiff.RequestError("--replay takes the prompt from the picture; leave the prompt out")
    _check_targets()
    with _notices_dropped(receipts.read(path).inference_only):
        import_tensorflow()
        from kerasdiff.replaying import replay
    pictures = {"image": _one_or_all(_IMAGE.value), "mask": _one_or_all(_MASK.value)}
    _save(replay(path, **pictures, progress=_PROGRESS.value))


def _save(result: Result) -> None:
    flagged = result.nsfw or [False] * len(result)
    paths = result.save(_OUTPUT.value, metadata=_METADATA.value == "on")
    for path, seed, nsfw in zip(paths, result.seeds, flagged, strict=True):
        print(f"{path} (seed {seed}{', flagged by the safety filter' if nsfw else ''})")
    if _GRID.value is not None:
        print(result.save_grid(_GRID.value))


@contextlib.contextmanager
def _notices_dropped(frozen: bool = True) -> Iterator[None]:
    """Without what TensorFlow writes past Python while it starts: this process is ours, and it is noise here.

    What goes wrong is raised all the same, and the device in use is in the first line that we print.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if frozen and "tensorflow" not in sys.modules:
        inference_only()
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _numbers(flag: flags.FlagHolder[Any], kind: type = float) -> Any:
    """The values of a list flag as numbers, or None if it was not given."""
    if flag.value is None:
        return None
    try:
        return [kind(value) for value in flag.value]
    except ValueError:
        expected = "a whole number or a list of them" if kind is int else "a number or a list of them"
        raise kerasdiff.RequestError(f"{flag.name}={','.join(flag.value)} is not {expected}") from None


def _one_or_all(values: Any) -> Any:
    return values[0] if values is not None and len(values) == 1 else values


def _options(pairs: list[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise kerasdiff.RequestError(f"sampler_options={','.join(pairs)}: {pair!r} is not of the form name=value")
        try:
            options[name] = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
        except (SyntaxError, ValueError):
            options[name] = text
    return options


def run() -> None:
    """The console entry point."""
    warnings.showwarning = lambda message, *_, **__: print(f"kerasdiff: {message}", file=sys.stderr)
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("kerasdiff: %(message)s"))
    logging.getLogger("kerasdiff").addHandler(lines)
    logging.getLogger("kerasdiff").propagate = False
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
