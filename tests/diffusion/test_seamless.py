"""Pictures without seams: against diffusers with circular convolutions, by rolling, in tiles, and on OpenVINO."""

from __future__ import annotations

import types

import checkpoints
import keras
import numpy as np
import pytest
from checkpoints import diffusers, torch

import kerasdiff
from kerasdiff.diffusion.tiling import Tiles, tile_shape
from kerasdiff.models.layers import Conv, Downsample, Upsample, wrapping

# diffusers makes arrays of torch's tensors in a way that NumPy will drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPT = "a red circle on a blue background"
# Not only in halves: thirteen latents across.
SIZE = {"height": 64, "width": 104}
QUICK = {"num_steps": 4, "guidance_scale": 4.0, "sampler": "euler", "spacing": "linspace", "progress": False}


def make_circular(module, tile):
    """Has every convolution of torch go on at the opposite side along some axes."""

    def forward(self, x, weight, bias):
        rows, columns = self.padding
        for axis, sides in (("x", (columns, columns, 0, 0)), ("y", (0, 0, rows, rows))):
            x = torch.nn.functional.pad(x, sides, mode="circular" if axis in tile else "constant")
        return torch.nn.functional.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            if tile == "xy":
                layer.padding_mode = "circular"
            else:
                layer._conv_forward = types.MethodType(forward, layer)


def as_theirs(latents):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(latents).transpose(0, 3, 1, 2)))


def as_ours(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


# One axis alone is tested here in the slow tests, and by rolling and layer by layer in all.
@pytest.fixture(
    scope="module",
    params=["v1-xy", *(pytest.param(each, marks=pytest.mark.slow) for each in ("v1-x", "v2-y"))],
)
def made(request, tmp_path_factory):
    """diffusers' pipeline with circular convolutions, our generator of the same weights, and the axes."""
    kind, tile = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    pipe = checkpoints.pipeline(kind, folder / "vocabulary")
    saved = checkpoints.save(pipe, folder / "model")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    pipe.set_progress_bar_config(disable=True)
    for network in (pipe.unet, pipe.vae):
        make_circular(network, tile)
    return pipe, kerasdiff.Generator(str(saved), precision="float32", jit_compile=False), tile


def test_latents_and_images_are_those_of_circular_convolutions(made):
    pipe, generator, tile = made
    noise = generator.initial_latents(1, **SIZE, seed=3)
    arguments = {"prompt": "a red circle", "num_inference_steps": 4, "guidance_scale": 4.0, **SIZE}
    latents = as_ours(pipe(latents=as_theirs(noise), output_type="latent", **arguments).images)
    with torch.no_grad():
        decoded = pipe.vae.decode(as_theirs(latents) / pipe.vae.config.scaling_factor).sample
    pixels = np.clip(np.round((as_ours(decoded) + 1) * 127.5), 0, 255)
    ours = generator.generate("a red circle", latents=noise, **SIZE, **QUICK, tile=tile)
    assert np.abs(ours.latents - latents).max() < 1e-4 * np.abs(latents).max()
    assert np.abs(ours.images.astype(int) - pixels).max() <= 1
    assert np.array_equal(generator.decode(ours.latents, tile=tile), ours.images)


def test_an_image_is_encoded_as_there(made):
    pipe, generator, tile = made
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 104, 3), dtype="uint8")
    with torch.no_grad():
        mean = as_ours(pipe.vae.encode(as_theirs(picture.astype("float32") / 127.5 - 1)).latent_dist.mean)
    latents = generator.encode_image(picture, tile=tile)
    assert np.abs(latents - mean * pipe.vae.config.scaling_factor).max() < 1e-4
    started = generator.generate("a red circle", image=picture[0], strength=0.0, tile=tile, **QUICK)
    assert np.abs(started.latents - latents).max() < 1e-6


def test_openvino_draws_the_same(tiny, openvino):
    arguments = {**QUICK, "num_steps": 3, "tile": "x", "height": 64, "width": 64, "seed": 1}
    ours, theirs = (each.generate("a ring", **arguments) for each in (tiny, openvino))
    assert np.abs(ours.latents - theirs.latents).max() < 1e-4 * np.abs(ours.latents).max()
    assert np.abs(ours.images.astype(int) - theirs.images).max() <= 1


@pytest.mark.parametrize("tile", ["x", "y", "xy"])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_the_four_phases_of_a_doubled_picture_wrap_as_it_does(tile, size):
    rng = np.random.default_rng(1)
    layer, plain = Upsample(6), Conv(6)
    for each in (layer, plain):
        each.build((None, None, None, 6))
    layer.conv.bias.assign(rng.standard_normal(6))
    plain.kernel.assign(layer.conv.kernel)
    plain.bias.assign(layer.conv.bias)
    picture = rng.standard_normal((2, *size, 6)).astype("float32")
    doubled = picture.repeat(2, axis=1).repeat(2, axis=2)
    sides = [(1, 1) if axis in tile else (0, 0) for axis in "yx"]
    zeros = [(0, 0) if axis in tile else (1, 1) for axis in "yx"]
    around = np.pad(np.pad(doubled, ((0, 0), *sides, (0, 0)), mode="wrap"), ((0, 0), *zeros, (0, 0)))
    expected = keras.ops.conv(around, plain.kernel, padding="valid") + plain.bias
    with wrapping(tile):
        assert np.abs(layer(picture) - expected).max() < 1e-5
        assert np.abs(plain(doubled) - expected).max() < 1e-5
    assert np.abs(layer(picture) - expected).max() > 1e-2


