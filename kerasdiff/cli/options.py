"""The options that programs share, in one table; those of a request follow from `ARGUMENTS`."""

import ast
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from kerasdiff.adapter_files import split_embedding, split_lora, split_upscaler
from kerasdiff.argument_kinds import Argument
from kerasdiff.cli.program import Kind, Option, Program, output_options
from kerasdiff.control_entries import make_entries, split_control, split_image_prompt, with_words
from kerasdiff.controls import MODES, Control
from kerasdiff.errors import RequestError
from kerasdiff.request_arguments import APPROXIMATIONS, ARGUMENTS, DEFAULTS, NO_SEED
from kerasdiff.runtime.precision import BACKENDS

FORMATS = ("png", "jpg", "webp")
# Kind of an argument -> of its option, and what --help calls its value.
_KINDS: dict[str, tuple[Kind, str]] = {
    "string": ("string", "NAME"),
    "strings": ("strings", "TEXT"),
    "integer": ("integer", "N"),
    "integers": ("list", "N[,N...]"),
    "number": ("number", "X"),
    "numbers": ("list", "X[,X...]"),
    "weights": ("strings", "X[,X...]"),
    "boolean": ("switch", ""),
    "choice": ("string", ""),
    "options": ("list", "NAME=X[,...]"),
    "images": ("strings", "FILE"),
    "path": ("string", "FOLDER"),
    "loras": ("strings", "FILE[:SCALE[:TEXT_SCALE]]"),
    "embeddings": ("strings", "FILE[:TRIGGER]"),
    "hires": ("string", "SCALE|NAME=X[,...]"),
    "upscaler": ("string", "FILE[:SCALE]"),
    "pair": ("string", "N,N"),
    "controls": ("strings", "MODEL[:IMAGE[:SCALE[:START:END]]]"),
    "image_prompts": ("strings", "MODEL:IMAGE[,IMAGE...][:SCALE[:START:END]]"),
}
# How an option is given that may have several values.
_SEVERAL = {
    "strings": "Repeat the flag for one per prompt.",
    "weights": "One number, one per step or one per image; repeat the flag for one value (or one list over steps) per "
    "image.",
    "images": "Repeat the flag for one per prompt or per image.",
    "loras": "Repeat the flag for several.",
    "embeddings": "Repeat the flag for several.",
    "controls": "Without an IMAGE it is that of --image. Repeat the flag for several.",
    "image_prompts": "Repeat the flag for several.",
}


def _request_option(name: str, argument: Argument) -> Option:
    kind, placeholder = _KINDS[argument.kind]
    default = argument.default
    if kind == "list" and default is not None:
        default = [f"{number:g}" for number in default]
        placeholder = ",".join("X" * len(default))
    text = f"{argument.help} {_SEVERAL.get(argument.kind, '')}".strip()
    return Option(kind, argument.flag or name, default, text, placeholder or "|".join(argument.choices))


OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        *(_request_option(name, argument) for name, argument in ARGUMENTS.items() if name != "prompt"),
        Option(
            "strings",
            "hint",
            None,
            "How the hint of --control is made of its image: canny, softedge, lineart, scribble, segmentation, blur, "
            "tile, gray, invert or none. Default: the image is the hint. Repeat the flag for one per --control. Hints "
            "are saved beside the images, except in a job.",
            "NAME",
        ),
        Option(
            "strings",
            "control_mode",
            None,
            "What counts more with --control. Default: balanced. Repeat the flag for one per --control.",
            "|".join(MODES),
        ),
        Option("switch", "list_samplers", False, "Print all samplers, spacings and recipes, one per line, and exit."),
        Option("string", "replay", None, "Regenerate an image from its embedded metadata.", "FILE"),
        Option("string", "prompts", None, "Prompts for --output_dir, .txt, .csv, .jsonl or .parquet.", "FILE"),
        Option(
            "string",
            "output_dir",
            None,
            "Output folder. Images are saved as they finish; rerun the same command to resume.",
            "FOLDER",
        ),
        Option("choice", "format", None, "Image format in --output_dir. Default: png.", choices=FORMATS),
        Option("switch", "plan", False, "Dry run: print batch split, expected memory and what must be compiled."),
        Option(
            "string",
            "output",
            "out.png",
            "Output file, .png, .jpg or .webp; several images become out_1.png, out_2.png, ...",
            "FILE",
        ),
        Option("string", "grid", None, "Also save all images on one sheet.", "FILE"),
        Option("integer", "grid_columns", None, "Columns of the sheet. Default: nearly a square."),
        Option("choice", "metadata", "on", "Embed generation metadata.", choices=("on", "off")),
        Option(
            "string",
            "model",
            "tiny",
            "tiny, tiny-xl, sd-v1-4, sd-v2-1, sdxl, sdxl-refiner, a folder, a .safetensors or .ckpt file, or org/name "
            "on the Hugging Face Hub.",
            "MODEL",
        ),
        Option(
            "string",
            "weights",
            "pretrained",
            "The model's weights; random builds the architecture without a download.",
            "pretrained|random",
        ),
        Option("string", "revision", None, "Branch, tag or commit of a model on the hub.", "NAME"),
        Option("string", "variant", None, "Which of several sets of weights to read, such as fp16.", "NAME"),
        Option(
            "string",
            "vae",
            None,
            "An autoencoder in place of the model's own: taesd (small and fast), a folder, a file, or org/name.",
            "VAE",
        ),
        Option(
            "string",
            "refiner",
            None,
            "A second model that finishes the images of the first one, such as sdxl-refiner, a folder, a file, or "
            "org/name.",
            "MODEL",
        ),
        Option(
            "string", "precision", "auto", "auto, float32, mixed_float16, mixed_bfloat16, float16 or bfloat16.", "NAME"
        ),
        Option("choice", "jit_compile", "auto", "Compile with XLA.", choices=("auto", "true", "false")),
        Option(
            "choice",
            "backend",
            "auto",
            "What runs the model. auto is OpenVINO on a CPU where it is installed, else what Keras is set to.",
            choices=BACKENDS,
        ),
    )
}


