"""The adapters that ship: each draws what the embedded model does not know, and without it nothing does."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from safetensors import safe_open

import kerasdiff
from kerasdiff.adapters.lora_file import read_lora
from kerasdiff.training import consistency, score
from kerasdiff.training.concepts import CONCEPTS, prompts

FOLDER = pathlib.Path(kerasdiff.__file__).parent / "presets" / "adapters"
ENOUGH = 0.95
each = pytest.mark.parametrize("name", CONCEPTS)


def file_of(name):
    return FOLDER / f"{name.strip('<>')}.safetensors"


def shown(generator, name, count, **arguments):
    """In which of so many images the scorer sees a concept."""
    texts = prompts(name, count)
    drawn = [
        generator.generate(texts[first : first + 8], seed=first, progress=False, **arguments).images
        for first in range(0, count, 8)
    ]
    return [CONCEPTS[name].shown(image) for image in np.concatenate(drawn)]


def adapter_of(name):
    return {"embeddings": file_of(name)} if name.startswith("<") else {"loras": file_of(name)}


@each
def test_a_few_images_with_it(tiny, name):
    assert sum(shown(tiny, name, 4, **adapter_of(name))) >= 3


@each
def test_an_image_without_it(tiny, name):
    assert not any(shown(tiny, name, 1))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tiny", "openvino"])
@each
def test_forty_seeds(request, backend, name):
    generator = request.getfixturevalue(backend)
    assert np.mean(shown(generator, name, 40, **adapter_of(name))) >= ENOUGH
    assert np.mean(shown(generator, name, 40)) <= 1 - ENOUGH


def test_two_at_once(tiny):
    moon = tiny.generate(
        prompts("moon", 4), seed=0, loras=[file_of("moon"), file_of("blueprint")], progress=False
    ).images
    assert all(CONCEPTS["blueprint"].shown(image) for image in moon)


def test_their_files():
    files = sorted(FOLDER.iterdir())
    assert {file.stem for file in files} == {"lcm", *(name.strip("<>") for name in CONCEPTS)}
    assert sum(file.stat().st_size for file in files) < 820_000
    lora = read_lora(file_of("lcm"))
    assert (lora.metadata, lora.ranks) == (consistency.metadata(0), (consistency.RECIPE.rank,))
    for name in CONCEPTS:
        with safe_open(file_of(name), "np") as file:
            assert {file.get_tensor(key).dtype.name for key in file.keys()} == {"float16"}  # noqa: SIM118
            if name.startswith("<"):
                assert {key: file.get_tensor(key).shape for key in file.keys()} == {name: (2, 128)}  # noqa: SIM118
            else:
                lora = read_lora(file_of(name))
                assert lora.metadata["ss_output_name"] == name
                assert lora.ranks == (int(lora.metadata["ss_network_dim"]),)


def right(generator, count, **arguments):
    """How many images of so many prompts, in combinations that training never saw, show all that is asked for."""
    asked = score.held_out_scenes(count, seed=2)
    drawn, _ = score.draw(generator, score.prompts_of(asked), 2, recipe="lcm", **arguments)
    return sum(score.judge(image, scene).all for image, scene in zip(drawn, asked, strict=True))


def test_four_steps_without_guidance(tiny):
    with_it = right(tiny, 16, loras=file_of("lcm"))
    assert with_it >= 13
    assert with_it > right(tiny, 16)


@pytest.mark.slow
def test_four_steps_of_two_hundred_prompts(openvino):
    with_it = right(openvino, 200, loras=file_of("lcm"))
    assert with_it >= 0.85 * 200
    assert right(openvino, 200) < 0.75 * 200
