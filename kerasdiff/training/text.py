"""Stage 2: the text encoder learns what a caption says, from captions alone.

Stable Diffusion freezes a text encoder that was trained on another task (CLIP's). Here the task is to read a
caption: from every position at or after the end token, linear layers predict the background, the arrangement,
and what the upper (or left) and the lower (or right) thing are. Without this stage the order of two things
stays at chance, because in a causal encoder the words of the first thing cannot see the relation that follows.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterable

import keras
import numpy as np
from keras import ops

from kerasdiff.models.config import TINY
from kerasdiff.models.network_configs import TextEncoderConfig
from kerasdiff.models.text_encoder import TextEncoder
from kerasdiff.models.tokenizer import Tokenizer, pad_ids, train_vocabulary
from kerasdiff.training import scenes
from kerasdiff.training.loop import train

VOCABULARY_SIZE = 640
VOCABULARY_CAPTIONS = 4000
BATCH_SIZE = 96
LEARNING_RATE = 1e-3
# Captions have at most 30 tokens; the positions after them only repeat the end token.
SHORT, SHORT_STEPS = 32, 1200
FULL_STEPS = 200
_UNKNOWN_WORD_EVERY = 8

# Question -> number of answers. The last answer means "not said" or "not there".
QUESTIONS = {
    "background": len(scenes.COLOURS) + 1,
    "axis": len(scenes.AXES) + 1,
    **{f"shape{index}": len(scenes.SHAPES) + 1 for index in (0, 1)},
    **{f"colour{index}": len(scenes.COLOURS) + 1 for index in (0, 1)},
    **{f"size{index}": len(scenes.SIZES) + 1 for index in (0, 1)},
}
_ENDS = list(itertools.accumulate(QUESTIONS.values()))
# Question -> its logits among those of the heads.
_LOGITS = {name: slice(end - QUESTIONS[name], end) for name, end in zip(QUESTIONS, _ENDS, strict=True)}


def answers(scene: scenes.Scene, caption: scenes.Caption) -> list[int]:
    """The right answer to each of `QUESTIONS`, in their order."""
    background = scenes.COLOURS.index(scene.background) if caption.tells_background else len(scenes.COLOURS)
    arranged = len(scene.things) == 1 or caption.tells_relation
    axis = scenes.AXES.index(scene.axis) if arranged else len(scenes.AXES)
    things = [scene.things[index] for index in caption.order]
    columns = []
    for names, attribute in ((scenes.SHAPES, "shape"), (scenes.COLOURS, "colour"), (tuple(scenes.SIZES), "size")):
        columns += [*(names.index(getattr(thing, attribute)) for thing in things), len(names)][:2]
    return [background, axis, *columns]


def make_tokenizer(seed: int, path: pathlib.Path) -> Tokenizer:
    """Learns the vocabulary from captions and writes it to `path`."""
    stream = itertools.islice(scenes.scene_stream(seed, "train"), VOCABULARY_CAPTIONS)
    texts = [scenes.caption(scene, rng).text for scene, rng in stream]
    train_vocabulary(texts, VOCABULARY_SIZE).save(str(path))
    return Tokenizer.load(path)


class Reader(keras.Model):
    """A text encoder with a linear layer per question; another one reads the pooled embedding, where there is one."""

    def __init__(
        self, length: int, config: TextEncoderConfig = TINY.main_text_encoder, dtype: str = "mixed_bfloat16"
    ) -> None:
        super().__init__(dtype="float32")
        self.encoder = TextEncoder(config, dtype=dtype)
        self.encoder.build()
        self.heads = keras.layers.Dense(sum(QUESTIONS.values()), dtype="float32", name="heads")
        self.heads.build((None, None, config.width))
        self.pooled_heads = None
        if config.projection is not None:
            self.pooled_heads = keras.layers.Dense(sum(QUESTIONS.values()), dtype="float32", name="pooled_heads")
            self.pooled_heads.build((None, None, config.projection))
        self.length = length
        self.built = True

    def call(self, inputs):
        tokens, targets, ends = inputs
        behind = ops.cast(ops.arange(self.length)[None, :] >= ops.cast(ends, "int32")[:, None], "float32")
        if self.pooled_heads is None:
            context = self.encoder(tokens)
        else:
            context, pooled = self.encoder(tokens, ends=ends)
            said = self.pooled_heads(ops.cast(pooled, "float32")[:, None])
            self.add_loss(_entropy(said, targets, ops.ones_like(behind[:, :1])))
        logits = self.heads(ops.cast(context, "float32"))
        self.add_loss(_entropy(logits, targets, behind))
        return logits


def _entropy(logits, targets, weights):
    """Of the answers, summed over the questions; `weights` (B, places) say which places count."""
    loss = 0.0
    for index, part in enumerate(_LOGITS.values()):
        target = ops.broadcast_to(ops.cast(targets[:, index], "int32")[:, None], ops.shape(weights))
        entropy = keras.losses.sparse_categorical_crossentropy(target, logits[:, :, part], from_logits=True)
        loss = loss + ops.sum(entropy * weights) / ops.sum(weights)
    return loss


def train_text_encoder(
    tokenizer: Tokenizer,
    folder: pathlib.Path,
    *,
    config: TextEncoderConfig = TINY.main_text_encoder,
    seed: int = 0,
    scale: float = 1.0,
) -> Reader:
    """Trains a `Reader`; `scale` multiplies the number of steps."""
    keras.utils.set_random_seed(seed)
    model = Reader(SHORT, config)
    stages = (("short", SHORT, SHORT_STEPS), ("full", config.max_length, FULL_STEPS))
    for number, (name, length, steps) in enumerate(stages):
        model.length = length
        train(
            model,
            functools.partial(_batch, tokenizer, length, seed + number),
            folder=folder / name,
            total_steps=max(1, round(steps * scale)),
            steps_per_epoch=200,
            learning_rate=LEARNING_RATE / (1 + 2 * number),
            ema_momentum=0.995,
        )
    return model


def _batch(tokenizer: Tokenizer, length: int, seed: int, step: int) -> tuple[np.ndarray, ...]:
    """Captions of the training split, some with an unknown word, as the `Reader`'s inputs."""
    stream = scenes.scene_stream(seed + 1000 * (1 + int(step)), "train")
    return _inputs(tokenizer, itertools.islice(stream, BATCH_SIZE), length, unknown_words=True)


