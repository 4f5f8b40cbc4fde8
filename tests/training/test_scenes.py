"""Scenes, captions and the score that reads pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kerasdiff.training import scenes, score, text


def some(count, split="train", **arguments):
    return list(itertools.islice(scenes.scene_stream(0, split, **arguments), count))


def test_scenes_repeat_from_their_seed():
    assert [scene for scene, _ in some(20)] == [scene for scene, _ in some(20)]


def test_held_out_combinations_are_never_trained_on():
    train = {scene.key for scene, _ in some(3000)}
    held_out = {scene.key for scene, _ in some(300, "held_out")}
    assert not train & held_out


def test_both_ways_to_say_a_relation_are_one_combination():
    scene = next(scene for scene, _ in some(50) if len(scene.things) == 2)
    assert scene.key.count("|") == 3
    first, second = scenes.plain_caption(scene), scenes.plain_caption(scene, turned=True)
    assert first != second


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'test'"):
        next(scenes.scene_stream(0, "test"))


def test_things_keep_their_distance_and_their_relation():
    for scene, _ in some(500):
        assert scene.background not in {thing.colour for thing in scene.things}
        for thing in scene.things:
            assert thing.radius <= min(thing.x, thing.y, 128 - thing.x, 128 - thing.y) + 1e-6
        if scene.axis != "none":
            first, second = scene.things
            along, across = second.y - first.y, second.x - first.x
            if scene.axis == "horizontal":
                along, across = across, along
            assert along > first.radius + second.radius
            assert along > abs(across)


def test_captions_say_what_is_there():
    for scene, rng in some(300):
        said = scenes.caption(scene, rng)
        for thing in scene.things:
            assert f"{thing.colour} {thing.shape}" in said.text
        assert (scene.background in said.text.split()) or not said.tells_background
        assert "  " not in said.text


def test_the_plain_caption_is_the_readmes():
    def thing(shape, colour):
        return scenes.Thing(shape, colour, "", 0, 0, 1)

    scene = scenes.Scene("yellow", (thing("circle", "red"), thing("square", "blue")), "vertical")
    assert scenes.plain_caption(scene) == "a red circle above a blue square on a yellow background"
    assert scenes.plain_caption(scene, turned=True) == "a blue square below a red circle on a yellow background"


def test_answers_follow_the_caption():
    def thing(shape, colour):
        return scenes.Thing(shape, colour, "", 0, 0, 1)

    scene = scenes.Scene("yellow", (thing("circle", "red"), thing("square", "blue")), "vertical")
    full = text.answers(scene, scenes.Caption("", (0, 1), True, True))
    assert full == [scenes.COLOURS.index("yellow"), 1, 0, 1, 0, 2, 1, 1]
    loose = text.answers(scene, scenes.Caption("", (1, 0), False, False))
    assert loose == [9, 3, 1, 0, 2, 0, 1, 1]
    assert all(answer < count for answer, count in zip(full, text.QUESTIONS.values(), strict=True))


def test_the_score_is_full_for_true_pictures():
    asked = score.held_out_scenes(40, seed=9)
    judged = [score.judge(scenes.render(scene), scene) for scene in asked]
    assert score.summary(judged, asked)["all"] == 1.0


def test_the_score_sees_each_kind_of_mistake():
    def scene(background="yellow", first=("circle", "red"), second=("square", "blue"), turned=False):
        things = [scenes.Thing(first[0], first[1], "", 64, 34, 22), scenes.Thing(second[0], second[1], "", 64, 94, 22)]
        if turned:
            things = [
                scenes.Thing(second[0], second[1], "", 64, 34, 22),
                scenes.Thing(first[0], first[1], "", 64, 94, 22),
            ]
        return scenes.Scene(background, tuple(things), "vertical")

    asked = scene()
    assert score.judge(scenes.render(scene()), asked).all
    assert not score.judge(scenes.render(scene(background="pink")), asked).background
    assert not score.judge(scenes.render(scene(first=("circle", "green"))), asked).colours
    assert not score.judge(scenes.render(scene(first=("ring", "red"))), asked).shapes
    turned = score.judge(scenes.render(scene(turned=True)), asked)
    assert (turned.background, turned.relation) == (True, False)
    alone = scenes.Scene("yellow", asked.things[:1])
    assert not score.judge(scenes.render(alone), asked).relation
    assert not score.judge(scenes.render(asked), alone).shapes
    empty = np.full((128, 128, 3), scenes.PALETTE["yellow"], "uint8")
    assert score.judge(empty, asked) == score.Judgement(True, False, False, False)
