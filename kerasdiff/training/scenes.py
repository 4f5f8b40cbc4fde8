"""Procedural scenes: what the embedded model learns to draw.

A scene is one or two antialiased shapes on a plain background. A `Scene` is its whole description, from which
the image, its captions and the score of a generated image all come.
"""

import dataclasses
import zlib

import numpy as np
from PIL import Image, ImageDraw

from kerasdiff.images.tools import grid

IMAGE_SIZE = 128
SUPERSAMPLING = 4

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 220, 50),
    "orange": (245, 140, 30),
    "purple": (130, 50, 170),
    "pink": (250, 150, 190),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
}
COLOURS = tuple(PALETTE)
# Those that the embedded model does not know: adapters teach them.
NEW_PALETTE: dict[str, tuple[int, int, int]] = {"cyan": (50, 195, 245)}
# Size word -> radius of the circle around a shape, in pixels: [low, high).
SIZES: dict[str, tuple[float, float]] = {"small": (16.0, 18.5), "": (21.0, 25.0), "large": (27.5, 30.5)}
AXES = ("none", "vertical", "horizontal")
_SIZE_WEIGHTS = (0.15, 0.7, 0.15)
_HELD_OUT_ONE_IN = 10


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape: its name, colour, size word, and where it is (pixels; `radius` is the outer one)."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background colour and one or two things; the first of two is the upper or the left one."""

    background: str
    things: tuple[Thing, ...]
    axis: str = "none"

    @property
    def key(self) -> str:
        """The words that a caption of this scene can say, in one canonical order."""
        parts = [f"{thing.colour} {thing.shape}" for thing in self.things]
        return "|".join([self.background, self.axis, *parts])

    @property
    def held_out(self) -> bool:
        """Whether this combination is excluded from training (one in ten, by a fixed hash)."""
        return zlib.crc32(self.key.encode()) % _HELD_OUT_ONE_IN == 0


def random_scene(rng: np.random.Generator, num_things: int | None = None) -> Scene:
    """Draws a scene, with two things three times out of four unless `num_things` is given."""
    if num_things is None:
        num_things = 2 if rng.random() < 0.75 else 1
    background = str(rng.choice(COLOURS))
    others = [colour for colour in COLOURS if colour != background]
    axis = "none" if num_things == 1 else AXES[1 + int(rng.integers(2))]
    looks = []
    for _ in range(num_things):
        size = str(rng.choice(list(SIZES), p=_SIZE_WEIGHTS))
        looks.append((str(rng.choice(SHAPES)), str(rng.choice(others)), size, rng.uniform(*SIZES[size])))
    centres = _centres(rng, axis, [look[3] for look in looks])
    things = tuple(
        Thing(shape, colour, size, x, y, radius)
        for (shape, colour, size, radius), (x, y) in zip(looks, centres, strict=True)
    )
    return Scene(background, things, axis)


def _centres(rng: np.random.Generator, axis: str, radii: list[float]) -> list[tuple[float, float]]:
    middle = IMAGE_SIZE / 2
    if axis == "none":
        reach = min(18.0, middle - radii[0] - 2)
        return [(middle + rng.uniform(-reach, reach), middle + rng.uniform(-reach, reach))]
    # Along the axis: spare room is shared between the two margins and the gap.
    spare = IMAGE_SIZE - 2 * sum(radii)
    gap = min(2 + spare * rng.uniform(0.2, 0.5), 26.0)
    start = (spare - gap) * rng.uniform(0.35, 0.65)
    along = (start + radii[0], start + 2 * radii[0] + gap + radii[1])
    centres = []
    for position, radius in zip(along, radii, strict=True):
        reach = min(12.0, middle - radius - 2)
        across = middle + rng.uniform(-reach, reach)
        centres.append((across, position) if axis == "vertical" else (position, across))
    return centres


def _polar(radii: list[float], start: float) -> np.ndarray:
    angles = start + 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(radii)[:, None]


def _cross(a: float, b: float) -> np.ndarray:
    return np.array(
        [[-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a], [a, b], [-a, b], [-a, a], [-b, a], [-b, -a], [-a, -a]]
    )


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16.5, (y - 2.5) / 15.0], axis=1)


def _moon() -> np.ndarray:
    """A crescent: a circle without another one that is smaller and further right."""
    distance, radius = 0.48, 0.8
    x = (1 - radius**2 + distance**2) / (2 * distance)
    y = np.sqrt(1 - x**2)
    ends, bites = np.arctan2(y, x), np.arctan2(y, x - distance)
    outer, inner = np.linspace(ends, 2 * np.pi - ends, 80), np.linspace(2 * np.pi - bites, bites, 60)
    bite = np.stack([distance + radius * np.cos(inner), radius * np.sin(inner)], axis=1)
    return 1.08 * np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1), bite]) + np.array([0.15, 0.0])


# The polygon of each shape in a circle of radius 1, y downwards: float64 (points, 2).
_OUTLINES = {
    "circle": _polar([1.0] * 96, 0.0),
    "square": _polar([1.12] * 4, np.pi / 4),
    "triangle": _polar([1.12] * 3, -np.pi / 2) + np.array([0.0, 0.2]),
    "star": _polar([1.1, 0.44] * 5, -np.pi / 2) + np.array([0.0, 0.08]),
    "diamond": np.array([[0, -1.08], [0.72, 0], [0, 1.08], [-0.72, 0]]),
    "cross": _cross(0.34, 0.98),
    "ring": _polar([1.0] * 96, 0.0),
    "heart": _heart(),
}
SHAPES = tuple(_OUTLINES)
_OUTLINES["moon"] = _moon()
NEW_SHAPES = ("moon",)
_RING_HOLE = 0.56


