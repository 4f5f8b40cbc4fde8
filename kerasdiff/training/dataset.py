"""The TFDS data set of captioned scenes that the embedded model is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kerasdiff.training import scenes

CAPTIONS_PER_SCENE = 3
_TRAIN_EXAMPLES = 60_000
_HELD_OUT_EXAMPLES = 2_000


def _thing_features() -> dict[str, Any]:
    return {
        "shape": tfds.features.ClassLabel(names=scenes.SHAPES),
        "colour": tfds.features.ClassLabel(names=scenes.COLOURS),
        **dict.fromkeys(("x", "y", "radius"), np.float32),
    }


class CaptionedShapes(tfds.core.GeneratorBasedBuilder):
    """One or two coloured shapes on a coloured background, drawn from a seed.

    Splits: `train`, and `held_out`, whose combinations of words (see `Scene.key`) `train` never has.

    Example:
        ```python
        builder = CaptionedShapes(data_dir="runs/tfds", num_train=1000)
        builder.download_and_prepare()
        for example in builder.as_dataset(split="train").take(1):
            example["image"]  # uint8 (128, 128, 3)
        ```
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        num_train: int = _TRAIN_EXAMPLES,
        num_held_out: int = _HELD_OUT_EXAMPLES,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
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
        return self.dataset_info_from_configs(
            description="Captioned scenes of one or two coloured shapes on a coloured background.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3)),
                    "captions": tfds.features.Sequence(tfds.features.Text(), length=CAPTIONS_PER_SCENE),
                    "background": tfds.features.ClassLabel(names=scenes.COLOURS),
                    "axis": tfds.features.ClassLabel(names=scenes.AXES),
                    "things": tfds.features.Sequence(_thing_features()),
                }
            ),
            supervised_keys=None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self._counts}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        stream, thing_features = scenes.scene_stream(self._seed, split), list(_thing_features())
        for index in range(self._counts[split]):
            scene, rng = next(stream)
            example = {
                "image": scenes.render(scene),
                "captions": [scenes.caption(scene, rng).text for _ in range(CAPTIONS_PER_SCENE)],
                "background": scene.background,
                "axis": scene.axis,
                "things": [{key: getattr(thing, key) for key in thing_features} for thing in scene.things],
            }
            yield index, example
