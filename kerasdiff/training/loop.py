"""The training loop of all stages: fit, save checkpoints, resume after an interruption."""

import json
import math
import pathlib
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kerasdiff.atomic_write import atomic_write


def train(
    model: keras.Model,
    batch: Callable[[int], tuple[np.ndarray, ...]],
    *,
    folder: pathlib.Path,
    total_steps: int,
    steps_per_epoch: int,
    learning_rate: float,
    ema_momentum: float = 0.999,
    weight_decay: float = 0.01,
    epoch_end: Callable[[int], None] | None = None,
) -> None:
    """Fits a model that adds its own loss, and leaves it with the running average of its weights.

    After each epoch a checkpoint, `state.json` and `log.jsonl` go to `folder`, from which a run resumes, and
    `epoch_end` gets the number of steps. The learning rate rises shortly and falls to zero along a cosine.
    `batch(step)` returns the inputs, float32 or int32 arrays whose shapes never change. They depend on the step alone,
    so that a resumed run sees what an uninterrupted one would have seen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps_per_epoch = min(steps_per_epoch, total_steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 50, total_steps, warmup_target=learning_rate, warmup_steps=min(500, total_steps // 10)
    )
    optimizer = keras.optimizers.AdamW(
        schedule,
        weight_decay=weight_decay,
        clipnorm=1.0,
        use_ema=True,
        ema_momentum=ema_momentum,
        ema_overwrite_frequency=None,
    )
    model.compile(optimizer=optimizer, jit_compile=False)
    optimizer.build(model.trainable_variables)
    checkpoint = _Checkpoint(folder, steps_per_epoch, epoch_end)
    first_epoch = checkpoint.restore(model)
    epochs = math.ceil(total_steps / steps_per_epoch)
    if first_epoch < epochs:
        model.fit(
            _dataset(batch, first_epoch * steps_per_epoch).prefetch(2),
            epochs=epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=steps_per_epoch,
            callbacks=[checkpoint, keras.callbacks.TerminateOnNaN()],
            verbose=2,
        )
    optimizer.finalize_variable_values(model.trainable_variables)


def _dataset(batch: Callable[[int], tuple[np.ndarray, ...]], first_step: int) -> tf.data.Dataset:
    """All batches from a first step on, as `Model.fit` wants them: (inputs, nothing)."""
    example = batch(first_step)
    dtypes = [tf.as_dtype(part.dtype) for part in example]

    def tensors(step):
        parts = tf.numpy_function(batch, [step], dtypes)
        inputs = tuple(tf.ensure_shape(part, like.shape) for part, like in zip(parts, example, strict=True))
        return inputs, tf.zeros([len(example[0])])

    return tf.data.Dataset.range(first_step, 2**62).map(tensors)


class _Checkpoint(keras.callbacks.Callback):
    """Saves weights, optimizer and progress after each epoch, and logs a line."""

    def __init__(self, folder: pathlib.Path, steps_per_epoch: int, epoch_end: Callable[[int], None] | None) -> None:
        super().__init__()
        self._folder, self._steps_per_epoch, self._epoch_end = folder, steps_per_epoch, epoch_end
        self._started = time.monotonic()
        self._seconds_before = 0.0

    def restore(self, model: keras.Model) -> int:
        """Loads the last checkpoint; returns the number of finished epochs."""
        state = self._folder / "state.json"
        if not state.exists():
            return 0
        saved = json.loads(state.read_text())
        model.load_weights(self._folder / saved["weights"])
        self._seconds_before = saved["seconds"]
        return saved["epochs"]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = round(self._seconds_before + time.monotonic() - self._started, 1)
        # Two files in turn: a kill during saving leaves the other one whole.
        name = f"checkpoint{epoch % 2}.weights.h5"
        self.model.save_weights(self._folder / name)
        state = {"epochs": epoch + 1, "seconds": seconds, "weights": name}
        with atomic_write(self._folder / "state.json", sync=False) as file:
            file.write(json.dumps(state).encode())
        steps = (epoch + 1) * self._steps_per_epoch
        line = {"step": steps, "seconds": seconds, **{key: float(value) for key, value in (logs or {}).items()}}
        with (self._folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        if self._epoch_end is not None:
            self._epoch_end(steps)