def _inputs(tokenizer: Tokenizer, stream: Iterable, length: int, unknown_words: bool) -> tuple[np.ndarray, ...]:
    """Token ids (count, length), answers (count, questions) and positions of the end tokens (count,), int32."""
    rows = []
    for row, (scene, rng) in enumerate(stream):
        caption = scenes.caption(scene, rng)
        spoiled = unknown_words and row % _UNKNOWN_WORD_EVERY == 0
        ids = tokenizer.encode(with_unknown_word(caption.text, rng) if spoiled else caption.text)
        rows.append((pad_ids(ids, length, tokenizer.pad_id), answers(scene, caption), min(len(ids), length) - 1))
    return tuple(np.array(column, "int32") for column in zip(*rows, strict=True))


def with_unknown_word(text: str, rng: np.random.Generator) -> str:
    """The text with one made-up word somewhere, so that unknown words do not change what it says."""
    letters = "".join(chr(ord("a") + int(letter)) for letter in rng.integers(26, size=rng.integers(3, 9)))
    words = text.split(" ")
    words.insert(int(rng.integers(len(words) + 1)), letters)
    return " ".join(words)


def accuracy(model: Reader, tokenizer: Tokenizer, seed: int, count: int = 400) -> dict[str, float]:
    """Fraction of right answers on held-out combinations, read at the end token."""
    stream = itertools.islice(scenes.scene_stream(seed, "held_out"), count)
    tokens, targets, ends = _inputs(tokenizer, stream, TINY.main_text_encoder.max_length, unknown_words=False)
    logits = ops.convert_to_numpy(model.heads(ops.cast(model.encoder(tokens), "float32")))[np.arange(count), ends]
    return {
        name: float((logits[:, part].argmax(-1) == targets[:, index]).mean())
        for index, (name, part) in enumerate(_LOGITS.items())
    }
