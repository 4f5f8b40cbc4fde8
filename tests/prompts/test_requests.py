"""A request with a syntax draws what its embeddings draw."""

from __future__ import annotations

import numpy as np
import pytest

from kerasdiff.diffusion.text_encoding import TextEncoding
from kerasdiff.errors import RequestError
from kerasdiff.prompts.schedule import parse

SETTINGS = {"num_steps": 2, "seed": 1, "height": 64, "width": 64}


@pytest.mark.parametrize(
    ("syntax", "text", "negative"),
    [
        ("a1111", "a (red:1.4) circle [on white]", "(dark:1.2) AND blue"),
        ("compel", "a red++ circle on (white)0.5", '("dark", "blue").blend(1, 0.5)'),
    ],
)
def test_images_are_those_of_the_embeddings(tiny, syntax, text, negative):
    image = tiny.generate(text, negative_prompt=negative, prompt_syntax=syntax, **SETTINGS).images
    encoding = TextEncoding(tiny._pipeline.conditioner.main)
    texts = [parse(one, syntax, 2, is_negative).values for one, is_negative in ((text, False), (negative, True))]
    embeds, negatives = (encoding.encode(value, 1).context[None] for (value,) in texts)
    given = tiny.generate(prompt_embeds=embeds, negative_prompt_embeds=negatives, **SETTINGS).images
    assert np.array_equal(image, given)
    with pytest.warns(UserWarning, match="prompts are plain text here"):
        plain = tiny.generate(text, negative_prompt=negative, **SETTINGS).images
    assert not np.array_equal(image, plain)


def test_what_would_change_nothing_is_refused(tiny):
    with pytest.raises(RequestError, match="emphasis needs prompt_syntax='a1111'"):
        tiny.generate("a (red:1.2) circle", prompt_syntax="compel", emphasis="no_norm", **SETTINGS)
    embeds = tiny.encode_text(["a red circle"])
    for others in ({}, {"prompt_syntax": "a1111", "negative_prompt_embeds": embeds}):
        with pytest.raises(RequestError, match="clip_skip changes no embeddings that are given"):
            tiny.generate(prompt_embeds=embeds, clip_skip=1, **others, **SETTINGS)
    read = {"negative_prompt": "dark", "prompt_syntax": "a1111"}
    assert len(tiny.generate(prompt_embeds=embeds, clip_skip=1, **read, **SETTINGS)) == 1


def test_an_exact_image_has_no_more_chunks_than_by_itself(tiny):
    texts, arguments = ["a red circle", "a star BREAK a square"], {"exact": True, "prompt_syntax": "a1111", **SETTINGS}
    both = tiny.generate(texts, **arguments)
    alone = tiny.generate(texts[0], **arguments)
    assert np.array_equal(both.latents[0], alone.latents[0])


def test_prompts_of_different_lengths_have_as_many_chunks(tiny):
    texts = ["a red circle", "a red circle BREAK a blue square BREAK (white:1.2)"]
    both = tiny.generate(texts, negative_prompt="dark", prompt_syntax="a1111", num_steps=1, seed=1, height=64, width=64)
    assert both.images.shape == (2, 64, 64, 3)
