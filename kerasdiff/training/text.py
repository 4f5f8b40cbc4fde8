"""Stage 2: the text encoder learns what a caption says, from captions alone.

Stable Diffusion takes over a text encoder that was trained before on another task (CLIP's) and
freezes it. Here the task is to read a caption: from every place at or after the end token, linear
layers tell the background, the arrangement, and what the upper (or left) and the lower (or right)
thing are. Without this stage the order of two things stays at chance, because in a causal encoder
the words of the first thing cannot see the relation that follows.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from kerasdiff.models.config import TINY
from kerasdiff.models.text_encoder import TextEncoder
from kerasdiff.models.tokenizer import Tokenizer, pad_ids, train_vocabulary
from kerasdiff.training import scenes
from kerasdiff.training.loop import stepwise, train

VOCABULARY_SIZE = 640
VOCABULARY_CAPTIONS = 4000
BATCH_SIZE = 96
LEARNING_RATE = 1e-3
# Captions have at most 30 tokens; the places behind them only repeat the end token.
SHORT, SHORT_STEPS = 32, 1200
FULL_STEPS = 200
_STRANGE_WORD_EVERY = 8

# What is asked: name -> number of answers. The last answer means "not said" or "not there".
QUESTIONS = {
    "background": len(scenes.COLOURS) + 1,
    "axis": len(scenes.AXES) + 1,
    **{f"shape{place}": len(scenes.SHAPES) + 1 for place in (0, 1)},
    **{f"colour{place}": len(scenes.COLOURS) + 1 for place in (0, 1)},
    **{f"size{place}": len(scenes.SIZES) + 1 for place in (0, 1)},
}


def answers(scene: scenes.Scene, caption: scenes.Caption) -> list[int]:
    """The right answer to each of `QUESTIONS`, in their order."""
    background = scenes.COLOURS.index(scene.background) if caption.tells_background else len(scenes.COLOURS)
    told = len(scene.things) == 1 or caption.tells_relation
    axis = scenes.AXES.index(scene.axis) if told else len(scenes.AXES)
    things = [scene.things[index] for index in caption.order]
    columns = []
    for names, attribute in ((scenes.SHAPES, "shape"), (scenes.COLOURS, "colour"), (tuple(scenes.SIZES), "size")):
        said = [names.index(getattr(thing, attribute)) for thing in things]
        columns += [*said, len(names)][:2]
    return [background, axis, *columns]


def make_tokenizer(seed: int, path: pathlib.Path) -> Tokenizer:
    """Learns the vocabulary from captions and writes it to `path`."""
    texts = [caption.text for _, caption in _captions(seed, VOCABULARY_CAPTIONS)]
    train_vocabulary(texts, VOCABULARY_SIZE).save(str(path))
    return Tokenizer.load(path)


def _captions(seed: int, count: int) -> Iterator[tuple[scenes.Scene, scenes.Caption]]:
    stream = scenes.scene_stream(seed, "train")
    for _ in range(count):
        scene, rng = next(stream)
        yield scene, scenes.caption(scene, rng)


class Reader(keras.Model):
    """The text encoder with one linear layer a question."""

    def __init__(self, length: int, dtype: str = "mixed_bfloat16") -> None:
        super().__init__(dtype="float32")
        self.encoder = TextEncoder(TINY.text_encoder, dtype=dtype)
        self.encoder.build()
        self.heads = keras.layers.Dense(sum(QUESTIONS.values()), dtype="float32", name="heads")
        self.heads.build((None, None, TINY.text_encoder.width))
        self.length = length
        self.built = True

    def call(self, inputs):
        tokens, wanted, ends = inputs
        logits = self.heads(ops.cast(self.encoder.encode(tokens, self.length), "float32"))
        behind = ops.cast(ops.arange(self.length)[None, :] >= ops.cast(ends, "int32")[:, None], "float32")
        loss, start = 0.0, 0
        for index, count in enumerate(QUESTIONS.values()):
            target = ops.broadcast_to(ops.cast(wanted[:, index], "int32")[:, None], ops.shape(behind))
            part = keras.losses.sparse_categorical_crossentropy(
                target, logits[:, :, start : start + count], from_logits=True
            )
            loss = loss + ops.sum(part * behind) / ops.sum(behind)
            start += count
        self.add_loss(loss)
        return logits


def train_text_encoder(tokenizer: Tokenizer, folder: pathlib.Path, *, seed: int = 0, scale: float = 1.0) -> Reader:
    """Trains a `Reader`; `scale` multiplies the number of steps."""
    keras.utils.set_random_seed(seed)
    model = Reader(SHORT)
    for number, (name, length, steps) in enumerate(
        (("short", SHORT, SHORT_STEPS), ("full", TINY.text_encoder.max_length, FULL_STEPS))
    ):
        model.length = length
        train(
            model,
            functools.partial(
                stepwise,
                functools.partial(_batch, tokenizer, length, seed + number),
                ((BATCH_SIZE, length), (BATCH_SIZE, len(QUESTIONS)), (BATCH_SIZE,)),
            ),
            folder=folder / name,
            total_steps=max(1, round(steps * scale)),
            steps_per_epoch=max(1, min(200, round(steps * scale))),
            learning_rate=LEARNING_RATE / (1 + 2 * number),
            ema_momentum=0.995,
        )
    return model


def _batch(tokenizer: Tokenizer, length: int, seed: int, step: int) -> tuple[np.ndarray, ...]:
    """Token ids, answers and the place of the end token of one batch of captions."""
    stream = scenes.scene_stream(seed + 1000 * (1 + int(step)), "train")
    tokens = np.empty((BATCH_SIZE, length), "int32")
    wanted = np.empty((BATCH_SIZE, len(QUESTIONS)), "int32")
    ends = np.empty(BATCH_SIZE, "int32")
    for row in range(BATCH_SIZE):
        scene, rng = next(stream)
        said = scenes.caption(scene, rng)
        ids = tokenizer.encode(with_strange_word(said.text, rng) if row % _STRANGE_WORD_EVERY == 0 else said.text)
        tokens[row] = pad_ids(ids, length)
        wanted[row] = answers(scene, said)
        ends[row] = min(len(ids), length) - 1
    return tokens, wanted, ends


def with_strange_word(text: str, rng: np.random.Generator) -> str:
    """The text with one made-up word somewhere, so that unknown words do not change what it says."""
    letters = "".join(chr(ord("a") + int(letter)) for letter in rng.integers(26, size=rng.integers(3, 9)))
    words = text.split(" ")
    words.insert(int(rng.integers(len(words) + 1)), letters)
    return " ".join(words)


def accuracy(model: Reader, tokenizer: Tokenizer, seed: int, count: int = 400) -> dict[str, float]:
    """Share of right answers on held-out combinations, read at the end token."""
    length = TINY.text_encoder.max_length
    stream = scenes.scene_stream(seed, "held_out")
    tokens, wanted, ends = [], [], []
    for _ in range(count):
        scene, rng = next(stream)
        said = scenes.caption(scene, rng)
        ids = tokenizer.encode(said.text)
        tokens.append(pad_ids(ids, length))
        wanted.append(answers(scene, said))
        ends.append(len(ids) - 1)
    hidden = model.encoder(np.array(tokens))
    logits = ops.convert_to_numpy(model.heads(ops.cast(hidden, "float32")))[np.arange(count), ends]
    shares, start = {}, 0
    for index, (name, size) in enumerate(QUESTIONS.items()):
        right = logits[:, start : start + size].argmax(-1) == np.array(wanted)[:, index]
        shares[name] = float(right.mean())
        start += size
    return shares
