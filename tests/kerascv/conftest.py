"""One full-size KerasCV model for all tests beside this file: building it takes most of a minute.

Biases and gains are random too, as KerasCV starts them at 0 and 1, where a mix-up would not show.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest
from keras_cv.models import StableDiffusion
from keras_cv.models.stable_diffusion import Decoder, DiffusionModel, ImageEncoder, SimpleTokenizer, TextEncoder

from kerasdiff.models.tokenizer import CLIP_MERGES


@pytest.fixture(scope="package")
def theirs():
    model = StableDiffusion(128, 128, jit_compile=False)
    model._text_encoder = TextEncoder(77, download_weights=False)
    model._diffusion_model = DiffusionModel(128, 128, 77, download_weights=False)
    model._decoder = Decoder(128, 128, download_weights=False)
    model._image_encoder = ImageEncoder(download_weights=False)
    model._tokenizer = SimpleTokenizer(CLIP_MERGES)
    rng = np.random.default_rng(0)
    for network in (model._text_encoder, model._diffusion_model, model._decoder, model._image_encoder):
        for variable in network.weights:
            if len(variable.shape) == 1:
                around = 1.0 if variable.name == "gamma" else 0.0
                variable.assign(around + 0.1 * rng.standard_normal(variable.shape))
    return model


@pytest.fixture(autouse=True)
def memory_given_back():
    """Networks of gigabytes are parts of reference cycles, which Python would break much later."""
    yield
    gc.collect()
