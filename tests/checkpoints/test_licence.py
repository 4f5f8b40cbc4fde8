"""The licence of a model from the hub is one line on stderr, once. Each run is a process of its own."""

from __future__ import annotations

import hashlib

import checkpoints
import pytest
from fake_hub import GUARD, LICENCE, lines_of, serve, start, start_opening

PRESET = """
import sys
from kerasdiff.checkpoints.formats import keras_cv_h5
keras_cv_h5.PUBLISHED[sys.argv[1]] = dict.fromkeys(("text_encoder", "unet", "decoder"), ("org/name", *sys.argv[2:]))
keras_cv_h5.from_hub(sys.argv[1])
print("found")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("hub")
    saved = checkpoints.save(checkpoints.pipeline("v1", made / "vocabulary"), made / "model")
    (saved / "net.h5").write_bytes(b"weights")
    return saved


def notices(process):
    """The lines on the licence that a process gave, which found its model."""
    line, err = lines_of(process)
    assert not line.startswith("ModelError")
    return [line for line in err.splitlines() if "the weights of" in line]


def test_it_comes_once_for_each_model(folder, tmp_path):
    with serve(folder) as (endpoint, asked):
        stated = f"the weights of org/name are under the licence '{LICENCE}': see {endpoint}/org/name"
        assert notices(start_opening(tmp_path, endpoint, "org/name")) == [stated]
        asked.clear()
        assert notices(start_opening(tmp_path, endpoint, "hf://org/name")) == []
        # Its page is not asked again.
        assert "GET api/models/org/name" not in asked
        assert notices(start_opening(tmp_path, endpoint, "org/bare")) == [
            f"the weights of org/bare have a licence of their own: see {endpoint}/org/bare"
        ]


def test_neither_offline_nor_an_unwritable_place_is_an_error(folder, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with serve(folder) as (endpoint, _):
        for _ in range(2):
            unwritable = start_opening(
                tmp_path, endpoint, "org/name", KERASDIFF_CACHE=str(tmp_path / "file" / "markers")
            )
            (line,) = notices(unwritable)
            assert LICENCE in line
    offline = start_opening(tmp_path, endpoint, "org/name", HF_HUB_OFFLINE="1")
    assert notices(offline) == [f"the weights of org/name have a licence of their own: see {endpoint}/org/name"]


@pytest.mark.parametrize(
    ("preset", "name"), [("sd-v1-4", "CreativeML OpenRAIL-M"), ("sd-v2-1", "CreativeML Open RAIL++-M")]
)
def test_that_of_a_preset_is_known(preset, name, folder, tmp_path):
    command = ("-c", PRESET, preset, "net.h5", hashlib.sha256(b"weights").hexdigest())
    with serve(folder) as (endpoint, asked):
        expected = f"the weights of {preset} are under the licence {name}: see {endpoint}/org/name"
        assert notices(start(tmp_path, endpoint, *command)) == [expected]
        assert notices(start(tmp_path, endpoint, *command)) == []
        assert "GET api/models/org/name" not in asked


def test_the_command_line_shows_it_and_none_of_the_requests(folder, tmp_path):
    command = ("-m", "kerasdiff", "a circle", "--model=org/name", "--num_steps=0")
    with serve(folder) as (endpoint, _):
        process = start(tmp_path, endpoint, *command)
        out, err = process.communicate(timeout=GUARD)
    assert (process.returncode, out) == (2, "")
    assert "kerasdiff: the weights of org/name are under the licence" in err
    assert "HTTP" not in err


def test_random_weights_have_none(folder, tmp_path):
    with serve(folder) as (endpoint, _):
        assert notices(start_opening(tmp_path, endpoint, "org/name", arguments={"weights": "random"})) == []
