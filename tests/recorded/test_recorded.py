"""Every recorded request draws what it drew when it was recorded."""

from __future__ import annotations

import pytest
import recorder
from recorded_models import Models
from recorded_requests import REQUESTS

RECORD = recorder.read_record()


def marked(name: str):
    asked = REQUESTS[name]
    marks = [pytest.mark.slow] * asked.slow + [pytest.mark.full_size] * asked.full_size
    return pytest.param(name, id=name, marks=marks)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("recorded"))


@pytest.mark.parametrize("name", [marked(name) for name in REQUESTS])
def test_a_request_draws_what_was_recorded(models, name):
    assert name in RECORD["requests"], f"{name} is not recorded; run python tests/recorded/recorder.py --write {name}"
    outcome = recorder.carry_out(name, models)
    same_bits = RECORD["facts"] == recorder.facts()
    wrong = recorder.differences(outcome, RECORD["requests"][name], same_bits, REQUESTS[name].rough)
    assert not wrong, "\n  ".join([f"{name} differs from the record:", *wrong])


def test_nothing_is_recorded_that_is_not_asked_for():
    assert sorted(RECORD["requests"]) == sorted(REQUESTS)


def test_every_sampler_and_spacing_is_recorded():
    import kerasdiff

    assert {f"sampler-{name}" for name in kerasdiff.SAMPLERS} <= REQUESTS.keys()
    assert {f"spacing-{name}-dpmpp_2m" for name in kerasdiff.SPACINGS if name != "flow"} <= REQUESTS.keys()