def options(*names: str) -> tuple[Option, ...]:
    """Options of the table, for a group of a program."""
    return tuple(OPTIONS[name] for name in names)


# Groups that several programs have.
PROMPTS = options("negative_prompt", "prompt_syntax", "emphasis", "clip_skip", "long_prompts", "safety")
ADAPTERS = options("lora", "lora_folder", "embedding")
STEPS = options("height", "width", "tile", "num_steps", "recipe", "hires", "upscale")
CONTROLS = options("control", "hint", "control_mode", "image_prompt")
REFINER = options("refiner", "denoising_end", "refiner_strength")
SIZES = options(
    *("original_size", "crop", "target_size", "negative_original_size", "negative_crop", "negative_target_size"),
    *("aesthetic_score", "negative_aesthetic_score"),
)
GUIDANCE = options("guidance_scale", "guidance_interval", "guidance_rescale", "image_guidance_scale")
SAMPLERS = options("sampler", "sampler_options", "spacing", "timesteps", "sigmas")
SHORTCUTS = options(*APPROXIMATIONS)
IMAGES = options("image", "mask", "invert_mask", "strength", "resize", "feather")
MODEL = options("model", "weights", "revision", "variant", "vae")
EXECUTION = options("precision", "jit_compile", "backend")

# Of a job, whose rows may have their own.
SEED = dataclasses.replace(
    OPTIONS["seed"],
    help="Seed of the first image, from which the others count up; a row's own comes first. Default: from each id.",
    placeholder="N",
)

GENERATE = Program(
    name="kerasdiff",
    about="generates images from text prompts with Stable Diffusion, and saves them.",
    usage='python -m kerasdiff "a prompt" ["another prompt" ...] [--flag=value ...]',
    examples="""\
python -m kerasdiff "a red circle on a blue background"
python -m kerasdiff "a star" "a ring" --batch_size=2 --seed=7 --grid=all.png
python -m kerasdiff "a dog" --model=sd-v1-4 --num_steps=25
python -m kerasdiff "a square" --image=a.png --mask=b.png --resize=cover
python -m kerasdiff batch rows.csv --output_dir=out
python -m kerasdiff --replay=out.png --output=again.png""",
    groups={
        "prompts": PROMPTS,
        "adapters": ADAPTERS,
        "size and steps": STEPS,
        "what SDXL is told of sizes": SIZES,
        "guidance": GUIDANCE,
        "samplers": (*SAMPLERS, *options("list_samplers")),
        "image to image": IMAGES,
        "control": CONTROLS,
        "refiner": REFINER,
        "approximations": SHORTCUTS,
        "seeds and exactness": options("seed", "rng", "exact", "replay"),
        "many images": options("batch_size", "prompts", "output_dir", "format", "plan"),
        "files": options("output", "grid", "grid_columns", "metadata"),
        "model": MODEL,
        "execution": EXECUTION,
        "output": output_options("Print a line of JSON per image, or per result.", progress=True),
    },
    status_1="images are missing, or stdout cannot be written to",
    more="""\
other commands, each with --help
  python -m kerasdiff batch     a file of prompts on this machine
  python -m kerasdiff bulk      a file of prompts on many machines
  python -m kerasdiff interpolate  frames between prompts, as an animation
  python -m kerasdiff info      versions, devices, automatic choices and caches
  python -m kerasdiff convert   a checkpoint to another format
  python -m kerasdiff upscale   larger pictures
  python -m kerasdiff verify    a model compared with published numbers
  python -m kerasdiff bench     speed on this machine, compared with others

python -m kerasdiff is installed as kerasdiff, too, and "generate" is its first
command: write kerasdiff generate info for an image of the word "info".""",
)
BATCH = Program(
    name="kerasdiff batch",
    about="generates images from a file of prompts on this machine, and resumes after any interruption; what "
    "python -m kerasdiff --prompts=FILE does.",
    usage="python -m kerasdiff batch FILE --output_dir=FOLDER [--flag=value ...]",
    examples="""\
python -m kerasdiff batch rows.csv --output_dir=out
python -m kerasdiff batch rows.jsonl --output_dir=out --batch_size=4 --seed=7""",
    groups={
        "job": options("output_dir", "batch_size", "format"),
        "defaults for rows": PROMPTS,
        "adapters": ADAPTERS,
        "size and steps": STEPS,
        "what SDXL is told of sizes": SIZES,
        "guidance": GUIDANCE,
        "samplers": SAMPLERS,
        "image to image": IMAGES,
        "control": CONTROLS,
        "refiner": REFINER,
        "approximations": SHORTCUTS,
        "seeds and exactness": (SEED, *options("rng", "exact")),
        "model": MODEL,
        "execution": EXECUTION,
        "output": output_options("Print a line of JSON per image, and a summary.", progress=True),
    },
    status_1=GENERATE.status_1,
)


