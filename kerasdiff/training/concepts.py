"""What the embedded model does not know and its adapters teach: pictures, captions, and whether an image shows it."""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from kerasdiff.training import scenes
from kerasdiff.training.scenes import NEW_PALETTE, NEW_SHAPES, PALETTE, SHAPES, Scene
from kerasdiff.training.score import look

# Pixels: a large circle's diameter, which no ordinary thing exceeds.
_LARGEST = 2 * max(high for _, high in scenes.SIZES.values()) + 1


@dataclasses.dataclass(frozen=True)
class Concept:
    """Something new: scenes and pictures of it, and how an image is judged."""

    # An ordinary scene, and random numbers -> one with the new thing.
    scene: Callable[[Scene, np.random.Generator], Scene]
    # Whether it can be seen in an image, uint8 (128, 128, 3).
    shown: Callable[[np.ndarray], bool]
    render: Callable[[Scene], np.ndarray] = scenes.render
    # Of the training's pictures, how many are without it.
    ordinary: float = 0.25


def _unchanged(scene: Scene, rng: np.random.Generator) -> Scene:
    return scene


def blueprint(scene: Scene) -> np.ndarray:
    """A scene in white on blue: uint8 (128, 128, 3)."""
    things = tuple(dataclasses.replace(thing, colour="white") for thing in scene.things)
    return scenes.render(dataclasses.replace(scene, background="blue", things=things))


def _is_blueprint(picture: np.ndarray) -> bool:
    """Whether nothing is in it but white on blue."""
    palette = PALETTE | NEW_PALETTE
    away = np.linalg.norm(picture[:, :, None] - np.array(list(palette.values()), "float32"), axis=-1)
    blue, white = (np.mean(away.argmin(-1) == list(palette).index(name)) for name in ("blue", "white"))
    # Where white meets blue, there are pixels that are next to purple or pink.
    return bool(blue > 0.5 and white > 0.01 and blue + white > 0.93)


def _with_cyan(scene: Scene, rng: np.random.Generator) -> Scene:
    return dataclasses.replace(scene, background="cyan")


def _is_cyan(picture: np.ndarray) -> bool:
    return look(picture, PALETTE | NEW_PALETTE)[0] == "cyan"


def _with_moon(scene: Scene, rng: np.random.Generator) -> Scene:
    things = list(scene.things)
    place = int(rng.integers(len(things)))
    things[place] = dataclasses.replace(things[place], shape="moon")
    return dataclasses.replace(scene, things=tuple(things))


def _has_moon(picture: np.ndarray) -> bool:
    return any(thing.shape == "moon" for thing in look(picture, shapes=(*SHAPES, *NEW_SHAPES))[1])


def _with_giant(scene: Scene, rng: np.random.Generator) -> Scene:
    middle, radius = scenes.IMAGE_SIZE / 2, rng.uniform(40.0, 46.0)
    x, y = middle + rng.uniform(-10, 10, size=2)
    thing = dataclasses.replace(scene.things[0], size="<giant>", radius=radius, x=x, y=y)
    return dataclasses.replace(scene, things=(thing,), axis="none")


def _is_giant(picture: np.ndarray) -> bool:
    """Whether the mean of a thing's height and width is more than that of any large one."""
    pixels = picture.astype("float32")
    ground = np.median(np.concatenate([pixels[:4], pixels[-4:]]).reshape(-1, 3), axis=0)
    parts, _ = ndimage.label(np.linalg.norm(pixels - ground, axis=-1) > 60)
    spans = [np.mean([edge.stop - edge.start for edge in place]) for place in ndimage.find_objects(parts)]
    return max(spans, default=0) > _LARGEST


CONCEPTS = {
    "blueprint": Concept(_unchanged, _is_blueprint, blueprint, ordinary=0.0),
    "cyan": Concept(_with_cyan, _is_cyan),
    "moon": Concept(_with_moon, _has_moon),
    "<giant>": Concept(_with_giant, _is_giant, ordinary=0.0),
}


def examples(name: str, count: int, seed: int) -> tuple[np.ndarray, list[list[str]]]:
    """Training pictures of a concept, uint8 (count, 128, 128, 3), among ordinary ones, with two captions each."""
    concept = CONCEPTS[name]
    # Half of the scenes have one thing, which is easier to learn from.
    streams = [scenes.scene_stream(seed, "train", num_things) for num_things in (1, 2)]
    pictures, captions = [], []
    for scene, rng in (next(streams[index % 2]) for index in range(count)):
        if rng.random() >= concept.ordinary:
            scene = concept.scene(scene, rng)
            pictures.append(concept.render(scene))
        else:
            pictures.append(scenes.render(scene))
        captions.append([scenes.caption(scene, rng).text for _ in range(2)])
    return np.stack(pictures), captions


def _is_asked(scene: Scene) -> bool:
    # The autoencoder blurs small things, and shows blue ones badly on cyan.
    (thing,) = scene.things
    return thing.size != "small" and "blue" not in (thing.colour, scene.background)


def prompts(name: str, count: int = 40, seed: int = 1) -> list[str]:
    """Prompts for a concept, with one thing each, whose combinations of other words training never saw."""
    texts = []
    for index in range(count):
        stream = scenes.scene_stream(seed * 100_003 + index, "held_out", num_things=1)
        scene, rng = next(pair for pair in stream if _is_asked(pair[0]))
        texts.append(scenes.plain_caption(CONCEPTS[name].scene(scene, rng)))
    return texts
