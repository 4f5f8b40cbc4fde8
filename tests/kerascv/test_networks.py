"""Our networks give the numbers of KerasCV's own, on full-size random weights.

The model is in `conftest.py`.
"""

from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

import kerasdiff
from kerasdiff.checkpoints.formats.keras_cv_h5 import H5Source, convolutions, write
from kerasdiff.checkpoints.formats.keras_cv_live import COMPONENTS, KerasCVSource
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import SD_V1
from kerasdiff.models.layers import parameters_of
from kerasdiff.models.networks import make_network
from kerasdiff.request import make_request
from kerasdiff.runtime.precision import Execution

pytestmark = pytest.mark.full_size

FLOAT32 = Execution("CPU", "float32", False)
TOLERANCE = 2e-4


def inputs_of(network):
    rng = np.random.default_rng(1)
    if network == "text_encoder":
        return (rng.integers(0, 49408, (2, 77)).astype("int32"),)
    if network == "unet":
        return (
            rng.standard_normal((2, 16, 16, 4), "float32"),
            np.array([3.0, 980.0], "float32"),
            rng.standard_normal((2, 77, 768), "float32"),
        )
    if network == "decoder":
        return (rng.standard_normal((1, 16, 16, 4), "float32"),)
    return (rng.uniform(-1, 1, (1, 128, 128, 3)).astype("float32"),)


def run_theirs(model, network):
    arguments = inputs_of(network)
    if network == "text_encoder":
        return model.text_encoder([arguments[0], np.tile(np.arange(77, dtype="int32"), (2, 1))])
    if network == "unet":
        latents, timesteps, context = arguments
        embedding = np.concatenate([model._get_timestep_embedding(int(t), 1) for t in timesteps])
        return model.diffusion_model([latents, embedding, context])
    return model.decoder(arguments[0]) if network == "decoder" else model.image_encoder(arguments[0])


def difference(ours, reference):
    """Largest difference, as a share of the reference's deviation."""
    ours, reference = (keras.ops.convert_to_numpy(array) for array in (ours, reference))
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / reference.std())


@pytest.mark.parametrize("network", ["text_encoder", "unet", "decoder", "encoder"])
def test_a_network_gives_the_same_numbers_until_one_weight_changes(theirs, network):
    ours = open_model(theirs).build(network, FLOAT32)
    got = ours(*inputs_of(network))
    assert difference(got, run_theirs(theirs, network)) < TOLERANCE

    kernels = [weight for weight in getattr(theirs, COMPONENTS[network]).weights if len(weight.shape) > 1]
    variable = kernels[len(kernels) // 2]
    before = keras.ops.convert_to_numpy(variable)
    changed = before.copy()
    changed.flat[changed.size // 2] += 10.0
    try:
        variable.assign(changed)
        assert difference(got, run_theirs(theirs, network)) > TOLERANCE
    finally:
        variable.assign(before)


def test_a_whole_image_is_the_same(theirs):
    prompt, negative = "a prompt", "not this"
    noise = np.random.default_rng(2).standard_normal((1, 16, 16, 4), "float32")
    expected = theirs.generate_image(
        theirs.encode_text(prompt),
        negative_prompt=negative,
        batch_size=1,
        num_steps=2,
        unconditional_guidance_scale=5.0,
        diffusion_noise=noise,
    )
    generator = kerasdiff.Generator(theirs, precision="float32", jit_compile=False)
    request = make_request(
        generator.config, prompt, batch_size=1, negative_prompt=negative, num_steps=2, guidance_scale=5.0, seed=0
    )
    assert (request.height, request.sampler, request.spacing) == (128, "ddim", "keras_cv")
    result = generator.run(request, latents=noise, progress=False)
    levels = np.abs(result.images.astype(int) - expected.astype(int))
    assert levels.max() <= 1
    # The images must have something to tell apart.
    assert expected.std() > 5
    other = generator.run(request, latents=-noise, progress=False)
    assert np.abs(other.images.astype(int) - expected.astype(int)).max() > 10


def test_weights_do_not_go_with_a_live_model(theirs):
    with pytest.raises(kerasdiff.ModelError, match="brings its own weights"):
        open_model(theirs, "random")


@pytest.mark.parametrize("network", COMPONENTS)
def test_their_files_are_read_and_written_bit_by_bit(theirs, network, tmp_path):
    component = getattr(theirs, COMPONENTS[network])
    expected = parameters_of(make_network(network, SD_V1, "float32"))
    live = KerasCVSource(component, network)
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, component)
    source = H5Source(path, expected)
    for name, shape in expected.items():
        assert np.array_equal(source(name, shape), live(name, shape)), name
    source.finish()

    # What we write, their own loader reads: the same numbers come back after they were all changed.
    source = H5Source(path, expected)
    written = tmp_path / "written.h5"
    write(written, ((name, source(name, shape)) for name, shape in expected.items()), convolutions("sd-v1-4", network))
    source.finish()
    path.unlink()
    before = [keras.ops.convert_to_numpy(variable) for variable in component.weights]
    for variable in component.weights:
        variable.assign(keras.ops.zeros_like(variable))
    component.load_weights(str(written))
    for variable, value in zip(component.weights, before, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(variable), value), variable.path