def mask(thing: Thing, size: int = IMAGE_SIZE) -> Image.Image:
    """The antialiased coverage of a thing, mode L, (size, size)."""
    canvas = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING), 0)
    draw = ImageDraw.Draw(canvas)
    outline, centre = _OUTLINES[thing.shape], np.array([thing.x, thing.y])
    draw.polygon(((centre + thing.radius * outline) * SUPERSAMPLING).ravel().tolist(), fill=255)
    if thing.shape == "ring":
        draw.polygon(((centre + thing.radius * _RING_HOLE * outline) * SUPERSAMPLING).ravel().tolist(), fill=0)
    return canvas.reduce(SUPERSAMPLING)


def outlines(scene: Scene, width: float = 1.5, size: int = IMAGE_SIZE) -> np.ndarray:
    """The outlines of a scene's things, white lines of a width in pixels on black: uint8 (size, size, 3)."""
    canvas = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING), 0)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        for scale in (1.0, _RING_HOLE)[: 1 + (thing.shape == "ring")]:
            points = np.array([thing.x, thing.y]) + thing.radius * scale * _OUTLINES[thing.shape]
            around = np.concatenate([points, points[:2]]) * SUPERSAMPLING
            draw.line(around.ravel().tolist(), fill=255, width=round(width * SUPERSAMPLING), joint="curve")
    return np.asarray(canvas.reduce(SUPERSAMPLING).convert("RGB"))


def render(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """The image of a scene: uint8 (size, size, 3)."""
    colours = PALETTE | NEW_PALETTE
    picture = Image.new("RGB", (size, size), colours[scene.background])
    for thing in scene.things:
        picture.paste(colours[thing.colour], mask=mask(thing, size))
    return np.asarray(picture)


_RELATIONS = {
    "vertical": (("above", "over", "on top of"), ("below", "under", "beneath")),
    "horizontal": (("to the left of", "left of"), ("to the right of", "right of")),
}
_RELATION_WEIGHTS = {3: (0.6, 0.2, 0.2), 2: (0.75, 0.25)}
_FRAMES = (
    ("{things} on {a} {background} background", 0.45),
    ("{things}, {background} background", 0.15),
    ("{things} on {background}", 0.15),
    ("on {a} {background} background, {things}", 0.12),
    ("a picture of {things} on {a} {background} background", 0.08),
    ("{things}", 0.05),
)


@dataclasses.dataclass(frozen=True)
class Caption:
    """A sentence about a scene, and which of the scene's facts it states."""

    text: str
    # The things as the sentence means them (upper or left first), or as it mentions them if it states no relation.
    order: tuple[int, ...]
    tells_relation: bool
    tells_background: bool


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """One of the ways to describe a scene. Now and then it omits the background or the relation."""
    article = rng.random() < 0.85
    names = [_name(thing, article) for thing in scene.things]
    order = tuple(range(len(names)))
    tells_relation = len(names) == 2
    if len(names) == 1:
        things = names[0]
    elif rng.random() < 0.05:
        tells_relation = False
        order = order if rng.random() < 0.5 else order[::-1]
        things = " and ".join(names[index] for index in order)
    else:
        forward, backward = _RELATIONS[scene.axis]
        turned = rng.random() < 0.5
        words = backward if turned else forward
        word = str(rng.choice(words, p=_RELATION_WEIGHTS[len(words)]))
        first, second = names[::-1] if turned else names
        things = f"{first} {word} {second}"
    frames, weights = zip(*_FRAMES, strict=True)
    frame = str(rng.choice(frames, p=weights))
    text = frame.format(things=things, a=_article(scene.background), background=scene.background)
    return Caption(text, order, tells_relation, "{background}" in frame)


def plain_caption(scene: Scene, turned: bool = False) -> str:
    """The README's way to describe a scene: 'a red circle above a blue square on a yellow background'."""
    names = [_name(thing, article=True) for thing in scene.things]
    if len(names) == 2:
        forward, backward = _RELATIONS[scene.axis]
        names.insert(1, forward[0])
        if turned:
            names = [names[2], backward[0], names[0]]
    return f"{' '.join(names)} on {_article(scene.background)} {scene.background} background"


def _name(thing: Thing, article: bool) -> str:
    words = [word for word in (thing.size, thing.colour, thing.shape) if word]
    return " ".join([_article(words[0]), *words] if article else words)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def scene_stream(seed: int, split: str, num_things: int | None = None):
    """Endless pairs of a scene of a split ("train" or "held_out") and the generator that drew it."""
    if split not in ("train", "held_out"):
        raise ValueError(f"unknown split {split!r}; known: train, held_out")
    rng = np.random.default_rng([seed, ("train", "held_out").index(split)])
    while True:
        scene = random_scene(rng, num_things)
        if scene.held_out == (split == "held_out"):
            yield scene, rng


def contact_sheet(pictures: np.ndarray, columns: int) -> Image.Image:
    """Images uint8 (N, h, w, 3) on white, `columns` per row, two pixels apart."""
    return grid(np.pad(pictures, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255), cols=columns)
