"""AUTOMATIC1111's chunks and weights, against a small implementation of its rules in torch."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import torch

from kerasdiff.diffusion.text_encoding import TextEncoding
from kerasdiff.prompts.schedule import parse
from kerasdiff.prompts.tokens import Token

ROOM = 75
# Pieces with their weights, as `fragments` gives them; None is BREAK.
TEXTS = {
    "a (red:1.3) circle": [("a ", 1.0), ("red", 1.3), (" circle", 1.0)],
    "": [("", 1.0)],
    "a [red] circle BREAK (blue:0)": [("a ", 1.0), ("red", 1 / 1.1), (" circle", 1.0), None, ("blue", 0.0)],
    "BREAK a BREAK BREAK (b)": [None, ("a", 1.0), None, None, ("b", 1.1)],
    # A comma 20 tokens before the end, and one that is too far.
    "(red:1.5)" + " red" * 53 + ", red" + " circle" * 40: [("red", 1.5), (" red" * 53 + ", red" + " circle" * 40, 1.0)],
    "red " * 53 + ", red" + " circle" * 40: [("red " * 53 + ", red" + " circle" * 40, 1.0)],
    # A comma at the very end of a chunk, and one right behind it.
    "red " * 74 + ", circle": [("red " * 74 + ", circle", 1.0)],
    "red " * 75 + ", (circle:0.7)": [("red " * 75 + ", ", 1.0), ("circle", 0.7)],
    "red, " * 40 + "(" + "circle " * 60 + ":1.2)": [("red, " * 40, 1.0), ("circle " * 60, 1.2)],
}


def by_the_rules(encoder, pieces, no_norm=False, clip_skip=0):
    """Embeddings, (chunks * 77, width): token by token, and a chunk at a time through the network."""
    comma = encoder.tokenizer(",", add_special_tokens=False).input_ids[0]
    start, end = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
    chunks, chunk = [], []

    def full():
        nonlocal chunk
        chunks.append(chunk)
        chunk = []

    for piece in pieces:
        if piece is None:
            full()
            continue
        for token in encoder.tokenizer(piece[0], add_special_tokens=False).input_ids:
            commas = [place for place, (one, _) in enumerate(chunk) if one == comma]
            if len(chunk) == ROOM:
                moved = []
                if token != comma and commas and ROOM - commas[-1] <= 20:
                    chunk, moved = chunk[: commas[-1] + 1], chunk[commas[-1] + 1 :]
                full()
                chunk = moved
            chunk.append((token, piece[1]))
    if chunk or not chunks:
        full()
    rows = []
    for chunk in chunks:
        filling = [(end, 1.0)] * (ROOM + 1 - len(chunk))
        ids, weights = zip((start, 1.0), *chunk, *filling, strict=True)
        with torch.no_grad():
            output = encoder.network(torch.tensor([ids]), output_hidden_states=True)
            skipped = encoder.network.final_layer_norm(output.hidden_states[-1 - clip_skip])
            z = (skipped if clip_skip else output.last_hidden_state)[0]
        weighted = z * torch.tensor(weights)[:, None]
        rows.append(weighted if no_norm else weighted * (z.mean() / weighted.mean()))
    return torch.cat(rows).numpy()


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5 * max(1, np.abs(theirs).max())


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_embeddings_follow_the_rules(encoder, text):
    close(encoder.ours(text, "a1111"), by_the_rules(encoder, TEXTS[text]))


def test_weights_without_the_mean_and_with_fewer_layers(encoder):
    text = next(iter(TEXTS))
    ours = encoder.ours(text, "a1111", emphasis="no_norm", clip_skip=1)
    close(ours, by_the_rules(encoder, TEXTS[text], no_norm=True, clip_skip=1))
    plain = encoder.ours("a red circle", "plain")
    assert np.array_equal(encoder.ours("a red circle", "a1111"), plain)
    assert np.array_equal(encoder.ours("a red circle", "compel"), plain)


@pytest.mark.parametrize("syntax", ["plain", "a1111", "compel"])
def test_shorter_texts_are_filled_up_and_longer_ones_cut(encoder, syntax):
    empty, one = encoder.ours("", syntax), encoder.ours("red", syntax)
    close(encoder.ours("red", syntax, chunks=3), np.concatenate([one, empty, empty]))
    with pytest.warns(UserWarning, match="the prompt has"):
        cut = encoder.ours("red " * 100, syntax, chunks=1)
    close(cut, encoder.ours("red " * 75, syntax))


class Words:
    """The token of "red" is a word of three vectors."""

    def __init__(self, encoder):
        (self._id,) = encoder.tokenizer("red", add_special_tokens=False).input_ids
        self._vectors = np.random.default_rng(1).normal(size=(3, 64)).astype("float32")

    def spaced(self, text):
        return text

    def tokens(self, ids):
        word = [Token(0, vector, joined=place > 0) for place, vector in enumerate(self._vectors)]
        return [token for index in ids for token in (word if index == self._id else [Token(index)])]


@pytest.mark.parametrize("syntax", ["plain", "a1111", "compel"])
def test_words_of_ones_own_are_weighted_and_never_cut_apart(encoder, syntax):
    words, weight = Words(encoder), 1.0 if syntax == "plain" else 1.5
    text = "circle " * 74 + {"plain": "red", "a1111": "(red:1.5)", "compel": "(red)1.5"}[syntax]
    encoding = TextEncoding(encoder.stage, emphasis="no_norm", words=words)
    (value,) = parse(text, syntax, 1).values
    assert encoding.chunks_of(value) == 2
    ours = encoding.encode(value, 2).context.reshape(2, 77, 64)
    (circle,) = encoder.stage.tokens("circle")
    rows, _ = encoder.stage.encode([[circle] * 74, words.tokens([words._id])])
    close(ours[0], rows[0])
    origin = encoder.stage.encode([[]])[0][0] if syntax == "compel" else 0
    rows[1, 1:4] = (origin + (rows[1] - origin) * weight)[1:4]
    close(ours[1], rows[1])
