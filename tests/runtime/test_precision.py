"""What "auto" becomes on each kind of device."""

from __future__ import annotations

import pytest

from kerasdiff.runtime import precision
from kerasdiff.runtime.precision import Execution, choose

CASES = [
    # GPU, bfloat16 processor, large model -> decision
    (True, False, True, Execution("GPU", "float16", True)),
    (True, True, False, Execution("GPU", "float16", True)),
    (False, True, True, Execution("CPU", "bfloat16", False)),
    (False, True, False, Execution("CPU", "float32", False)),
    (False, False, True, Execution("CPU", "float32", True)),
]


@pytest.mark.parametrize(("gpu", "bfloat16", "large", "expected"), CASES)
def test_auto(monkeypatch, gpu, bfloat16, large, expected):
    monkeypatch.setattr(precision, "has_gpu", lambda backend: gpu)
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: bfloat16)
    assert choose("auto", "auto", large) == expected


def test_what_is_asked_for_is_not_changed():
    for name in precision.PRECISIONS:
        for jit_compile in (True, False):
            chosen = choose(name, jit_compile, large=True)
            assert (chosen.precision, chosen.jit_compile) == (name, jit_compile)
            assert chosen.policy.name == name


def test_it_says_itself_in_one_line():
    assert str(Execution("CPU", "bfloat16", False)) == "CPU, bfloat16, no XLA"
