"""compel's syntax: the same pieces and the same embeddings as the package."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import compel

LONG = "a red circle above a blue square. a green star on white, a small triangle " * 6

TEXTS = [
    "a red circle",
    "",
    "a red++ circle on blue-",
    "a (small red)1.3 circle- (on white)0.4 and (on black)-- x",
    "((red)+ circle)+ on (a (blue)0.5 square)1.2",
    '("a red circle", "a blue square").blend(1, 0.8)',
    '("a red+ circle", "a (blue)0.3 square").blend(0.5, -0.2, no_normalize)',
    '("a red circle", "a blue- square").and()',
    f'("a red circle", "{LONG}").and(1, 0.5)',
    f'("{LONG}", "a red- circle").blend(1, 0.5)',
    LONG + "(red)1.4",
    f"a circle ({LONG})0.6 and ({LONG})1.2",
    "red " * 100 + "(blue)-",
    "(red)0 circle and (green)-1 square",
    "x" * 200 + "-",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_embeddings_are_those_of_compel(encoder, text):
    package = compel.Compel(encoder.tokenizer, encoder.network, truncate_long_prompts=False)
    theirs = package(text)[0].numpy()
    ours = encoder.ours(text, "compel")
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5 * max(1, np.abs(theirs).max())
