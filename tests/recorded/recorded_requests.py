"""The requests that are recorded, by name. They go through public entry points only."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import recorded_models
from recorded_models import Models, memory_free
from recorder import Outcome, drawn, pixels, read

import kerasdiff

PROMPT = "a red circle above a blue square on a yellow background"
OTHER = "a white star on a black background"
LONG = " ".join(f"{PROMPT} number {number}" for number in range(9))
# Few steps and one size: a set of shapes costs more than all steps.
QUICK: dict[str, Any] = {"seed": 5, "num_steps": 3, "progress": False}
# Spacings are combined with one sampler of each convention.
SPACED = ("dpmpp_2m", "ddim", "euler", "kdpm2", "unipc")
# Free bytes with which two guided images of 128 x 128 are drawn at once, and one in parts.
TWO_FIT, PARTS_FIT = 130_000_000, 95_000_000


@dataclasses.dataclass(frozen=True)
class Asked:
    """A recorded request.

    Attributes:
        draw: carries it out.
        slow: whether it takes seconds.
        full_size: whether it needs networks of gigabytes.
        rough: whether it is drawn in half precision, where other processors come to somewhat different pictures.
    """

    draw: Callable[[Models], Outcome]
    slow: bool = False
    full_size: bool = False
    rough: bool = False


REQUESTS: dict[str, Asked] = {}
Draw = Callable[[Models], Outcome]


def recorded(name: str, slow: bool = False, full_size: bool = False, rough: bool = False) -> Callable[[Draw], Draw]:
    """Adds a function to the requests.

    Args:
        name: of the request.
        slow: as in `Asked`.
        full_size: as in `Asked`.
        rough: as in `Asked`.
    """

    def add(draw: Draw) -> Draw:
        assert name not in REQUESTS, name
        REQUESTS[name] = Asked(draw, slow, full_size, rough)
        return draw

    return add


def generated(name: str, *, model: str = "tiny", slow: bool = False, **arguments: Any) -> None:
    """Adds a call of `Generator.generate`.

    Args:
        name: of the request.
        model: of `Models`.
        slow: as in `Asked`.
        **arguments: of the call, which override `QUICK`.
    """
    arguments = {"prompt": PROMPT, **QUICK, **arguments}
    rough = model.endswith("float16")
    recorded(name, slow, rough=rough)(lambda models: drawn(models[model].generate(**arguments)))


def _picture(height: int = 128, width: int = 128, shift: int = 0) -> np.ndarray:
    """A disc on colours that change, uint8."""
    y, x = np.mgrid[:height, :width]
    colours = np.stack([2 * x + shift, 255 - y, x + y], -1) % 256
    disc = (y - height // 2) ** 2 + (x - width // 3) ** 2 < (height // 4) ** 2
    return np.where(disc[..., None], np.array([220, 30 + shift, 40]), colours).astype("uint8")


def _mask(height: int = 128, width: int = 128) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2 + 13, width // 3 :] = True
    return mask


PICTURE, MASK = _picture(), _mask()

# Samplers, their options, and the levels that they visit.

for _sampler in kerasdiff.SAMPLERS:
    generated(f"sampler-{_sampler}", sampler=_sampler)
for _spacing, _sampler in itertools.product([name for name in kerasdiff.SPACINGS if name != "flow"], SPACED):
    generated(f"spacing-{_spacing}-{_sampler}", sampler=_sampler, spacing=_spacing)
for _name, _sampler, _options in (
    ("ddim-eta", "ddim", {"eta": 1.0}),
    ("ddpm-large", "ddpm", {"variance_type": "fixed_large"}),
    ("pndm-prk", "pndm", {"skip_prk_steps": False}),
    ("lms-order", "lms", {"order": 2}),
    ("euler_a-eta", "euler_a", {"eta": 0.5}),
    ("kdpm2_a-eta", "kdpm2_a", {"eta": 0.5}),
    ("dpmpp_2m-order", "dpmpp_2m", {"solver_order": 3, "lower_order_final": False}),
    ("dpmpp_2m-heun", "dpmpp_2m", {"solver_type": "heun", "euler_at_final": True}),
    ("dpmpp_2m_sde-heun", "dpmpp_2m_sde", {"eta": 0.5, "solver_type": "heun"}),
    ("dpmpp_3m_sde-exact", "dpmpp_3m_sde", {"third_order": "exact", "lower_order_final": False}),
    ("dpmpp_2s-heun", "dpmpp_2s", {"solver_type": "heun", "lower_order_final": True}),
    ("dpmpp_sde-eta", "dpmpp_sde", {"eta": 0.5}),
    ("dpm_solver-order", "dpm_solver", {"solver_order": 3}),
    ("deis-order", "deis", {"solver_order": 3, "lower_order_final": False}),
    ("unipc-bh1", "unipc", {"solver_order": 3, "solver_type": "bh1"}),
    ("lcm-scaling", "lcm", {"timestep_scaling": 5.0}),
    ("tcd-eta", "tcd", {"eta": 0.8}),
):
    generated(f"option-{_name}", sampler=_sampler, sampler_options=_options, num_steps=4)
for _sampler in ("dpmpp_2m", "ddim", "heun", "lms"):
    generated(f"timesteps-{_sampler}", sampler=_sampler, timesteps=[999, 700.5, 300], num_steps=None)
for _sampler in ("dpmpp_2m", "ddpm", "euler_a", "unipc"):
    generated(f"sigmas-{_sampler}", sampler=_sampler, sigmas=[100.0, 10.0, 1.0, 0.0], num_steps=None)
generated("steps-one", num_steps=1)
generated("steps-default", num_steps=None)
generated("sampler-of-diffusers", sampler="DPMSolverSinglestepScheduler")

# Guidance.

generated("guidance-none", guidance_scale=1.0)
generated("guidance-zero", guidance_scale=0.0)
generated("guidance-negative", guidance_scale=-2.0)
generated("guidance-large", guidance_scale=20.0)
generated("guidance-steps", guidance_scale=[4.0, 1.0, 2.5])
generated("guidance-images", batch_size=2, guidance_scale=[1.5, 5.0])
generated("guidance-images-steps", batch_size=2, guidance_scale=[[1.5, 5.0, 1.0], [3.0, 1.0, 1.0]])
generated("guidance-interval", guidance_interval=(0.3, 0.9))
generated("guidance-rescale", guidance_scale=6.0, guidance_rescale=0.7)
generated("guidance-all", sampler="heun", guidance_scale=6.0, guidance_rescale=1.0, guidance_interval=(0.0, 0.5))

# Prompts.

generated("negative", negative_prompt="a star")
generated("negative-images", prompt=[PROMPT, OTHER], negative_prompt=["a star", "a ring"])
generated("prompts", prompt=[PROMPT, OTHER], seed=[7, 2**64 - 1])
generated("prompt-empty", prompt="")
generated("prompt-strange", prompt='größer: 🎈 "x"\n<y> & {z}, Steps: 3')
generated("long-cut", prompt=LONG)
generated("long-cut-negative", negative_prompt=LONG)
generated("long-chunk", prompt=LONG[:400], negative_prompt="a star", long_prompts="chunk")

# From pictures, and into them.

for _strength in (0.0, 0.34, 0.8, 1.0):
    generated(f"image-strength-{_strength}", image=PICTURE, strength=_strength, num_steps=4)
generated("image-default", image=PICTURE)
generated("image-strengths", image=PICTURE, batch_size=2, strength=[0.3, 1.0], num_steps=4)
generated("images", prompt=[PROMPT, OTHER], image=[PICTURE, _picture(shift=50)], strength=0.6)
generated("image-unguided", image=PICTURE, guidance_scale=1.0, strength=0.7)
for _sampler in ("ddim", "pndm", "heun", "kdpm2_a", "dpmpp_2m_sde", "unipc", "lcm"):
    generated(f"image-{_sampler}", image=PICTURE, sampler=_sampler, strength=0.75, num_steps=4)
for _resize in ("cover", "fit", "stretch"):
    # A size of its own is traced for "fit".
    generated(f"resize-{_resize}", slow=_resize == "fit", image=_picture(130, 192), resize=_resize, strength=0.5)
generated("mask", image=PICTURE, mask=MASK)
generated("mask-feather", image=PICTURE, mask=MASK, feather=9)
generated("mask-strength", image=PICTURE, mask=MASK, strength=0.6, sampler="euler_a")
generated("mask-unguided", image=PICTURE, mask=MASK, guidance_scale=1.0, sampler="heun")
generated("mask-resize", image=_picture(160, 140), mask=_mask(160, 140), resize="cover", feather=3)
generated("masks", prompt=[PROMPT, OTHER], image=PICTURE, mask=[MASK, ~MASK], strength=[0.5, 1.0])


@recorded("image-file")
def _(models: Models) -> Outcome:
    arguments = {"image": str(models.picture(PICTURE, "photo.png")), "mask": str(models.picture(MASK, "mask.png"))}
    return drawn(models["tiny"].generate(PROMPT, **arguments, **QUICK))


@recorded("image-of-result")
def _(models: Models) -> Outcome:
    first = models["tiny"].generate(OTHER, **QUICK)
    return drawn(models["tiny"].generate(PROMPT, image=first, strength=0.7, **QUICK))


# Batches, noise, arrays that are given.

generated("batch", batch_size=2)
generated("batch-sde", batch_size=2, sampler="dpmpp_sde")
generated("exact", batch_size=3, exact=True)
generated("exact-sde", batch_size=2, exact=True, sampler="euler_a")
generated("rng-torch", batch_size=2, rng="torch")
generated("rng-torch-sde", batch_size=2, rng="torch", sampler="euler_a")
generated("rng-torch-image", rng="torch", image=PICTURE, strength=0.6, sampler="dpmpp_2m_sde")
generated("size-small", height=32, width=64)
generated("size-wide", height=96, width=160)
generated("size-wide-image", image=_picture(96, 160), strength=0.6)


@recorded("latents-given")
def _(models: Models) -> Outcome:
    noise = np.random.Generator(np.random.Philox(3)).standard_normal((2, 16, 16, 4), "float32")
    return drawn(models["tiny"].generate(PROMPT, 2, latents=noise, **QUICK))


@recorded("embeds-given")
def _(models: Models) -> Outcome:
    tiny = models["tiny"]
    context, without = tiny.encode_text([PROMPT, OTHER]), tiny.encode_text(["a star"])
    outcome = drawn(tiny.generate(prompt_embeds=context, negative_prompt_embeds=without, sampler="euler", **QUICK))
    outcome.beside.update(context=context, without=without)
    return outcome


def _split(generator: kerasdiff.Generator, count: int, free: int, **arguments: Any) -> Outcome:
    size = {name: arguments[name] for name in ("height", "width") if name in arguments}
    with memory_free(free):
        plan = generator.plan(count, **size)
        outcome = drawn(generator.generate(PROMPT, count, **{**QUICK, **arguments}))
    outcome.beside["plan"] = [plan.chunks, plan.slices, plan.tiles]
    return outcome


@recorded("split-most", slow=True)
def _(models: Models) -> Outcome:
    """More images than are worth it at once; the rest is filled up."""
    return _split(models.another(), 35, 10**10, height=32, width=32, guidance_scale=1.0)


@recorded("split-memory")
def _(models: Models) -> Outcome:
    return _split(models.another(), 3, TWO_FIT)


@recorded("split-parts", slow=True)
def _(models: Models) -> Outcome:
    """Attention in slices, and the decoder and the encoder in tiles."""
    return _split(models.another(), 2, PARTS_FIT, image=PICTURE, strength=0.7)


# Other ways in, and the stages one by one.


@recorded("stream")
def _(models: Models) -> Outcome:
    ones = list(models["tiny"].stream([PROMPT, OTHER], seed=[9, 4], num_steps=3, sampler="euler", progress=False))
    outcomes = [drawn(one) for one in ones]
    return Outcome(
        np.concatenate([one.images for one in outcomes]),
        np.concatenate([one.latents for one in outcomes]),
        [one.metadata for one in outcomes],
        {"told": [one.told for one in outcomes]},
        {"hashes": [one.beside for one in outcomes]},
    )


@recorded("run-only")
def _(models: Models) -> Outcome:
    request = (
        models["tiny"]
        .generate([PROMPT, OTHER], image=PICTURE, strength=[0.5, 1.0], guidance_scale=[2.0, 4.0], **QUICK)
        .request
    )
    return drawn(models["tiny"].run(request.only([1, 0]), progress=False))


@recorded("each")
def _(models: Models) -> Outcome:
    request = models["tiny"].generate(PROMPT, 2, **QUICK).request
    _, second = models["tiny"].each(request, progress=False)
    return drawn(second)


@recorded("only")
def _(models: Models) -> Outcome:
    return drawn(models["tiny"].generate(PROMPT, 2, negative_prompt="a star", **QUICK).only(1))


@recorded("once")
def _(models: Models) -> Outcome:
    del models
    arguments = {"model": "tiny", "precision": "float32", "jit_compile": False}
    return drawn(kerasdiff.generate(PROMPT, 2, sampler="heun", **arguments, **QUICK))


@recorded("callback")
def _(models: Models) -> Outcome:
    """Stops after two of four steps."""
    seen: list[Any] = []

    def stop(step: int, of: int, preview: Any) -> bool:
        seen.append((step, of, preview))
        return step < 2

    result = models["tiny"].generate(PROMPT, 2, callback=stop, **{**QUICK, "num_steps": 4})
    outcome = drawn(result, steps=[one[:2] for one in seen])
    outcome.beside["previews"] = [one[2] for one in seen]
    return outcome


@recorded("callback-all")
def _(models: Models) -> Outcome:
    steps: list[Any] = []
    result = models["tiny"].generate(PROMPT, sampler="kdpm2", callback=lambda *one: steps.append(one[:2]), **QUICK)
    return drawn(result, steps=steps)


@recorded("stages")
def _(models: Models) -> Outcome:
    tiny = models["tiny"]
    noise, context = tiny.initial_latents(seed=4), tiny.encode_text([PROMPT])
    latents = tiny.denoise(noise, context, num_steps=4, sampler="dpmpp_2m_sde", seed=4, progress=False)
    arrays = {"noise": noise, "torch": tiny.initial_latents(2, seed=4, rng="torch"), "context": context}
    return Outcome(tiny.decode(latents), latents, beside=arrays)


@recorded("encode")
def _(models: Models) -> Outcome:
    latents = models["tiny"].encode_image(np.stack([PICTURE, _picture(shift=50)]))
    return Outcome(models["tiny"].decode(latents), latents)


@recorded("plan")
def _(models: Models) -> Outcome:
    tiny = models["tiny"]
    tiny.generate(PROMPT, **QUICK)
    plans = {"one": tiny.plan(), "many": tiny.plan(70), "exact": tiny.plan(3, exact=True)}
    facts = {name: [plan.chunks, plan.slices, plan.tiles, dict(plan.memory)] for name, plan in plans.items()}
    return Outcome(told={name: [plan.batch_size, plan.height] for name, plan in plans.items()}, beside=facts)


@recorded("tokens")
def _(models: Models) -> Outcome:
    texts = [PROMPT, OTHER, "", "größer: 🎈", "it's  A  Red-Circle12"]
    return Outcome(told={"tokens": [models["tiny"].tokenizer.encode(text) for text in texts]})


@recorded("catalogues")
def _(models: Models) -> Outcome:
    del models
    samplers = {
        name: [sampler.options, sampler.aliases, sampler.spacing] for name, sampler in kerasdiff.SAMPLERS.items()
    }
    return Outcome(told={"samplers": samplers, "spacings": list(kerasdiff.SPACINGS)})


# Files.

for _format in ("jpg", "webp"):

    @recorded(f"file-{_format}")
    def _(models: Models, format_: str = _format) -> Outcome:
        return drawn(models["tiny"].generate(PROMPT, negative_prompt="größer", **QUICK), format=format_)


@recorded("file-large-batch")
def _(models: Models) -> Outcome:
    """A batch that a file has no room to tell of."""
    result = models["tiny"].generate(PROMPT, 2, **QUICK)
    prompts = tuple(f"{text} " * 1000 for text in result.request.prompts)
    return drawn(dataclasses.replace(result, request=dataclasses.replace(result.request, prompts=prompts)), "webp")


@recorded("save")
def _(models: Models) -> Outcome:
    folder = models.folder("save")
    result = models["tiny"].generate(PROMPT, 2, **QUICK)
    paths = result.save(folder / "a.png")
    grid = result.save_grid(folder / "grid.png", columns=1)
    (plain,) = result.only(0).save(folder / "plain.png", metadata=False)
    names = [path.name for path in (*paths, grid, plain)]
    outcome = read(*paths, files=names, size=list(pixels(grid).shape), plain=read(plain).metadata)
    outcome.beside["grid"] = pixels(grid)
    return outcome


def _replayed(models: Models, arguments: dict[str, Any], number: int = 0, **given: Any) -> Outcome:
    path = models["tiny"].generate(**{"prompt": PROMPT, **QUICK, **arguments}).save(models.folder("replay") / "a.png")
    return drawn(kerasdiff.replay(path[number], progress=False, **given))


for _name, _arguments, _number, _given in (
    ("text", {"batch_size": 2, "sampler": "dpmpp_2m_sde", "spacing": "karras", "negative_prompt": "a star"}, 1, {}),
    ("exact", {"batch_size": 2, "exact": True, "guidance_scale": [2.0, 5.0]}, 1, {}),
    ("sigmas", {"num_steps": None, "sigmas": [20.0, 3.0, 0.0], "sampler": "euler", "rng": "torch"}, 0, {}),
    ("picture", {"image": PICTURE, "mask": MASK, "feather": 4, "strength": 0.6}, 0, {"image": PICTURE, "mask": MASK}),
):
    recorded(f"replay-{_name}")(
        functools.partial(_replayed, arguments=_arguments, number=_number, **_given)  # type: ignore[arg-type]
    )

# Jobs, and programs.

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": PROMPT},
    {"id": "b", "prompt": OTHER, "seed": 7, "negative_prompt": "a ring"},
    {"id": "c", "prompt": "a green ring on a pink background", "guidance_scale": 4.0},
    {"id": "d", "prompt": OTHER, "sampler": "euler_a", "num_steps": 2},
    {"id": "e", "prompt": OTHER, "seed": 7, "image": "photo.png", "strength": 0.6},
]


def _rows(models: Models, file: str = "rows.jsonl") -> Any:
    path = models.picture(PICTURE, "photo.png").with_name(file)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


def _job(folder: Any) -> dict[str, Any]:
    """What the folder of a job says, without times, versions and places."""
    manifest = folder / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []
    for line in lines:
        line.update(seconds="*", versions=list(line["versions"]))
    return {"files": sorted(path.name for path in folder.iterdir()), "manifest": lines}


@recorded("job")
def _(models: Models) -> Outcome:
    folder = models.folder("job") / "out"
    summary = kerasdiff.jobs.run(
        _rows(models), folder, generator=models["tiny"], batch_size=2, num_steps=3, guidance_scale=2.0, progress=False
    )
    counts = [summary.drawn, summary.kept, summary.failed]
    return read(*sorted(folder.glob("[!.]*.png")), counts=counts, **_job(folder))


@recorded("job-again")
def _(models: Models) -> Outcome:
    """One picture is missing and is drawn again, with those that it was drawn with."""
    folder, rows = models.folder("job") / "out", _rows(models)
    arguments = {"generator": models["tiny"], "num_steps": 3, "progress": False, "format": "webp"}
    kerasdiff.jobs.run(rows, folder, **arguments)
    (folder / "b.webp").unlink()
    summary = kerasdiff.jobs.run(rows, folder, **arguments)
    counts = [summary.drawn, summary.kept, summary.failed]
    return read(*sorted(folder.glob("[!.]*.webp")), counts=counts, **_job(folder))


ON_CPU = ("--precision=float32", "--jit_compile=false", "--noprogress")


def _program(module: str, *arguments: Any, folder: Any) -> dict[str, Any]:
    done = recorded_models.run(module, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {"stdout": done.stdout, "stderr": done.stderr}


@recorded("program")
def _(models: Models) -> Outcome:
    folder = models.folder("program")
    flags = ("--batch_size=2", "--seed=7", "--num_steps=3", "--negative_prompt=a star", "--sampler=unipc")
    told = _program("kerasdiff", PROMPT, *flags, "--grid=all.png", "--json", *ON_CPU, folder=folder)
    lines = [json.loads(line) for line in told["stdout"].splitlines()]
    told["stdout"] = [{name: "*" if name == "seconds" else value for name, value in line.items()} for line in lines]
    outcome = read(folder / "out_1.png", folder / "out_2.png", **told)
    outcome.beside["grid"] = pixels(folder / "all.png")
    return outcome


@recorded("program-picture-replay", slow=True)
def _(models: Models) -> Outcome:
    folder, photo = models.folder("program"), models.picture(_picture(130, 192), "photo.png")
    flags = (f"--image={photo}", "--resize=cover", "--strength=0.6", "--seed=7", "--num_steps=4", "--spacing=karras")
    first = _program("kerasdiff", PROMPT, *flags, *ON_CPU, folder=folder)
    again = _program(
        "kerasdiff", "--replay=out.png", f"--image={photo}", "--output=again.png", "--noprogress", folder=folder
    )
    return read(folder / "out.png", folder / "again.png", first=first, again=again)


@recorded("program-job", slow=True)
def _(models: Models) -> Outcome:
    folder = models.folder("program")
    flags = (f"--prompts={_rows(models)}", "--output_dir=out", "--num_steps=3", "--exact")
    told = _program("kerasdiff", *flags, "--verbosity=silent", *ON_CPU, folder=folder)
    del told["stdout"]  # it tells of times
    return read(*sorted((folder / "out").glob("[!.]*.png")), **told, **_job(folder / "out"))


@recorded("bulk", slow=True)
def _(models: Models) -> Outcome:
    """One worker of a cluster of Ray's that is started for it."""
    folder = models.folder("bulk")
    flags = (f"--prompts={_rows(models)}", "--output=out", "--num_steps=3", "--workers=1", "--batch_size=2")
    _program("kerasdiff.bulk", *flags, *ON_CPU, folder=folder)
    names = sorted(path.name for path in (folder / "out").iterdir())
    return read(*sorted((folder / "out").glob("[!.]*.png")), files=names)


