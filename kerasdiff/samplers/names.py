"""Names of samplers and spacings, as other programs write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.samplers.registry import SAMPLERS, SPACINGS

# Names that ComfyUI, InvokeAI and web services have besides the aliases of `SAMPLERS`.
_ALSO = {
    "dpm_2": "kdpm2",
    "kdpm_2": "kdpm2",
    "dpm_2_a": "kdpm2_a",
    "dpm_2_ancestral": "kdpm2_a",
    "dpm2_ancestral": "kdpm2_a",
    "kdpm_2_a": "kdpm2_a",
    "kdpm_2_ancestral": "kdpm2_a",
    "dpmsolverpp": "dpmpp_2m",
    "dpm_solverpp": "dpmpp_2m",
    "deis_multistep": "deis",
    "klms": "lms",
    "lmsd": "lms",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "unipc_bh2": "unipc",
}
# Samplers that are not here, and what comes closest.
_STEP_SIZE = "it chooses its own step size; dpm_solver is the method with fixed steps"
_UNAVAILABLE = {
    "dpm_adaptive": _STEP_SIZE,
    "dpm_fast": "dpm_solver is the nearest",
    "restart": "heun is the nearest, without restarts",
    "dpmpp_2s_a": "dpmpp_2s is the one without fresh noise",
    "dpmpp_2s_ancestral": "dpmpp_2s is the one without fresh noise",
    "dpmpp_2m_sde_heun": "it is dpmpp_2m_sde with sampler_options={'solver_type': 'heun'}",
    **dict.fromkeys(("unipc_bh1", "uni_pc_bh1"), "it is unipc with sampler_options={'solver_type': 'bh1'}"),
    "dpmpp_3m": "it is dpmpp_2m with sampler_options={'solver_order': 3}",
    "heunpp2": "heun is the nearest",
    "ipndm": "pndm is the nearest",
    "ipndm_v": "pndm is the nearest",
    **{
        f"{name}_{ending}": f"{name} is the one without CFG++"
        for name in ("euler", "euler_a", "euler_ancestral", "dpmpp_2m", "ddim")
        for ending in ("cfg_pp", "cfgpp")
    },
    **dict.fromkeys(
        ("res_multistep", "gradient_estimation", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece"),
        "no sampler here is like it",
    ),
}
_SPACINGS = {"ka": "karras", "k": "karras", "polyexponential": "exponential"}
# Of which a spacing's name has at most so many.
_WORDS = 4
_OWN_SIGMAS = "give its noise levels as sigmas"
# Spacings that are not here. Those with a near one visit other levels than it for some numbers of steps.
_NO_SPACINGS = {
    "automatic": "leave it out for the model's own; AUTOMATIC1111 takes karras for most of DPM++",
    "normal": "'linspace' is the nearest",
    "uniform": "'linspace' is the nearest",
    "beta57": "'beta' is the nearest",
    "simple": "'trailing' is the nearest, and the same where the number of steps divides 1000",
    "sgm_uniform": "'trailing' is the nearest, within two timesteps",
    "sgmuniform": "'trailing' is the nearest, within two timesteps",
    "ddim_uniform": "'leading' is the nearest, and the same where the number of steps divides 1000",
    "ddim": "'leading' is the nearest, and the same where the number of steps divides 1000",
    "karras_exponential": "'karras' and 'exponential' are here",
    "align_your_steps": "'ays' is the nearest: its authors' own, whose last step ends without noise",
    **dict.fromkeys(("kl_optimal", "align_your_steps_gits", "linear_quadratic", "turbo", "gits"), _OWN_SIGMAS),
}


def _plain(name: str) -> str:
    """A name in the form that is compared: "DPM++ 2M (SDE)" becomes "dpmpp_2m_sde"."""
    words = re.sub(r"\+\+(?=\w)", "pp_", name.lower()).replace("++", "pp")
    return re.sub(r"[ _,/()-]+", "_", words).strip("_ ")


_NAMES = {_plain(alias): name for name, sampler in SAMPLERS.items() for alias in (name, *sampler.aliases)}
_NAMES |= {alias.removesuffix("scheduler"): name for alias, name in _NAMES.items()} | _ALSO


def sampler_name(value: Any) -> str:
    """The name in `SAMPLERS` of a sampler, also from "DPMSolverMultistepScheduler" (diffusers) or "DPM++ 2M".

    Raises:
        RequestError: there is no such sampler; the message has the nearest name and the list of all.
    """
    plain = _plain(value) if isinstance(value, str) else ""
    for name in _endings(plain):
        if name in _NAMES:
            return _NAMES[name]
        if name in _UNAVAILABLE:
            raise RequestError(f"sampler={validation.shown(value)} is not available here; {_UNAVAILABLE[name]}")
    if plain in SPACINGS:
        raise RequestError(f"sampler={validation.shown(value)} is a spacing; give it as spacing={plain!r}")
    if plain in _NO_SPACINGS:
        raise RequestError(f"sampler={validation.shown(value)} is a spacing, and not available; {_NO_SPACINGS[plain]}")
    near = validation.nearest(plain, _NAMES)
    hint = f"did you mean {_NAMES[near]!r}? " if near else ""
    raise RequestError(f"sampler={validation.shown(value)} is unknown; {hint}known: {', '.join(sorted(SAMPLERS))}")


def spacing_name(value: Any) -> str:
    """The name in `SPACINGS` of a spacing, also from "Karras" or "Polyexponential".

    Raises:
        RequestError: there is no such spacing; the message has the nearest one.
    """
    plain = _plain(value) if isinstance(value, str) else ""
    plain = _SPACINGS.get(plain, plain)
    if plain in SPACINGS:
        return plain
    if plain in _NO_SPACINGS:
        raise RequestError(f"spacing={validation.shown(value)} is not available here; {_NO_SPACINGS[plain]}")
    return validation.choice("spacing", value, SPACINGS)


def sampler_and_spacing(sampler: Any, spacing: Any = None) -> tuple[str, str | None]:
    """Names of a sampler and a spacing, which other programs write as one: "DPM++ 2M Karras".

    Raises:
        RequestError: there is no such sampler or spacing, or the two say different things.
    """
    spacing = None if spacing is None else spacing_name(spacing)
    head, tail = _split(sampler) if isinstance(sampler, str) else (sampler, None)
    if tail is None:
        return sampler_name(head), spacing
    whole = f"sampler={validation.shown(sampler)}"
    try:
        name, own = sampler_name(head), spacing_name(tail)
    except RequestError as error:
        raise RequestError(f"{whole}: {error}") from None
    if spacing not in (None, own):
        raise RequestError(f"{whole} means spacing={own!r}, but spacing={spacing!r} is given; leave one of them out")
    return name, own


def _split(sampler: str) -> tuple[str, str | None]:
    """A sampler's name, and the spacing that it ends with, if it does."""
    plain = _plain(sampler)
    words = plain.split("_")
    if plain not in _NO_SPACINGS and not any(name in _NAMES or name in _UNAVAILABLE for name in _endings(plain)):
        for count in range(max(1, len(words) - _WORDS), len(words)):
            head, tail = "_".join(words[:count]), "_".join(words[count:])
            if tail in SPACINGS or tail in _SPACINGS or tail in _NO_SPACINGS:
                return head, tail
    return sampler, None


def _endings(plain: str) -> Iterator[str]:
    """A name as it is, and without what k-diffusion's functions, ComfyUI's devices and classes add to it."""
    yield plain
    without = plain.removesuffix("_gpu").removesuffix("scheduler")
    yield without
    for prefix in ("k_", "sample_"):
        if without.startswith(prefix):
            yield without.removeprefix(prefix)
