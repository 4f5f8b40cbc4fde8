"""python -m kerasdiff interpolate: frames between prompts, as an animation or in a folder."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator

from kerasdiff.cli import options
from kerasdiff.cli.program import Option, Program, output_options
from kerasdiff.errors import RequestError

_WALK = (
    Option("integer", "frames", 60, "Frames in all, the first and the last prompt among them."),
    Option("switch", "loop", False, "Lead back to the first prompt; with one prompt and one seed, go round a circle."),
    Option(
        "string",
        "output",
        "walk.gif",
        "Animation, .gif, .webp, or .mp4 (needs ffmpeg); a name without extension is a folder of .png files.",
        "FILE|FOLDER",
    ),
    Option("number", "fps", 12.0, "Frames per second of an animation."),
)
_SEED = dataclasses.replace(
    options.OPTIONS["seed"], help="Seed of the noise of all frames, or one per prompt. Default: random."
)
PROGRAM = Program(
    name="kerasdiff interpolate",
    about="generates the frames of a walk from prompt to prompt and from seed to seed.",
    usage='python -m kerasdiff interpolate "a prompt" ["another" ...] [--flag=X]',
    examples="""\
python -m kerasdiff interpolate "a red circle" "a blue star" --frames=24
python -m kerasdiff interpolate "a dog" "a cat" --seed=7,8 --output=walk.mp4
python -m kerasdiff interpolate "a star" --loop --output=frames""",
    groups={
        "walk": _WALK,
        "prompts": options.PROMPTS,
        "adapters": options.ADAPTERS,
        "size and steps": options.STEPS,
        "what SDXL is told of sizes": options.SIZES,
        "guidance": options.GUIDANCE,
        "samplers": options.SAMPLERS,
        "image to image": options.IMAGES,
        "control": options.CONTROLS,
        "refiner": options.REFINER,
        "approximations": options.SHORTCUTS,
        "seeds": (_SEED, *options.options("rng")),
        "model": options.MODEL,
        "execution": options.EXECUTION,
        "output": output_options("Print a line of JSON per file.", progress=True),
    },
    status_1="stdout cannot be written to",
)


def main(prompts: list[str]) -> int:
    """Does what the options say; what is finished at a signal is saved."""
    from kerasdiff.adapters.library import try_files
    from kerasdiff.checkpoints.resolve import open_model
    from kerasdiff.cli import output
    from kerasdiff.cli.generate_command import load_generator
    from kerasdiff.images.animation import check_animation, write_animation
    from kerasdiff.runtime.precision import check
    from kerasdiff.walk import make_walk

    values = PROGRAM.values
    if not prompts:
        raise RequestError(f"there is no prompt; usage: {PROGRAM.usage}; --help lists the flags")
    target = pathlib.Path(values.output)
    is_folder = not target.suffix
    if not is_folder:
        check_animation(target, values.fps)
    check(values.precision, options.jit_compile(values), values.backend)
    checkpoint = open_model(values.model, **options.model_source(values))
    arguments = options.request_arguments(values)
    request = make_walk(checkpoint.config, prompts, values.frames, loop=values.loop, **arguments)
    try_files(request.loras, request.embeddings, request.upscale, None if request.hires is None else request.hires.file)
    output.try_models(request)
    paths = _frames(target, len(request)) if is_folder else None
    output.save_hints(request, target / "frame.png" if is_folder else target, PROGRAM.json)
    generator = load_generator(PROGRAM, checkpoint)
    PROGRAM.signals.defer()
    images = []
    try:
        for result in generator.each(request, callback=lambda *_: PROGRAM.signals.check(), progress=PROGRAM.progress):
            if paths is None:
                images.append(result.images[0])
            else:
                (path,) = result.save(next(paths))
                output.print_image(path, result, PROGRAM.json)
            PROGRAM.signals.check()
    finally:
        # Also after Ctrl-C, and where a frame fails: what is finished is worth keeping.
        if images:
            write_animation(images, target, values.fps)
            fields = {"path": str(target), "frames": len(images), "fps": values.fps}
            line = f"{target} ({len(images)} of {len(request)} frames, {values.fps:g} per second)"
            output.print_either(line, {"type": "animation", **fields}, PROGRAM.json)
    return 0


def _frames(folder: pathlib.Path, count: int) -> Iterator[pathlib.Path]:
    """Names of frames whose alphabetical order is theirs, in a folder that is made."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise RequestError(f"cannot make the folder {folder}: {reason}; choose another name") from None
    digits = max(4, len(str(count)))
    return (folder / f"frame_{number:0{digits}}.png" for number in range(1, count + 1))