def test_the_encoders_row_and_column_of_zeros_stay():
    picture = np.random.default_rng(2).standard_normal((1, 8, 8, 4)).astype("float32")
    for padding, differs in ((None, False), (1, True)):
        layer = Downsample(4, padding)
        layer.build()
        plain = np.asarray(layer(picture))
        with wrapping("xy"):
            assert (np.abs(layer(picture) - plain).max() > 1e-3) == differs


def rolled(array, cells, axes):
    return np.roll(array, [cells if axis in axes else 0 for axis in "yx"], axis=(1, 2))


def test_rolled_noise_gives_the_rolled_picture(tiny):
    """By as many latents as the deepest level of the U-Net has one of."""
    tile, size, step = "x", {"height": 64, "width": 64}, 2 ** (len(tiny.config.unet.widths) - 1)
    noise = tiny.initial_latents(1, **size, seed=5)
    arguments = {"guidance_scale": 4.0, "num_steps": 4, "sampler": "ddim", "progress": False, **size}
    turned = rolled(noise, step, tile)
    first, second = (tiny.generate(PROMPT, latents=each, tile=tile, **arguments) for each in (noise, turned))
    assert np.abs(rolled(first.latents, step, tile) - second.latents).max() < 1e-4
    assert np.abs(rolled(first.images, 8 * step, tile).astype(int) - second.images).max() <= 1
    without = [tiny.generate(PROMPT, latents=each, **arguments).latents for each in (noise, turned)]
    assert np.abs(rolled(without[0], step, tile) - without[1]).max() > 0.05


def test_nothing_of_the_ordinary_program_changes(tiny):
    arguments = {"seed": 1, "num_steps": 2, "progress": False, "height": 64, "width": 64}
    before = tiny.generate(PROMPT, **arguments)
    tiny.generate(PROMPT, tile="x", **arguments)
    programs = tiny.programs
    assert np.array_equal(before.images, tiny.generate(PROMPT, **arguments).images)
    assert tiny.programs == programs
    for tile, state in ((None, "ready"), ("x", "ready"), ("y", "new")):
        found = tiny.plan(height=64, width=64, tile=tile).programs
        assert (found["U-Net 1"], found["decoder"]) == (state, state)


def test_warm_up_prepares_it(tiny):
    tiny.warm_up(tile="x", image=True, height=64, width=64)
    programs = tiny.programs
    picture = np.zeros((64, 64, 3), "uint8")
    tiny.generate(PROMPT, image=picture, strength=0.9, num_steps=3, tile="x", progress=False)
    assert tiny.programs == programs


@pytest.mark.parametrize("wraps", ["x", "y", "xy"])
@pytest.mark.parametrize("parts", [2, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(8, 13), (16, 20), (30, 15)])
def test_tiles_go_round(wraps, parts, height, width):
    """A function of one cell gives the same to the bit; what begins one tile further, the same one tile further."""

    def joined(array, function):
        tiles = Tiles("latents", array, parts, 1, 2, wraps)
        seen = list(tiles)
        assert {tile.shape[1:3] for tile in seen} == {tile_shape(height, width, parts, wraps)}
        return tiles.join([function(tile).repeat(2, axis=1).repeat(2, axis=2) for tile in seen])

    array = np.random.default_rng(3).integers(-9, 9, (1, height, width, 2)).astype("float32")
    assert np.array_equal(joined(array, lambda tile: tile), array.repeat(2, axis=1).repeat(2, axis=2))
    # A function that looks at all of a tile.
    looks = lambda tile: tile * tile.mean()  # noqa: E731
    cells = [side // parts if side % parts == 0 and axis in wraps else 0 for axis, side in zip("yx", (height, width))]  # noqa: B905
    turned = joined(np.roll(array, cells, axis=(1, 2)), looks)
    assert np.allclose(np.roll(joined(array, looks), [2 * each for each in cells], axis=(1, 2)), turned, atol=1e-4)


def test_a_picture_that_is_decoded_in_tiles_has_no_seam(tiny):
    latents = tiny.generate(PROMPT, seed=2, num_steps=4, tile="x", height=64, width=64, progress=False).latents[0]
    decoder = tiny._pipeline.decoder
    whole = decoder(latents, 1, "x").astype(int)

    def seam(picture):
        """How far the columns apart are that meet where copies do, less those that meet elsewhere."""
        apart = np.abs(picture - np.roll(picture, 1, axis=1)).mean((0, 2))
        return apart[0] - apart[8::8].mean()

    tiled, cut = decoder(latents, 2, "x").astype(int), decoder(latents, 2).astype(int)
    turned = decoder(np.roll(latents, 4, axis=1), 2, "x").astype(int)
    assert np.abs(np.roll(tiled, 32, axis=1) - turned).max() <= 1
    assert np.abs(whole - tiled).mean() < np.abs(whole - cut).mean()
    assert seam(tiled) < seam(cut)
