"""The TFDS data set of captioned scenes that the embedded model is trained on."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kerasdiff.training import scenes

CAPTIONS_PER_SCENE = 3
_THING = ("shape", "colour", "x", "y", "radius")


class CaptionedShapes(tfds.core.GeneratorBasedBuilder):
    """One or two coloured shapes on a coloured background, drawn from a seed.

    Splits: `train`, and `held_out`, whose combinations of words (see `Scene.key`) `train` never has.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, num_train: int = 60_000, num_held_out: int = 2_000, seed: int = 0, **kwargs: Any) -> None:
        self._counts = {"train": num_train, "held_out": num_held_out}
        self._seed = seed
        config = tfds.core.BuilderConfig(
            name=f"train{num_train}_held_out{num_held_out}_seed{seed}",
            version=self.VERSION,
            description="Scenes drawn from a seed.",
        )
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = scenes.IMAGE_SIZE
        shape, colour = (tfds.features.ClassLabel(names=names) for names in (scenes.SHAPES, scenes.COLOURS))
        thing = dict(zip(_THING, (shape, colour, np.float32, np.float32, np.float32), strict=True))
        return self.dataset_info_from_configs(
            description="Captioned scenes of one or two coloured shapes on a coloured background.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3)),
                    "captions": tfds.features.Sequence(tfds.features.Text(), length=CAPTIONS_PER_SCENE),
                    "background": tfds.features.ClassLabel(names=scenes.COLOURS),
                    "axis": tfds.features.ClassLabel(names=scenes.AXES),
                    "things": tfds.features.Sequence(thing),
                }
            ),
            supervised_keys=None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self._counts}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        stream = itertools.islice(scenes.scene_stream(self._seed, split), self._counts[split])
        for index, (scene, rng) in enumerate(stream):
            example = {
                "image": scenes.render(scene),
                "captions": [scenes.caption(scene, rng).text for _ in range(CAPTIONS_PER_SCENE)],
                "background": scene.background,
                "axis": scene.axis,
                "things": [{key: getattr(thing, key) for key in _THING} for thing in scene.things],
            }
            yield index, example