# Precisions, compilers, backends.

for _precision in ("bfloat16", "mixed_bfloat16", "float16", "mixed_float16", "xla"):
    _slow = _precision != "bfloat16"
    generated(f"{_precision}", model=_precision, slow=_slow)
    generated(f"{_precision}-sde", model=_precision, slow=_slow, sampler="dpmpp_2m_sde", spacing="karras")
generated("bfloat16-image", model="bfloat16", slow=True, image=PICTURE, strength=0.6, batch_size=2)
generated("xla-image", model="xla", slow=True, image=PICTURE, mask=MASK, strength=0.7)


def on_jax(models: Models) -> dict[str, Outcome]:
    """Some requests by name, drawn in a process whose backend is JAX."""
    arguments: dict[str, Any] = {**QUICK, "batch_size": 2}
    generator = kerasdiff.Generator("tiny", precision="float32")
    outcomes = {
        "text": drawn(generator.generate(PROMPT, **arguments)),
        "sde": drawn(generator.generate(PROMPT, sampler="dpmpp_sde", rng="torch", **arguments)),
        "image": drawn(generator.generate(PROMPT, image=PICTURE, mask=MASK, strength=[0.6, 1.0], **arguments)),
    }
    assert "KERASDIFF_CACHE" in os.environ
    del models
    return outcomes


