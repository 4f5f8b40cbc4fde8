"""Does an image show what its prompt says? Judged by palette, position and overlap with templates."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from kerasdiff.controls import Control
from kerasdiff.training import scenes
from kerasdiff.training.scenes import PALETTE, SHAPES, Scene, Thing

_FRAME = 4
_SMALLEST = 60
_TOLERANCE = 48.0


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What is right in one image; `colours` and `shapes` mean all of them."""

    background: bool
    colours: bool
    shapes: bool
    relation: bool

    @property
    def all(self) -> bool:
        """Whether the image shows all of its prompt."""
        return self.background and self.colours and self.shapes and self.relation


@dataclasses.dataclass(frozen=True)
class Found:
    """One thing seen in an image: its shape and colour words, and its centre in pixels."""

    shape: str
    colour: str
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Placed:
    """What is seen where a thing should be: how far both overlap (intersection over union), and its colour word."""

    overlap: float
    colour: str


def prompts_of(targets: Iterable[Scene]) -> list[str]:
    """Prompts of scenes; relations are said in both directions: above and below, left and right."""
    return [scenes.plain_caption(scene, turned=index // 2 % 2 == 1) for index, scene in enumerate(targets)]


def draw(generator: Any, prompts: Sequence[str], seed: int, **arguments: Any) -> tuple[np.ndarray, Any]:
    """Images uint8 (N, 128, 128, 3), eight at once, with seeds from 1000 * `seed` on; and the first eight's request."""
    results = [
        generator.generate(prompts[start : start + 8], seed=seed * 1000 + start, progress=False, **arguments)
        for start in range(0, len(prompts), 8)
    ]
    return np.concatenate([result.images for result in results]), results[0].request


def draw_steered(
    generator: Any, model: Any, targets: Sequence[Scene], hints: Sequence[np.ndarray], seed: int, **arguments: Any
) -> np.ndarray:
    """The images of scenes' prompts, as `draw` makes them, each steered by a ControlNet with a hint of its own."""
    prompts, parts = prompts_of(targets), []
    for start in range(0, len(prompts), 8):
        chosen = slice(start, start + 8)
        controls = [Control(str(model), list(hints[chosen]))]
        given = {"seed": seed * 1000 + start, "progress": False, "controls": controls} | arguments
        parts.append(generator.generate(prompts[chosen], **given).images)
    return np.concatenate(parts)


def judge(picture: np.ndarray, scene: Scene) -> Judgement:
    """Compares an image, uint8 (128, 128, 3), with the scene that its prompt describes.

    Things are matched so that most is right. If there are more or fewer than in the scene, all of
    their colours, shapes and relations are wrong.
    """
    background, found = look(picture)
    right = background == scene.background
    if len(found) != len(scene.things):
        return Judgement(right, False, False, False)
    outcomes = [_compare(scene, order) for order in itertools.permutations(found)]
    colours, shapes, relation = max(outcomes, key=lambda outcome: (sum(outcome), outcome))
    return Judgement(right, colours == len(found), shapes == len(found), bool(relation))


def placed(picture: np.ndarray, scene: Scene) -> list[Placed]:
    """Compares an image, uint8 (128, 128, 3), with where the things of a scene are.

    What is drawn elsewhere counts against the nearest of them.
    """
    pixels = picture.astype("float32")
    away = np.linalg.norm(pixels - _ground(pixels), axis=-1)
    masks = [np.asarray(scenes.mask(thing)) > 127 for thing in scene.things]
    owner = np.argmin([ndimage.distance_transform_edt(~inside) for inside in masks], axis=0)
    found = []
    for number, inside in enumerate(masks):
        colour = np.median(pixels[ndimage.binary_erosion(inside)], axis=0)
        distance = np.median(away[inside])
        drawn = (owner == number) & (away > max(distance / 2, _TOLERANCE / 2))
        overlap = (drawn & inside).sum() / (drawn | inside).sum() if distance > _TOLERANCE else 0.0
        found.append(Placed(float(overlap), _colour_word(colour)))
    return found


def _colour_word(colour: np.ndarray) -> str:
    return min(PALETTE, key=lambda name: float(np.linalg.norm(colour - np.array(PALETTE[name]))))


def placement(pictures: Iterable[np.ndarray], targets: Iterable[Scene]) -> dict[str, float]:
    """Over all things of some scenes: their mean overlap with what is drawn, and the share of right colours."""
    pairs = [
        (thing, seen)
        for picture, scene in zip(pictures, targets, strict=True)
        for thing, seen in zip(scene.things, placed(picture, scene), strict=True)
    ]
    return {
        "overlap": round(float(np.mean([seen.overlap for _, seen in pairs])), 4),
        "colours": round(float(np.mean([seen.colour == thing.colour for thing, seen in pairs])), 4),
    }


def _compare(scene: Scene, found: tuple[Found, ...]) -> tuple[int, int, int]:
    pairs = list(zip(scene.things, found, strict=True))
    colours = sum(thing.colour == seen.colour for thing, seen in pairs)
    shapes = sum(thing.shape == seen.shape for thing, seen in pairs)
    if len(found) == 1:
        return colours, shapes, 1
    right, down = found[1].x - found[0].x, found[1].y - found[0].y
    along, across = (down, right) if scene.axis == "vertical" else (right, down)
    return colours, shapes, int(along > abs(across))


def look(
    picture: np.ndarray, palette: Mapping[str, tuple[int, int, int]] = PALETTE, shapes: Sequence[str] = SHAPES
) -> tuple[str, list[Found]]:
    """The background's colour word and the things in an image, largest first; in words of `palette` and `shapes`."""
    names = tuple(palette)
    pixels = picture.astype("float32")
    ground = _ground(pixels)
    values = np.array(list(palette.values()), "float32")
    away = np.linalg.norm(pixels - ground, axis=-1)
    nearest = np.argmin(np.linalg.norm(pixels[:, :, None] - values, axis=-1), axis=-1)
    background = names[int(np.argmin(np.linalg.norm(values - ground, axis=-1)))]

    # Seeds of things: pixels of one colour, without the thin rims where two colours blend.
    labels = np.zeros(nearest.shape, "int32")
    for colour in range(len(names)):
        solid = ndimage.binary_opening((nearest == colour) & (away > _TOLERANCE), np.ones((4, 4)))
        parts, count = ndimage.label(solid)
        for part in range(1, count + 1):
            if np.sum(parts == part) >= _SMALLEST:
                labels[parts == part] = labels.max() + 1
    count = int(labels.max())
    if count == 0:
        return background, []
    # Every other pixel belongs to the nearest seed, as far as it is covered.
    _, (rows, columns) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    owner = labels[rows, columns]
    found = []
    for part in range(1, count + 1):
        colour = np.median(pixels[labels == part], axis=0)
        direction = colour - ground
        cover = np.clip((pixels - ground) @ direction / (direction @ direction), 0, 1)
        cover = np.where((owner == part) & (away > 0.25 * np.linalg.norm(direction)), cover, 0)
        name = names[int(np.argmin(np.linalg.norm(values - colour, axis=-1)))]
        x, y = _centre(cover)
        found.append((cover.sum(), Found(shape_of(cover, shapes), name, x, y)))
    return background, [seen for _, seen in sorted(found, key=lambda pair: -pair[0])]


def _ground(pixels: np.ndarray) -> np.ndarray:
    """The background's colour."""
    frame = np.concatenate(
        [pixels[:_FRAME], pixels[-_FRAME:], pixels[:, :_FRAME].swapaxes(0, 1), pixels[:, -_FRAME:].swapaxes(0, 1)]
    )
    return np.median(frame.reshape(-1, 3), axis=0)


def shape_of(cover: np.ndarray, shapes: Sequence[str] = SHAPES) -> str:
    """The shape whose template of the same area and centre best overlaps a coverage (h, w)."""
    area = float(cover.sum())
    x, y = _centre(cover)

    def overlap(shape: str, stretch: float) -> float:
        unit_area, unit_x, unit_y = _moments(shape)
        radius = stretch * math.sqrt(area / unit_area)
        thing = Thing(shape, "", "", x + 0.5 - unit_x * radius, y + 0.5 - unit_y * radius, radius)
        template = np.asarray(scenes.mask(thing, len(cover)), "float32") / 255
        return float(np.minimum(cover, template).sum() / np.maximum(cover, template).sum())

    return max(shapes, key=lambda shape: max(overlap(shape, stretch) for stretch in (0.95, 1.0, 1.05)))


def _centre(cover: np.ndarray) -> tuple[float, float]:
    y, x = (float((cover.sum(axis) * np.arange(len(cover))).sum() / cover.sum()) for axis in (1, 0))
    return x, y


@functools.cache
def _moments(shape: str) -> tuple[float, float, float]:
    """Area and centre of a shape of radius 1."""
    radius, size = 60.0, 160
    cover = np.asarray(scenes.mask(Thing(shape, "", "", size / 2, size / 2, radius), size), "float64") / 255
    area = cover.sum()
    y, x = ((cover.sum(axis) * (np.arange(size) + 0.5)).sum() / area for axis in (1, 0))
    return float(area / radius**2), float((x - size / 2) / radius), float((y - size / 2) / radius)


def held_out_scenes(count: int, seed: int, num_things: int | None = None) -> list[Scene]:
    """Scenes whose combination of words training never saw; half of them have two things."""
    return [
        next(scenes.scene_stream(seed * 100_003 + index, "held_out", num_things or 1 + index % 2))[0]
        for index in range(count)
    ]


def summary(judgements: Iterable[Judgement], targets: Iterable[Scene]) -> dict[str, float]:
    """Fraction of images that are right, by kind; "relation" counts images of two things alone."""
    pairs = list(zip(judgements, targets, strict=True))

    def fraction(kind: str, *counts: int) -> float:
        rows = [getattr(judgement, kind) for judgement, scene in pairs if len(scene.things) in counts]
        return round(float(np.mean(rows)), 4) if rows else math.nan

    return {
        **{kind: fraction(kind, 1, 2) for kind in ("background", "colours", "shapes")},
        "relation": fraction("relation", 2),
        "all": fraction("all", 1, 2),
        "all_one_thing": fraction("all", 1),
        "all_two_things": fraction("all", 2),
    }
