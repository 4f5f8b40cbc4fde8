"""Names of samplers and spacings, as other programs write them."""

from __future__ import annotations

import numpy as np
import pytest

from kerasdiff.errors import RequestError
from kerasdiff.models.config import SD_V1, TINY
from kerasdiff.request import make_request
from kerasdiff.samplers import SAMPLERS, SPACINGS, sampling_levels, trajectory
from kerasdiff.samplers.names import sampler_and_spacing, spacing_name


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++2M Karras", ("dpmpp_2m", "karras")),
        ("dpm++ 2m sde exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 3M SDE Exponential", ("dpmpp_3m_sde", "exponential")),
        ("DPM++ SDE Karras", ("dpmpp_sde", "karras")),
        ("DPM2 a Karras", ("kdpm2_a", "karras")),
        ("LMS Karras", ("lms", "karras")),
        ("DPM++ 2M (Karras)", ("dpmpp_2m", "karras")),
        ("DPM++ 2M, Karras", ("dpmpp_2m", "karras")),
        ("DPM Solver++", ("dpmpp_2m", None)),
        ("UniPC BH2", ("unipc", None)),
        ("Euler Beta", ("euler", "beta")),
        ("Euler Trailing", ("euler", "trailing")),
        ("UniPC Polyexponential", ("unipc", "exponential")),
        ("Euler a", ("euler_a", None)),
        ("PLMS", ("pndm", None)),
        ("LCM", ("lcm", None)),
        ("euler_ancestral", ("euler_a", None)),
        ("dpm_2", ("kdpm2", None)),
        ("dpm_2_ancestral", ("kdpm2_a", None)),
        ("dpmpp_2m_sde_gpu", ("dpmpp_2m_sde", None)),
        ("uni_pc", ("unipc", None)),
        ("uni_pc_bh2", ("unipc", None)),
        ("k_dpmpp_2m_ka", ("dpmpp_2m", "karras")),
        ("K_DPM_2_ANCESTRAL", ("kdpm2_a", None)),
        ("sample_heun", ("heun", None)),
        ("KLMS", ("lms", None)),
        ("dpmpp_2m_sde_k", ("dpmpp_2m_sde", "karras")),
        ("kdpm_2_a_k", ("kdpm2_a", "karras")),
        ("EulerAncestralDiscrete", ("euler_a", None)),
    ],
)
def test_a_name_is_a_sampler_and_perhaps_a_spacing(said, meant):
    assert sampler_and_spacing(said) == meant
    request = make_request(TINY, "a", sampler=said)
    assert (request.sampler, request.spacing) == (meant[0], meant[1] or TINY.defaults.spacing)
    assert make_request(TINY, **request.arguments()) == request


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_goes_with_every_spacing_in_one_name(name):
    for alias in (name, *SAMPLERS[name].aliases):
        assert sampler_and_spacing(alias) == (name, None)
        for spacing in SPACINGS:
            assert sampler_and_spacing(f"{alias} {spacing.title()}") == (name, spacing)
            assert sampler_and_spacing(f"{alias}_{spacing}", spacing.upper()) == (name, spacing)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (
            ("DPM++ 2M Karras", "trailing"),
            "means spacing='karras', but spacing='trailing' is given; leave one of them out",
        ),
        (
            ("DPM adaptive",),
            "sampler='DPM adaptive' is not available here; it chooses its own step size; dpm_solver is",
        ),
        (("DPM fast",), "sampler='DPM fast' is not available here; dpm_solver is the nearest"),
        (("Restart",), "sampler='Restart' is not available here; heun is the nearest"),
        (("ipndm",), "sampler='ipndm' is not available here; pndm is the nearest"),
        (("IPNDMScheduler",), "sampler='IPNDMScheduler' is not available here; pndm is the nearest"),
        (("Euler a CFG++",), "sampler='Euler a CFG++' is not available here; euler_a is the one without CFG++"),
        (("euler_cfg_pp",), "sampler='euler_cfg_pp' is not available here; euler is the one without CFG++"),
        (
            ("DPM++ 2S a Karras",),
            "sampler='DPM++ 2S a Karras': sampler='dpmpp_2s_a' is not available here; dpmpp_2s is",
        ),
        (("DPM++ 2M SDE Heun",), "it is dpmpp_2m_sde with sampler_options={'solver_type': 'heun'}"),
        (("Eular Karras",), "sampler='Eular Karras': sampler='eular' is unknown; did you mean 'euler'?"),
        (("DPM++ 2M SGMUniform",), "spacing='sgmuniform' is not available here; 'trailing' is the nearest"),
        (("Karras",), "sampler='Karras' is a spacing; give it as spacing='karras'"),
        (("ddim_uniform",), "sampler='ddim_uniform' is a spacing, and not available; 'leading' is the nearest"),
        (("euler", "SGM Uniform"), "spacing='SGM Uniform' is not available here; 'trailing' is the nearest"),
        (("euler", "simple"), "spacing='simple' is not available here; 'trailing' is the nearest, and the same where"),
        (("euler", "Automatic"), "spacing='Automatic' is not available here; leave it out for the model's own"),
        (("euler", "kl_optimal"), "spacing='kl_optimal' is not available here; give its noise levels as sigmas"),
        (("euler", "kar"), "spacing='kar' is unknown; did you mean 'karras'?"),
        (("euler", 3), "spacing=3 is unknown; known: ays, ays_sdxl, beta"),
    ],
)
def test_what_is_not_here_is_one_line_with_the_nearest(wrong, line):
    with pytest.raises(RequestError) as found:
        sampler_and_spacing(*wrong)
    assert line in str(found.value)
    assert str(found.value).isprintable()