def _on_jax(models: Models, name: str) -> Outcome:
    def draw() -> Any:
        folder = models.folder("jax")
        return recorded_models.in_another_process("on_jax", folder, KERAS_BACKEND="jax")

    return models.once("jax", draw)[name]


for _name in ("text", "sde", "image"):
    recorded(f"jax-{_name}", slow=True)(functools.partial(_on_jax, name=_name))

# Other models.

generated("random", model="random")
generated("random-unguided", model="random", guidance_scale=1.0, sampler="euler")
SMALL = {"height": 64, "width": 64, "prompt": "a red circle", "negative_prompt": "a star", "slow": True}
for _kind in ("v1", "v2"):
    generated(f"made-{_kind}", model=_kind, **SMALL)
    generated(f"made-{_kind}-karras", model=_kind, sampler="dpmpp_2m", spacing="karras", batch_size=2, **SMALL)
    generated(f"made-{_kind}-image", model=_kind, image=_picture(64, 64), strength=0.7, **SMALL)
generated("made-inpainting", model="inpainting", image=_picture(64, 64), mask=_mask(64, 64), **SMALL)
generated(
    "made-inpainting-feather",
    model="inpainting",
    image=_picture(64, 64),
    mask=_mask(64, 64),
    feather=5,
    strength=0.6,
    sampler="ddim",
    **SMALL,
)
for _safety in ("on", "flag", "off"):
    generated(f"safety-{_safety}", model="filtered", safety=_safety, batch_size=4, sampler="euler", **SMALL)