def request_arguments(values: flags.FlagValues) -> dict[str, Any]:
    """Arguments of a request that a program has options for, but for the prompt and the batch size."""
    flags_of = {name: ARGUMENTS[name].flag or name for name in DEFAULTS}
    found = {name: values[flag].value for name, flag in flags_of.items() if flag in values}
    for name, value in found.items():
        read = _READERS.get(ARGUMENTS[name].kind)
        if read is not None and value is not None:
            found[name] = read(name, value)
    if "hint" in values:
        hints, modes = values.hint or (), values.control_mode or ()
        found["controls"] = with_words(make_entries("controls", found["controls"], Control), hints, modes) or None
    return found


def model_source(values: flags.FlagValues) -> dict[str, Any]:
    """Where the model comes from, as arguments besides `model`."""
    source = {name: values[name].value for name in ("weights", "revision", "variant")}
    return source | {name: values[name].value for name in ("vae", "refiner") if values[name].value is not None}


def jit_compile(values: flags.FlagValues) -> bool | str:
    return {"true": True, "false": False}.get(values.jit_compile, "auto")


def _single(name: str, values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _numbers(name: str, texts: Sequence[str], kind: type = float) -> list[Any]:
    try:
        return [kind(text) for text in texts]
    except ValueError:
        from kerasdiff import validation

        expected = "an integer or a list of them" if kind is int else "a number or a list of them"
        expected += f"; {NO_SEED}" if name == "seed" else ""
        raise RequestError(f"{name}={validation.line(','.join(texts))} is not {expected}") from None


def _number_or_numbers(name: str, texts: Sequence[str]) -> Any:
    numbers = _numbers(name, texts)
    return _single(name, numbers) if ARGUMENTS[name].per_image else numbers


def _integers(name: str, texts: Sequence[str]) -> Any:
    return _single(name, _numbers(name, texts, int))


def _weights(name: str, texts: Sequence[str]) -> Any:
    """Given once, a number or a list; given several times, nested lists."""
    rows = [_numbers(name, text.split(","), float) for text in texts]
    return _single(name, rows[0]) if len(rows) == 1 else rows


def _options(name: str, pairs: Sequence[str]) -> dict[str, Any] | None:
    """What ["name=value", ...] says, numbers and truth values as such."""
    found: dict[str, Any] = {}
    for pair in re.split(r",(?![^\[]*\])", ",".join(pairs)):  # a value may be [0,1]
        option, equals, text = pair.partition("=")
        if not equals:
            raise RequestError(f"{name}={','.join(pairs)}: {pair!r} is not of the form name=value")
        try:
            found[option] = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            found[option] = text
    return found or None


def _loras(name: str, texts: Sequence[str]) -> list[Any]:
    return list(map(split_lora, texts))


def _embeddings(name: str, texts: Sequence[str]) -> list[Any]:
    return list(map(split_embedding, texts))


# Kind of an argument -> what reads the value of its option.
_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "strings": _single,
    "images": _single,
    "integers": _integers,
    "numbers": _number_or_numbers,
    "weights": _weights,
    "options": _options,
    "loras": _loras,
    "embeddings": _embeddings,
    "upscaler": lambda _, text: split_upscaler(text),
    "controls": lambda _, texts: list(map(split_control, texts)),
    "image_prompts": lambda _, texts: list(map(split_image_prompt, texts)),
}
