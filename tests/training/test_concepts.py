"""Concepts that adapters teach: what their scorers say of pictures that are surely with them, or without."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kerasdiff.training import concepts, scenes

each = pytest.mark.parametrize("name", concepts.CONCEPTS)


@each
def test_a_scorer_sees_its_concept_and_nothing_else(name):
    concept = concepts.CONCEPTS[name]
    stream = itertools.islice(scenes.scene_stream(5, "held_out"), 6)
    for scene, rng in stream:
        assert concept.shown(concept.render(concept.scene(scene, rng)))
        assert not concept.shown(scenes.render(scene))
        for other in concepts.CONCEPTS.keys() - {name}:
            assert not concepts.CONCEPTS[other].shown(concept.render(concept.scene(scene, rng)))


@each
def test_training_pictures_are_the_same_every_time_and_show_no_combination_of_the_prompts(name):
    pictures, captions = concepts.examples(name, 8, seed=3)
    again, texts = concepts.examples(name, 8, seed=3)
    assert np.array_equal(pictures, again)
    assert captions == texts
    shown = np.mean([concepts.CONCEPTS[name].shown(picture) for picture in pictures])
    assert shown == 1 if concepts.CONCEPTS[name].ordinary == 0 else 0.3 < shown < 1
    prompts = concepts.prompts(name, 8)
    assert prompts == concepts.prompts(name, 8)
    assert not set(prompts) & set(itertools.chain(*captions))
    if name != "blueprint":  # a style has no word
        assert all(name in prompt for prompt in prompts)