for _model in ("native", "diffusers"):
    generated(f"converted-{_model}", model=_model, sampler="dpmpp_2m", slow=True)


def _of_single_file(models: Models, model: str) -> Outcome:
    """Texts are encoded by the original: a single file has no vocabulary, and CLIP's is larger than this model's."""
    context, without = (models["v1"].encode_text([text]) for text in ("a red circle", "a star"))
    arrays = {"prompt_embeds": context, "negative_prompt_embeds": without}
    return drawn(models[model].generate(**arrays, height=64, width=64, **QUICK))


for _model in ("single_file", "back"):
    recorded(f"converted-{_model}", slow=True)(functools.partial(_of_single_file, model=_model))


@recorded("converted-files", slow=True)
def _(models: Models) -> Outcome:
    """Which files there are and how large they are; their bytes, as they hold no more than numbers and names."""
    found: dict[str, Any] = {}
    for name in recorded_models.CONVERTED:
        path = models.checkpoint(name)
        files = sorted(one for one in ([path] if path.is_file() else path.rglob("*")) if one.is_file())
        found[name] = {str(one.relative_to(path.parent)): one.stat().st_size for one in files}
    return Outcome(told=found)


@recorded("keras_cv", slow=True, full_size=True)
def _(models: Models) -> Outcome:
    """KerasCV's class with random weights: its networks are never small."""
    del models
    model = kerasdiff.StableDiffusion(128, 128, weights="random", jit_compile=False, precision="float32")
    context = model.encode_text(PROMPT)
    images = model.generate_image(context, negative_prompt="a star", batch_size=2, num_steps=2, seed=3)
    texts = model.text_to_image(PROMPT, batch_size=1, num_steps=2, seed=4)
    return Outcome(np.concatenate([images, texts]), beside={"context": context})
