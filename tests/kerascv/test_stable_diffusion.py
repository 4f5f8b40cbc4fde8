"""`kerasdiff.StableDiffusion` is KerasCV's class: the same pixels, and live components count."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import keras_cv
import numpy as np
import pytest
from keras_cv.models.stable_diffusion import Decoder, DiffusionModel, TextEncoder

import kerasdiff
from kerasdiff.checkpoints.formats.keras_cv_live import COMPONENTS

pytestmark = pytest.mark.full_size


@pytest.fixture
def ours(theirs):
    """With the components of `theirs`."""
    model = kerasdiff.StableDiffusion(128, 128, jit_compile=False, weights="random")
    for attribute in COMPONENTS.values():
        setattr(model, f"_{attribute}", getattr(theirs, f"_{attribute}"))
    return model


def furthest(one, other):
    assert one.shape == other.shape
    assert one.dtype == other.dtype == np.uint8
    return np.abs(one.astype(int) - other.astype(int)).max()


@pytest.fixture
def changed(theirs):
    """Changes a weight of the U-Net for one test."""
    weight = theirs.diffusion_model.weights[20]
    before = keras.ops.convert_to_numpy(weight).copy()
    yield lambda: weight.assign(weight + 0.3)
    weight.assign(before)


def test_text_to_image_draws_their_pixels_and_follows_their_weights(theirs, ours, changed):
    arguments = {"prompt": "a prompt", "negative_prompt": "not this", "batch_size": 2, "num_steps": 2, "seed": 3}
    assert set(ours.warm_up(batch_size=2)) == {"text", "denoise", "decode"}
    before = ours.text_to_image(**arguments)
    assert furthest(before, theirs.text_to_image(**arguments)) <= 1
    assert before.std() > 5
    engine, traces = ours._generator, ours._generator.traces
    changed()
    after = ours.text_to_image(**arguments)
    assert furthest(after, before) > 10
    assert furthest(after, theirs.text_to_image(**arguments)) <= 1
    # The engine stays, and so do its compiled stages.
    assert ours._generator is engine
    assert engine.traces == traces


def test_generate_image_takes_what_theirs_takes(theirs, ours):
    one, other = theirs.encode_text("a cat"), theirs.encode_text("a dog")
    assert np.abs(ours.encode_text("a cat") - one).max() < 1e-4
    assert ours.encode_text("a cat").shape == one.shape
    noise = np.random.default_rng(0).standard_normal((16, 16, 4), "float32")
    between = keras.ops.linspace(one, other, 2)
    arguments = {"batch_size": 2, "num_steps": 2, "unconditional_guidance_scale": 3.0, "diffusion_noise": noise}
    images = ours.generate_image(between, **arguments)
    assert furthest(images, theirs.generate_image(between, **arguments)) <= 1
    assert furthest(images[:1], images[1:]) > 1
    # One text for all, noise of each image's own.
    own = ours.generate_image(one[0], **{**arguments, "diffusion_noise": np.stack([noise, -noise])})
    assert furthest(own[:1], images[:1]) <= 1
    assert furthest(own[1:], own[:1]) > 10


@pytest.mark.parametrize(("height", "width"), [(256, 256), (512, 384)])
def test_other_sizes(theirs, height, width):
    stock = keras_cv.models.StableDiffusion(height, width, jit_compile=False)
    stock._text_encoder, stock._tokenizer = theirs._text_encoder, theirs._tokenizer
    stock._diffusion_model = DiffusionModel(height, width, 77, download_weights=False)
    stock._decoder = Decoder(height, width, download_weights=False)
    for old, new in (
        (theirs._diffusion_model, stock._diffusion_model),
        (theirs._decoder, stock._decoder),
    ):
        for source, target in zip(old.weights, new.weights, strict=True):
            target.assign(source)  # shares its memory
    ours = kerasdiff.StableDiffusion(height, width, jit_compile=False, weights="random")
    for attribute in ("text_encoder", "diffusion_model", "decoder"):
        setattr(ours, f"_{attribute}", getattr(stock, f"_{attribute}"))
    arguments = {"prompt": "a prompt", "num_steps": 2, "seed": 5}
    image = ours.text_to_image(**arguments)
    assert image.shape == (1, height, width, 3)
    assert furthest(image, stock.text_to_image(**arguments)) <= 1
    assert image.std() > 5
    # The live components and ours have one memory.
    pointers = {pointer(weight) for weight in stock._diffusion_model.weights}
    assert {pointer(weight) for weight in ours._generator.networks["unet"].weights} == pointers


def pointer(weight):
    return np.from_dlpack(weight.value.read_value()).ctypes.data


def test_components_are_built_when_they_are_asked_for():
    ours = kerasdiff.StableDiffusion(128, 128, jit_compile=False, weights="random")
    before = ours.encode_text("a prompt")
    assert all(getattr(ours, f"_{attribute}") is None for attribute in COMPONENTS.values())
    engine = ours._generator
    stock = keras_cv.models.StableDiffusion(128, 128, jit_compile=False)
    stock._text_encoder, stock._tokenizer = ours.text_encoder, ours.tokenizer
    assert ours.text_encoder is stock._text_encoder
    assert np.abs(stock.encode_text("a prompt") - before).max() < 1e-4
    assert np.abs(ours.encode_text("a prompt") - before).max() < 1e-6
    assert ours._generator is engine
    noise = np.random.default_rng(0).standard_normal((1, 16, 16, 4), "float32")
    decoded = ((ours.decoder.predict_on_batch(noise) + 1) / 2 * 255).clip(0, 255)
    assert np.abs(engine.decode(noise) - decoded).max() <= 1
    image = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), "uint8")
    encoded = ours.image_encoder.predict_on_batch(image / 127.5 - 1)
    assert np.abs(engine.encode_image(image) - encoded).max() < 1e-3


def test_new_words_are_learned_as_in_the_textual_inversion_guide(theirs, ours):
    plain = ours.encode_text("a <cat> here")
    tokenizer = keras_cv.models.stable_diffusion.SimpleTokenizer(kerasdiff.models.tokenizer.CLIP_MERGES)
    tokenizer.add_tokens("<cat>")
    encoder = TextEncoder(77, vocab_size=len(tokenizer.vocab), download_weights=False)
    for old, new in zip(theirs.text_encoder.layers, encoder.layers, strict=True):
        if "embedding" not in old.name:
            new.set_weights(old.get_weights())
    old, new = theirs.text_encoder.layers[2], encoder.layers[2]
    new.position_embedding.set_weights(old.position_embedding.get_weights())
    rows = keras.ops.convert_to_numpy(old.token_embedding.weights[0])
    new.token_embedding.set_weights([np.concatenate([rows, 5 * rows[1:2]])])
    ours._text_encoder, ours._tokenizer = encoder, tokenizer
    stock = keras_cv.models.StableDiffusion(128, 128, jit_compile=False)
    stock._text_encoder, stock._tokenizer = encoder, tokenizer
    learned = ours.encode_text("a <cat> here")
    assert np.abs(learned - stock.encode_text("a <cat> here")).max() < 1e-4
    assert np.abs(learned - plain).max() > 0.1


def test_a_component_of_another_make_is_refused(ours):
    ours._decoder = keras.Sequential([keras.Input((16, 16, 4)), keras.layers.Conv2DTranspose(3, 8, 8)])
    with pytest.raises(kerasdiff.ModelError, match="the decoder of the KerasCV model is not built as KerasCV builds"):
        ours.text_to_image("a prompt", num_steps=2)


def test_a_property_of_a_subclass_counts(theirs, ours):
    decoder = Decoder(128, 128, download_weights=False)

    class Mine(kerasdiff.StableDiffusion):
        @property
        def decoder(self):
            return decoder

    mine = Mine(128, 128, jit_compile=False, weights="random")
    mine._text_encoder, mine._diffusion_model = theirs._text_encoder, theirs._diffusion_model
    noise = np.random.default_rng(0).standard_normal((1, 16, 16, 4), "float32")
    expected = ((decoder.predict_on_batch(noise) + 1) / 2 * 255).clip(0, 255)
    assert np.abs(mine._engine().decode(noise) - expected).max() <= 1
    assert expected.std() > 1


def test_a_generator_takes_one_and_builds_no_component():
    model = kerasdiff.StableDiffusion(128, 256, jit_compile=False, weights="random")
    generator = kerasdiff.Generator(model, precision="bfloat16", jit_compile=False)
    assert (generator.config.defaults.height, generator.config.defaults.width) == (128, 256)
    assert generator.encode_text(["a prompt"]).shape == (1, 77, 768)
    assert all(getattr(model, f"_{attribute}") is None for attribute in COMPONENTS.values())


def test_precision_is_keras_s_policy_or_what_is_asked_for():
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        model = kerasdiff.StableDiffusion(128, 128, jit_compile=False, weights="random")
        assert model.encode_text("a prompt").dtype == np.float32
        assert model._generator.execution.precision == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy(policy)
    model = kerasdiff.StableDiffusion(128, 128, jit_compile="auto", weights="random", precision="bfloat16")
    assert model.encode_text("a prompt").dtype == np.float32
    assert model._generator.execution.precision == "bfloat16"


def test_wrong_arguments_are_one_line(ours):
    with pytest.warns(UserWarning, match=r"img_height=500 is rounded to 512, as KerasCV does"):
        assert kerasdiff.StableDiffusion(500, 512, weights="random").img_height == 512
    for arguments, message in (
        ({"img_height": 0}, "img_height=0"),
        ({"img_width": "512"}, "img_width"),
        ({"img_height": 64}, "img_height=64"),
        ({"jit_compile": "yes"}, "jit_compile='yes'"),
        ({"precision": "float8"}, "precision='float8'"),
    ):
        with pytest.raises(kerasdiff.RequestError, match=message):
            kerasdiff.StableDiffusion(**arguments)
    noise = np.zeros((16, 16, 4), "float32")
    encoded = np.zeros((77, 768), "float32")
    for arguments, message in (
        ({"diffusion_noise": noise, "seed": 1}, "give diffusion_noise or seed"),
        ({"diffusion_noise": noise[None, :8]}, r"latents have shape \(1, 8, 16, 4\)"),
        ({"diffusion_noise": noise[0, 0]}, "diffusion_noise has shape"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"unconditional_guidance_scale": float("nan")}, "guidance_scale"),
    ):
        with pytest.raises(kerasdiff.RequestError, match=message):
            ours.generate_image(encoded, **arguments)
    with pytest.raises(kerasdiff.RequestError, match="the prompt has 202 tokens and KerasCV's interface takes 77"):
        ours.encode_text("cat " * 200)


def test_without_keras_cv_one_line_says_what_to_install():
    script = (
        "import sys\nsys.modules['keras_cv'] = None\nimport kerasdiff\n"
        "try:\n    kerasdiff.StableDiffusion\nexcept kerasdiff.ModelError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "kerasdiff.StableDiffusion needs keras-cv: pip install 'kerasdiff[keras-cv]'"


def test_a_keras_that_does_not_fit_is_one_line():
    script = (
        "import kerasdiff\ntry:\n    kerasdiff.StableDiffusion\nexcept kerasdiff.ModelError as error:\n    print(error)"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.stdout.startswith("keras_cv cannot be imported here: Unable to import `keras`")
    assert run.stdout.count("\n") == 1


def test_version_2_draws_their_pixels():
    ours = kerasdiff.StableDiffusionV2(128, 128, jit_compile=False, weights="random")
    assert isinstance(ours, keras_cv.models.StableDiffusionV2)
    arguments = {"prompt": "a prompt", "num_steps": 2, "seed": 5}
    before = ours.text_to_image(**arguments)
    stock = keras_cv.models.StableDiffusionV2(128, 128, jit_compile=False)
    for attribute in ("text_encoder", "diffusion_model", "decoder", "tokenizer"):
        setattr(stock, f"_{attribute}", getattr(ours, attribute))
    assert np.abs(ours.encode_text("a prompt") - stock.encode_text("a prompt")).max() < 1e-4
    assert furthest(stock.text_to_image(**arguments), before) <= 1
    assert before.std() > 5
