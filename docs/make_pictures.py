"""Draws the pictures of the README: python docs/make_pictures.py."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import textwrap

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import kerasdiff
from kerasdiff.training import concepts, scenes
from kerasdiff.training.scenes import Scene, Thing

# One seed, no choosing: what it draws is what is shown.
SEED = 0
COLUMNS = 6
STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
OUTLINES = pathlib.Path(__file__).parents[1] / "tests" / "data" / "outlines"
# Of a control: parts of a run, strengths of an image, scenes with what is said of them, and colours.
PARTS = ((0, 0.3), (0, 0.5), (0, 0.7), (0.3, 1), (0.5, 1), (0.7, 1))
REDRAWN = (0.5, 0.7, 0.9, 1)
STEERED = (
    (
        Scene("yellow", (Thing("heart", "red", "", 38, 46, 26.0), Thing("star", "blue", "", 90, 84, 26.0))),
        "a {} heart to the left of a {} star on a {} background",
    ),
    (
        Scene("yellow", (Thing("ring", "red", "", 84, 34, 25.0), Thing("diamond", "blue", "", 40, 90, 27.0))),
        "a {} ring above a {} diamond on a {} background",
    ),
    (
        Scene("yellow", (Thing("triangle", "red", "", 34, 84, 30.0), Thing("cross", "blue", "", 98, 34, 20.0))),
        "a {} triangle to the left of a {} cross on a {} background",
    ),
)
LOOKS = (
    ("red", "blue", "yellow"),
    ("white", "pink", "purple"),
    ("green", "black", "white"),
    ("yellow", "red", "blue"),
    ("black", "white", "pink"),
)
ADAPTERS = pathlib.Path(kerasdiff.__file__).parent / "presets" / "adapters"
SCALES = (0, 0.25, 0.5, 0.75, 1, 1.25)
STEPS = (10, 25)  # of the picture of all samplers
PROMPTS = (
    "a red circle above a blue square on a yellow background",
    "a green heart on a pink background",
    "a white star to the left of an orange ring on a purple background",
    "a yellow triangle below a black diamond on a white background",
    "a large purple cross on an orange background",
    "a pink ring to the right of a green star on a black background",
    "a black heart above a white heart on a red background",
    "a blue diamond on a white background",
    "an orange triangle to the left of a blue circle on a green background",
    "a small yellow star on a blue background",
    "a red cross under a green circle on a black background",
    "a white square on top of a purple square on a pink background",
    "a black ring on a yellow background",
    "a green diamond to the right of a red triangle on a white background",
    "an orange star above a pink cross on a blue background",
    "a large white circle on a red background",
    "a purple heart to the left of a yellow heart on a black background",
    "a blue square below a white ring on an orange background",
    "a pink triangle on a purple background",
    "a black star to the right of a black cross on a green background",
    "a yellow circle above a large green square on a purple background",
    "a red ring on a white background",
    "a white diamond to the left of a pink star on a blue background",
    "a small black square below an orange heart on a yellow background",
)


def main() -> None:
    """Writes docs/images/tiny.png, samplers.png, image_to_image.png, adapters.png and those of control.md."""
    generator = kerasdiff.Generator("tiny")
    _control(generator)
    _prompts(generator)
    _samplers(generator)
    _image_to_image(generator)
    _adapters(generator)


def _adapters(generator: kerasdiff.Generator) -> None:
    """Each trained adapter without and with it; then one LoRA at rising scales, and two at once."""
    rows = []
    for name in concepts.CONCEPTS:
        file = ADAPTERS / f"{name.strip('<>')}.safetensors"
        adapter = {"embeddings": file} if name.startswith("<") else {"loras": file}
        texts = concepts.prompts(name, 4)
        for label, given in (("without", {}), (name, adapter)):
            rows.append([(label, image) for image in generator.generate(texts, seed=SEED, **given)])
    pairs = [without + with_it for without, with_it in zip(rows[::2], rows[1::2], strict=True)]
    blueprint, moon = (ADAPTERS / f"{name}.safetensors" for name in ("blueprint", "moon"))
    text = "a large yellow moon on a black background"
    last = [
        (f"blueprint {scale:g}", generator.generate(text, seed=SEED, loras=[moon, (blueprint, scale)])[0])
        for scale in SCALES
    ]
    _save(_labelled([*pairs, [("moon and:", np.full((128, 128, 3), 255, "uint8")), *last]]), "adapters.png")


def _control(generator: kerasdiff.Generator) -> None:
    """Outlines in several colours; how much a hint counts, and when; a second hint; images, and larger ones."""
    draw = functools.partial(generator.generate, seed=SEED, progress=False)
    steer = functools.partial(kerasdiff.Control, str(OUTLINES))
    rows = []
    for scene, text in STEERED:
        hint = scenes.outlines(scene)
        drawn = draw([text.format(*look) for look in LOOKS], controls=steer(hint))
        rows.append([("hint", hint), *zip(map("{}, {} on {}".format, *zip(*LOOKS, strict=True)), drawn, strict=True)])
    _save(_labelled(rows), "control.png")

    (scene, text), hint = STEERED[0], scenes.outlines(STEERED[0][0])
    prompt = text.format(*LOOKS[0])
    scaled = draw([prompt] * len(SCALES), seed=[SEED] * len(SCALES), controls=steer(hint, scale=list(SCALES)))
    first = [("hint", hint), *zip((f"scale {scale:g}" for scale in SCALES), scaled, strict=True)]
    second = [
        (f"start {start:g}, end {end:g}", draw(prompt, controls=steer(hint, start=start, end=end))[0])
        for start, end in PARTS
    ]
    one, other = (scenes.outlines(dataclasses.replace(scene, things=(thing,))) for thing in scene.things)
    chosen = ((one,), (other,), (one, other))
    apart = [draw(prompt, controls=[steer(hint) for hint in hints])[0] for hints in chosen]
    third = [("hint A", one), ("hint B", other), *zip(("only A", "only B", "A and B"), apart, strict=True)]
    _save(_few_colours([first, [("hint", hint), *second], third]), "control_scale.png")

    start = scenes.render(STEERED[0][0])
    edges = kerasdiff.hints.make_hint("canny", start)
    prompt, number = text.format(*LOOKS[1]), len(REDRAWN)
    given = {"image": start, "strength": list(REDRAWN), "seed": [SEED] * number}
    labels = [f"strength {strength:g}" for strength in REDRAWN]
    without, held = draw([prompt] * number, **given), draw([prompt] * number, **given, controls=steer(edges))
    first, second = (list(zip(labels, drawn, strict=True)) for drawn in (without, held))
    _save(_few_colours([[("image", start), *first], [("its edges", edges), *second]]), "control_image.png")

    wide = np.asarray(Image.fromarray(hint).resize((256, 256)))
    hires = {"scale": 2, "strength": 0.2, "upscaler": "lanczos"}
    large = [draw(prompt, hires=hires, **extra)[0] for extra in ({}, {"controls": steer(hint)})]
    labelled = zip(("hint", "without", "with the hint"), (wide, *large), strict=True)
    _save(_few_colours([list(labelled)], 256), "control_hires.png")


def _image_to_image(generator: kerasdiff.Generator) -> None:
    """A shape recoloured with rising strengths, and the lower one of two shapes painted over."""
    one = scenes.render(Scene("white", (Thing("circle", "red", "large", 52, 62, 29.0),)))
    drawn = generator.generate(
        ["a large blue circle on a white background"] * len(STRENGTHS), image=one, strength=list(STRENGTHS), seed=SEED
    )
    labels = [f"strength {strength:g}" for strength in STRENGTHS]
    first = [("image", one), *zip(labels, drawn, strict=True)]
    two = scenes.render(
        Scene("yellow", (Thing("circle", "red", "", 64, 36, 23.0), Thing("square", "blue", "", 64, 92, 23.0)))
    )
    mask = np.zeros(two.shape[:2], "uint8")
    mask[64:] = 255
    words = ("a green square", "a black star", "a purple heart", "an orange diamond", "a pink cross")
    prompts = [f"a red circle above {word} on a yellow background" for word in words]
    filled = generator.generate(prompts, image=two, mask=mask, seed=SEED)
    second = [("image", two), ("mask", np.repeat(mask[..., None], 3, 2)), *zip(words, filled, strict=True)]
    _save(_labelled([first, second]), "image_to_image.png")


def _labelled(rows: list[list[tuple[str, np.ndarray]]], size: int = 128) -> Image.Image:
    margin, text = 8, 18
    font = ImageFont.load_default(13)
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (size + margin) + margin, len(rows) * (size + text + margin) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for row, pictures in enumerate(rows):
        for column, (label, picture) in enumerate(pictures):
            left, top = margin + column * (size + margin), margin + row * (size + text + margin)
            draw.text((left, top), label, "black", font)
            sheet.paste(Image.fromarray(picture), (left, top + text))
    return sheet


def _few_colours(rows: list[list[tuple[str, np.ndarray]]], size: int = 128) -> Image.Image:
    """The same as a smaller file."""
    return _labelled(rows, size).quantize(256, dither=Image.Dither.NONE)


def _samplers(generator: kerasdiff.Generator) -> None:
    size, margin, text, columns = 128, 8, 18, 10
    font = ImageFont.load_default(13)
    names = list(kerasdiff.SAMPLERS)
    cell = (size + margin, len(STEPS) * (size + 2) + text + margin)
    sheet = Image.new("RGB", (columns * cell[0] + margin, -(-len(names) // columns) * cell[1] + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for index, name in enumerate(names):
        x, y = margin + index % columns * cell[0], margin + index // columns * cell[1]
        draw.text((x, y), name, "black", font)
        for place, num_steps in enumerate(STEPS):
            picture = generator.generate(
                PROMPTS[0], sampler=name, num_steps=num_steps, seed=SEED, progress=False
            ).images[0]
            sheet.paste(Image.fromarray(picture), (x, y + text + place * (size + 2)))
    _save(sheet, "samplers.png")


def _prompts(generator: kerasdiff.Generator) -> None:
    seeds = [SEED + index for index in range(len(PROMPTS))]
    pictures = generator.generate(PROMPTS, seed=seeds).images
    size, margin, lines = pictures.shape[1], 8, 4
    font = ImageFont.load_default(12)
    cell = (size + margin, size + 14 * lines + margin)
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + margin, rows * cell[1] + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        x, y = margin + index % COLUMNS * cell[0], margin + index // COLUMNS * cell[1]
        sheet.paste(Image.fromarray(picture), (x, y))
        draw.multiline_text((x, y + size + 2), "\n".join(textwrap.wrap(prompt, 20)), "black", font, spacing=1)
    _save(sheet, "tiny.png")


def _save(sheet: Image.Image, name: str) -> None:
    path = pathlib.Path(__file__).parent / "images" / name
    path.parent.mkdir(exist_ok=True)
    sheet.save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
