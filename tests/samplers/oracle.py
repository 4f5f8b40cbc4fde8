"""diffusers' schedulers as an oracle: the loop of its Stable Diffusion pipelines around any of its classes."""

from __future__ import annotations

import contextlib
import sys
import warnings

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import torch

diffusers.logging.set_verbosity_error()

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def states_of(scheduler, model, x, num_steps=None, noise=None, step=None, strength=None, grain=None, **timesteps):
    """Every `prev_sample` of a run, float64; noise(i, shape) is the i-th draw, `step` has arguments of `step()`.

    With a `strength` it begins where image to image does, from the picture x with the noise `grain`.
    """
    draws = iter(range(10**6))

    def drawn(shape, **_):
        return torch.from_numpy(np.asarray(noise(next(draws), tuple(shape))))

    module = sys.modules[type(scheduler).__module__]
    original = getattr(module, "randn_tensor", None)
    if original is not None:
        module.randn_tensor = drawn
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if num_steps is None:
                scheduler.set_timesteps(**timesteps)
            else:
                scheduler.set_timesteps(num_steps, **timesteps)
            if hasattr(scheduler, "noise_sampler"):
                scheduler.noise_sampler = BrownianPath(scheduler, drawn, x.shape)
            sample, times = torch.from_numpy(np.asarray(x, "float64")), scheduler.timesteps
            if strength is None:
                sample = sample * scheduler.init_noise_sigma
            else:
                start = scheduler.order * (num_steps - min(int(num_steps * strength), num_steps))
                times = times[start:]
                if hasattr(scheduler, "set_begin_index"):
                    scheduler.set_begin_index(start)
                sample = scheduler.add_noise(sample, torch.from_numpy(grain), times[:1].repeat(len(grain)))
            states = []
            for t in times:
                scaled = scheduler.scale_model_input(sample, t)
                output = torch.from_numpy(model(scaled.numpy().astype("float64"), float(t)))
                sample = scheduler.step(output, t, sample, **(step or {}), return_dict=True).prev_sample
                states.append(sample.numpy().astype("float64"))
    finally:
        if original is not None:
            module.randn_tensor = original
    return states


class BrownianPath:
    """Increments of one Brownian motion over sigma, made from the same draws as ours."""

    def __init__(self, scheduler, drawn, shape):
        self.scheduler, self.drawn, self.shape, self.first = scheduler, drawn, shape, None

    def __call__(self, sigma, sigma_next):
        sigma, sigma_next = float(sigma), float(sigma_next)
        fresh = self.drawn(self.shape)
        if self.first is None:
            self.first, self.middle = fresh, sigma_next
            return fresh
        path = self.first * (sigma - self.middle) ** 0.5 + fresh * (self.middle - sigma_next) ** 0.5
        self.first = None
        return path / (sigma - sigma_next) ** 0.5


@contextlib.contextmanager
def in_float64():
    """diffusers keeps its tables in float32; here it cannot, so that only mathematics is left to differ."""
    torch32, numpy32, default = torch.float32, np.float32, torch.get_default_dtype()
    torch.float32, np.float32 = torch.float64, np.float64
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, np.float32 = torch32, numpy32
        torch.set_default_dtype(default)