def test_what_a_message_tells_to_write_can_be_written():
    make_request(TINY, "a", sampler="dpmpp_2m_sde", sampler_options={"solver_type": "heun"})
    with pytest.raises(RequestError, match=r"it is dpmpp_2m with sampler_options=\{'solver_order': 3\}"):
        sampler_and_spacing("dpmpp_3m_k")
    make_request(TINY, "a", sampler="dpmpp_2m", sampler_options={"solver_order": 3})


def test_a_spacing_in_the_name_is_one_way_to_choose_levels():
    with pytest.raises(RequestError, match="spacing and timesteps both say which noise levels to visit"):
        make_request(TINY, "a", sampler="Euler Karras", timesteps=[999, 500])
    arguments = {"model": lambda x, t: x, "x": np.ones(4), "num_steps": 3}
    (*_, named), (*_, plain) = (
        trajectory("DPM++ 2M Karras", **arguments),
        trajectory("dpmpp_2m", spacing="karras", **arguments),
    )
    assert np.array_equal(named, plain)


def test_spacings_have_names_of_other_programs():
    assert [spacing_name(name) for name in ("Karras", " Exponential", "Polyexponential", "BETA", "keras_cv")] == [
        "karras",
        "exponential",
        "exponential",
        "beta",
        "keras_cv",
    ]


def test_the_nearest_spacings_are_as_near_as_is_said():
    trained = np.asarray(sampling_levels(SD_V1.schedule, "euler", 1, spacing="trailing").trained)
    last = len(trained) - 1

    def ours(spacing, num_steps, sampler="euler"):
        return np.asarray(sampling_levels(SD_V1.schedule, sampler, num_steps, spacing=spacing).timesteps)

    for num_steps in (4, 7, 20, 30, 50):
        steps = np.arange(num_steps)
        assert np.allclose(ours("linspace", num_steps), np.linspace(last, 0, num_steps))
        sgm = np.linspace(last, 0, num_steps + 1)[:-1]
        assert 0 < np.max(np.abs(ours("trailing", num_steps) - sgm)) < 2
        simple = last - np.floor(steps * (last + 1) / num_steps)
        near = np.max(np.abs(ours("trailing", num_steps) - simple))
        assert near == 0 if 1000 % num_steps == 0 else near == 1
        uniform = np.arange(1, last + 1, (last + 1) // num_steps)[::-1]
        if 1000 % num_steps == 0:
            assert np.array_equal(ours("leading", num_steps, "ddim"), uniform)
        else:
            assert len(uniform) != num_steps
