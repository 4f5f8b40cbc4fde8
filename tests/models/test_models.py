"""The networks by themselves: sizes, names, configuration, tokenizer."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import torch
from torch.nn import functional

from kerasdiff.checkpoints.resolve import TINY_FOLDER
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SD_V2, TINY, ModelConfig, ScheduleConfig
from kerasdiff.models.layers import Dense, GroupNorm, LayerNorm, Upsample, attend
from kerasdiff.models.network_configs import TextEncoderConfig, UNetConfig
from kerasdiff.models.tokenizer import Tokenizer, pad_ids
from kerasdiff.models.unet import UNet, timestep_embedding
from kerasdiff.models.vae import Decoder, Encoder
from kerasdiff.runtime.compiled import Compiled, LayerNetwork


@pytest.mark.parametrize("config", [SD_V1, SD_V2, TINY])
def test_a_configuration_survives_json(config):
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_sizes_follow_from_the_autoencoders_levels():
    assert (SD_V1.latent_factor, SD_V1.size_multiple) == (8, 8)
    assert (TINY.latent_factor, TINY.size_multiple) == (8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNetConfig(attention=(True,)), "attention needs 4 entries"),
        (lambda: UNetConfig(num_heads=(7, 8, 8, 8)), "width 320 is not a multiple of 7 heads"),
        (lambda: UNetConfig(norm_groups=33), "not a multiple of 33 groups"),
        (lambda: UNetConfig(middle="none"), "unknown middle 'none'; known: attention, plain, None"),
        (lambda: UNetConfig(attention=4 * (False,), middle="plain"), "without attention .* reads no text"),
        (lambda: UNetConfig(gelu="fast"), "unknown gelu 'fast'"),
        (lambda: TextEncoderConfig(num_heads=5), "width 768 is not a multiple of 5 heads"),
        (lambda: TextEncoderConfig(activation="relu"), "unknown activation 'relu'"),
        (lambda: ScheduleConfig(prediction_type="x0"), "unknown prediction type 'x0'; known: epsilon"),
        (lambda: ScheduleConfig(beta_schedule="cosine"), "unknown beta schedule 'cosine'"),
        (lambda: ModelConfig(unet=UNetConfig(context_width=1024)), "context of width 1024"),
    ],
)
def test_wrong_configurations_are_refused(make, message):
    with pytest.raises(ModelError, match=message):
        make()


def test_group_norm_is_that_of_keras():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 16), "float32") * 3 + 5
    ours, reference = GroupNorm(4, epsilon=1e-5), keras.layers.GroupNormalization(4, epsilon=1e-5)
    for layer in (ours, reference):
        layer.build(x.shape)
        layer.gamma.assign(np.linspace(0.5, 2, 16))
        layer.beta.assign(np.linspace(-1, 1, 16))
    assert np.allclose(ours(x), reference(x), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_softmax_of_scaled_products(causal):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 5, 8)) for _ in range(3))
    expected = np.empty_like(q)
    for row in range(2):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = q[row, :, part] @ k[row, :, part].T / 2
            if causal:
                scores[np.triu_indices(5, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            expected[row, :, part] = weights / weights.sum(-1, keepdims=True) @ v[row, :, part]
    got = attend(*(keras.ops.convert_to_tensor(array, "float32") for array in (q, k, v)), 2, causal)
    assert np.allclose(got, expected, atol=1e-5)


def test_timestep_embedding_has_cosines_first():
    got = np.asarray(timestep_embedding(np.array([0.0, 10.0], "float32"), 6))
    frequencies = 10000.0 ** (-np.arange(3) / 3)
    assert np.allclose(got[0], [1, 1, 1, 0, 0, 0])
    assert np.allclose(got[1], np.concatenate([np.cos(10 * frequencies), np.sin(10 * frequencies)]), atol=1e-6)


def test_encoder_and_decoder_halve_and_double_three_times():
    encoder, decoder = Encoder(TINY.vae), Decoder(TINY.vae)
    encoder.build()
    decoder.build()
    latents = encoder(np.zeros((1, 64, 96, 3), "float32"))
    assert latents.shape == (1, 8, 12, 4)
    assert decoder(latents).shape == (1, 64, 96, 3)


def test_the_unet_hears_time_and_text():
    unet = UNet(TINY.unet)
    unet.build()
    rng = np.random.default_rng(0)
    latents, context = rng.standard_normal((1, 8, 8, 4)), rng.standard_normal((1, 77, 128))
    usual = np.asarray(unet(latents, np.array([5.0]), context))
    assert usual.shape == (1, 8, 8, 4)
    assert np.abs(np.asarray(unet(latents, np.array([500.0]), context)) - usual).max() > 1e-4
    assert np.abs(np.asarray(unet(latents, np.array([5.0]), context[:, ::-1] + 1)) - usual).max() > 1e-5


def test_timesteps_keep_their_precision_in_half_precision():
    unet = UNet(TINY.unet, dtype="bfloat16")
    unet.build()
    rng = np.random.default_rng(0)
    latents, context = rng.standard_normal((1, 8, 8, 4), "float32"), rng.standard_normal((1, 77, 128), "float32")
    first, second = (
        keras.ops.convert_to_numpy(keras.ops.cast(unet(latents, np.array([t], "float32"), context), "float32"))
        for t in (997.0, 999.0)
    )
    assert np.abs(first - second).max() > 0


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TINY_FOLDER / "tokenizer.json")


def test_tokens_stand_between_start_and_end(tokenizer):
    ids = tokenizer.encode("A  Red\tcircle")
    assert (ids[0], ids[-1]) == (tokenizer.start_id, tokenizer.end_id)
    assert len(ids) == 5
    assert tokenizer.encode("a red circle") == ids
    assert tokenizer.decode(ids) == "a red circle"
    assert tokenizer.encode("") == [tokenizer.start_id, tokenizer.end_id]


@pytest.mark.parametrize(
    "text", ["zebra", "naïve café", "🦓🦓", "日本語", "x" * 500, "\x00\x1f", "don't", "<|endoftext|>"]
)
def test_every_text_has_ids_within_the_vocabulary(tokenizer, text):
    ids = tokenizer.encode(text)
    assert max(ids) < tokenizer.vocab_size <= TINY.text_encoder.vocab_size
    assert ids.count(tokenizer.start_id) == 1


def test_a_word_of_the_captions_is_one_token(tokenizer):
    for word in ("circle", "triangle", "purple", "background", "above", "left"):
        assert len(tokenizer.encode(word)) == 3


def test_rows_are_filled_up_or_cut_with_the_end_last():
    assert pad_ids([1, 5, 9], 5).tolist() == [1, 5, 9, 9, 9]
    assert pad_ids([1, 5, 6, 7, 9], 4).tolist() == [1, 5, 6, 9]
    assert pad_ids([1, 5, 9], 3).tolist() == [1, 5, 9]


def test_a_broken_tokenizer_file_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer file"):
        Tokenizer.load(path)


def test_attention_to_one_place_is_its_value():
    values = np.arange(8, dtype="float32").reshape(1, 1, 8)
    assert np.array_equal(attend(values[:, [0, 0, 0]], values, values, 2), values[:, [0, 0, 0]])


@pytest.mark.parametrize("attention", [(True, True), (False, True), (False, False)])
def test_half_the_latents_meet_both_texts(attention):
    unet = UNet(UNetConfig(widths=(32, 64), attention=attention, num_heads=(4, 4), context_width=16))
    unet.build()
    rng = np.random.default_rng(0)
    latents, context = rng.standard_normal((2, 8, 8, 4), "float32"), rng.standard_normal((4, 7, 16), "float32")
    timesteps = np.array([10.0, 500.0], "float32")
    both = unet(np.concatenate([latents, latents]), np.concatenate([timesteps, timesteps]), context)
    shared = np.asarray(unet(latents, timesteps, context))
    assert shared.shape == (4, 8, 8, 4)
    assert np.allclose(shared, both, atol=1e-5)
    assert np.abs(shared[:2] - shared[2:]).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_norms_and_upsampling_are_keras_own(dtype, jit_compile):
    """As layers, as a graph for oneDNN and as one for XLA."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 6, 4, 32)) * 3 + rng.standard_normal(32) * 5 + 2).astype("float32")
    tolerance = 2e-5 if dtype == "float32" else 0.06
    tokens = (None, None, 32)
    pixels, group_norm = (None, None, None, 32), keras.layers.GroupNormalization(8, epsilon=1e-5)
    cases = [
        (GroupNorm(8, epsilon=1e-5, dtype=dtype), group_norm, pixels),
        (LayerNorm(epsilon=1e-5, dtype=dtype), keras.layers.LayerNormalization(epsilon=1e-5), tokens),
        (Dense(16, dtype=dtype), keras.layers.Dense(16), tokens),
    ]
    for ours, theirs, shape in cases:
        ours.build(shape)
        theirs.build(shape)
        for weight, other in zip(ours.weights, theirs.weights, strict=True):
            value = rng.standard_normal(weight.shape) * 0.3 + (weight.name == "gamma")
            weight.assign(value)
            other.assign(keras.ops.cast(weight, "float32"))
        inputs = x if len(shape) == 4 else x.reshape(2, 24, 32)
        run = (
            ours
            if jit_compile is None
            else Compiled("layer", lambda layer, x: layer(x), LayerNetwork(ours), jit_compile)
        )
        got = keras.ops.convert_to_numpy(keras.ops.cast(run(keras.ops.cast(inputs, dtype)), "float32"))
        expected = np.asarray(theirs(keras.ops.cast(keras.ops.cast(inputs, dtype), "float32")))
        assert np.abs(got - expected).max() < tolerance * np.abs(expected).max(), type(ours).__name__


def test_upsampling_in_phases_is_doubling_and_a_convolution():
    layer = Upsample(5)
    layer.build()
    rng = np.random.default_rng(1)
    for weight in layer.conv.weights:
        weight.assign(rng.standard_normal(weight.shape))
    x = rng.standard_normal((2, 3, 4, 5)).astype("float32")
    doubled = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
    for height, width in ((6, 8), (5, 8), (6, 7), (5, 7)):
        nearest = functional.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), (height, width)).permute(0, 2, 3, 1)
        assert np.array_equal(nearest, doubled[:, :height, :width])
        assert np.allclose(layer(x, size=(height, width)), layer.conv(nearest.numpy()), atol=1e-4)
    assert np.allclose(layer(x), layer.conv(doubled), atol=1e-4)


def test_halves_are_a_dense_layer_cut_in_two():
    layer = Dense(6)
    layer.build((None, 4))
    rng = np.random.default_rng(2)
    layer.bias.assign(rng.standard_normal(6))
    x = rng.standard_normal((3, 4)).astype("float32")
    assert np.allclose(np.concatenate(layer.halves(x), axis=-1), layer(x), atol=1e-6)
