"""Everything that can be wrong with an argument, one by one, and what defaults become."""

from __future__ import annotations

import dataclasses
import fractions
import inspect
import weakref

import numpy as np
import pytest

import kerasdiff
from kerasdiff import control_values
from kerasdiff.guidance import GuidanceScale
from kerasdiff.images import reader
from kerasdiff.models.config import SD_V1, TINY
from kerasdiff.request import Request, make_request
from kerasdiff.request_arguments import ARGUMENTS, DEFAULTS, PER_IMAGE
from kerasdiff.samplers.noise import MAX_SEED, RNGS

PICTURE = np.zeros((64, 64, 3), "uint8")
MASK = np.arange(64)[:, None] + np.zeros(64) > 20


def control(image=PICTURE, **settings):
    return kerasdiff.Control("net", image, **settings)


WRONG = [
    ({"prompt": None}, r"prompt must be a string or a list of strings, not None"),
    ({"prompt": 3}, r"prompt must be a string or a list of strings, not int \(3\)"),
    ({"prompt": []}, r"prompt is an empty list; give at least one string"),
    ({"prompt": ["a", 5]}, r"prompt\[1\] must be a string, not int \(5\)"),
    ({"batch_size": 0}, r"batch_size=0 is out of range; it must be at least 1"),
    ({"batch_size": -2}, r"batch_size=-2 is out of range"),
    ({"batch_size": 1.5}, r"batch_size must be an integer, not float \(1.5\)"),
    ({"batch_size": True}, r"batch_size must be an integer, not bool"),
    ({"batch_size": None}, r"batch_size must be an integer, not None"),
    ({"negative_prompt": 3}, r"negative_prompt must be a string or a list of strings"),
    ({"negative_prompt": []}, r"negative_prompt is an empty list"),
    (
        {"negative_prompt": ["a", "b"]},
        r"negative_prompt has 2 strings for 1 prompts; give one string, or one per prompt",
    ),
    ({"height": 100}, r"height=100 is not a multiple of 8; the nearest valid size is 96 or 104"),
    ({"height": 7}, r"height=7 is not a multiple of 8; the nearest valid size is 8"),
    ({"height": 0}, r"height=0 is out of range"),
    ({"height": 128.0}, r"height must be an integer, not float"),
    ({"width": -16}, r"width=-16 is out of range"),
    ({"width": 130}, r"width=130 is not a multiple of 8; the nearest valid size is 128 or 136"),
    ({"num_steps": 0}, r"num_steps=0 is out of range; it must be between 1 and 1000"),
    ({"num_steps": 1001}, r"num_steps=1001 is out of range"),
    ({"num_steps": "20"}, r"num_steps must be an integer, not str \('20'\)"),
    ({"guidance_scale": float("nan")}, r"guidance_scale=nan is not finite"),
    ({"guidance_scale": float("inf")}, r"guidance_scale=inf is not finite"),
    ({"guidance_scale": "7"}, r"guidance_scale must be a number, not str"),
    ({"sampler": "dpmpp2m"}, r"sampler='dpmpp2m' is unknown; did you mean 'dpmpp_2m'\? known: ddim, ddpm, deis"),
    ({"sampler": 5}, r"sampler=5 is unknown; known: ddim, ddpm, deis"),
    ({"sampler_options": {"eta": 0.5}}, r"sampler 'dpmpp_2m' has no option 'eta'; its options and .* solver_type="),
    ({"sampler_options": 0.5}, r"sampler_options must be a dict such as \{'eta': 0.5\}, not float \(0.5\)"),
    ({"sampler": "ddim", "sampler_options": {"eta": "much"}}, r"eta must be a number, not str \('much'\)"),
    ({"sigmas": [100.0, 5.0]}, r"sigmas end at 5, which leaves noise in the image; let the last entry be 0"),
    ({"sigmas": [1.0, 2.0, 0.0]}, r"sigmas must fall from step to step, but sigmas\[0\]=1 is followed by 2"),
    ({"timesteps": [999, 1200]}, r"timesteps must fall from step to step"),
    ({"timesteps": [1200, 999]}, r"timesteps must lie between 0 and 999, not 1200 to 999"),
    ({"timesteps": [999, 500], "spacing": "karras"}, r"spacing and timesteps both say which noise levels"),
    ({"timesteps": [999, 500], "num_steps": 3}, r"num_steps=3, but timesteps makes 2 steps; leave num_steps out"),
    (
        {"guidance_scale": [3.0, 2.0]},
        r"guidance_scale has 2 entries for 20 steps and 1 images; give one",
    ),
    ({"guidance_scale": [3.0, "x"]}, r"guidance_scale\[1\] must be a number, not str"),
    ({"guidance_interval": (0.5, 0.1)}, r"guidance_interval must be \(start, end\) with 0 <= start <= end <= 1"),
    ({"guidance_interval": (0.5,)}, r"guidance_interval must be \(start, end\)"),
    ({"guidance_interval": 0.5}, r"guidance_interval must be a list of numbers, not float"),
    ({"deep_cache_interval": 0}, r"deep_cache_interval=0 is out of range; it must be between 1 and 1000"),
    ({"deep_cache_interval": 2.5}, r"deep_cache_interval must be an integer, not float"),
    (
        {"deep_cache_interval": 3, "deep_cache_branch": 4},
        r"deep_cache_branch=4 is out of range; it must be between 0 and 3",
    ),
    ({"deep_cache_branch": 1}, r"deep_cache_branch needs deep_cache_interval; 3 is usual"),
    ({"token_merging_ratio": 0.76}, r"token_merging_ratio=0.76 is out of range; it must be between 0 and 0.75"),
    ({"guidance_rescale": 1.5}, r"guidance_rescale=1.5 is out of range; it must be between 0 and 1"),
    ({"tile": "yx"}, r"tile='yx' is unknown; did you mean 'y'\? known: x, xy, y"),
    ({"rng": "numpy"}, r"rng='numpy' is unknown; known: philox, torch"),
    ({"spacing": "tailing"}, r"spacing='tailing' is unknown; did you mean 'trailing'\?"),
    ({"seed": -1}, r"seed=-1 is out of range"),
    ({"seed": 2**64}, r"seed=18446744073709551616 is out of range"),
    ({"seed": 1.0}, r"seed must be an integer, not float"),
    ({"seed": [1, 2]}, r"seed has 2 entries for 1 images; give one number, or one per image"),
    ({"seed": ["x"]}, r"seed\[0\] must be an integer, not str"),
    ({"num_steps": 1000, "spacing": "leading"}, r"spacing='leading' with num_steps=1000 visits a timestep"),
    ({"prompt": "a\ud800"}, r"prompt has half of a surrogate pair at character 1, which is no text; leave it out"),
    ({"prompt": ["a", "\udfff"]}, r"prompt\[1\] has half of a surrogate pair at character 0"),
    ({"prompt": "a" * 100_001}, r"prompt has 100001 characters; it may have at most 100000"),
    ({"prompt": ["a"] * 100_001}, r"prompt has 100001 entries; it may have at most 100000"),
    ({"batch_size": 10**9}, r"prompt and batch_size make 1000000000 images; one request may have at most 100000"),
    ({"batch_size": 10**5000}, r"prompt and batch_size make <int> images"),
    ({"batch_size": np.zeros((2, 2))}, r"not ndarray \(array\(\[\[0., 0.\], \[0., 0.\]\]\)\)$"),
    ({"height": 2**40}, r"height=1099511627776 is out of range; it must be between 1 and 65496"),
    ({"height": 65488, "width": 65488}, r"height=65488 and width=65488 make 4288678144 pixels; an image may have"),
    ({"num_steps": 2.0, "timesteps": [999, 500]}, r"num_steps must be an integer, not float \(2.0\)"),
    ({"num_steps": np.ones(2), "timesteps": [999, 500]}, r"num_steps must be an integer, not ndarray"),
    ({"guidance_scale": 10**400}, r"guidance_scale=10+\.\.\.0+ is too large; floats end at 1.8e308"),
    ({"guidance_scale": fractions.Fraction(10**400)}, r"guidance_scale=Fraction.* is too large"),
    ({"guidance_scale": 1e300}, r"guidance_scale=1e\+300 is out of range; it must be between -1e\+06 and 1e\+06"),
    ({"guidance_scale": [1.0] * 21}, r"guidance_scale has 21 entries for 20 steps and 1 images; give one"),
    ({"guidance_scale": [[1.0] * 21]}, r"guidance_scale\[0\] has 21 entries; it may have at most 20"),
    ({"guidance_scale": np.broadcast_to(1.0, (2**20, 2**20))}, r"guidance_scale has 1099511627776 entries"),
    (
        {"guidance_scale": np.zeros((2**40, 0))},
        r"guidance_scale has 1099511627776 entries; it may have at most 1000000",
    ),
    ({"guidance_rescale": 1.0000001}, r"guidance_rescale=1.0000001 is out of range"),
    ({"sampler": np.array(["ddim", "euler"])}, r"sampler=array\(\['ddim', 'euler'\], .* is unknown; known: ddim"),
    ({"sampler_options": {1: 2, "a": 3}, "image": PICTURE, "strength": 0}, r"sampler 'dpmpp_2m' has no option 1; its"),
    (
        {"sampler": "lcm", "sampler_options": {"timestep_scaling": 1e300}},
        r"sampler 'lcm' gives numbers that are not",
    ),
    ({"sampler": "ddim", "sampler_options": {"eta": 10**400}}, r"eta=10+\.\.\.0+ is too large"),
    ({"timesteps": np.array([9, 5], "timedelta64[ns]")}, r"timesteps must be a list of numbers, not ndarray"),
    ({"timesteps": [1e308, -1e308]}, r"timesteps must lie between 0 and 999, not 1e\+308 to -1e\+308"),
    ({"timesteps": [999.0000001]}, r"timesteps must lie between 0 and 999, not 999.0000001 to 999.0000001"),
    ({"timesteps": [500, 499.999999]}, r"timesteps\[0\]=500 and the 499.999999 after it are the same noise level"),
    ({"timesteps": range(3)}, r"timesteps must be a list of numbers, not range \(range\(0, 3\)\)"),
    ({"timesteps": list(range(1001, 0, -1))}, r"timesteps has 1001 entries; it may have at most 1000"),
    ({"sigmas": [5, 4.9999999, 0]}, r"sigmas\[0\]=5 and the 4.9999999 after it are the same noise level"),
    ({"sigmas": [5, 1e-320, 0]}, r"sigmas have a level of 1e-320; above 0 the lowest is 1e-06"),
    ({"seed": np.timedelta64(5, "ns")}, r"seed must be an integer, not timedelta64"),
    ({"seed": np.array([1.5])}, r"seed\[0\] must be an integer, not float"),
    ({"safety": np.zeros(2)}, r"safety=array\(\[0., 0.\]\) is unknown; known: flag, off, on"),
    ({"rng": "p" * 10**6}, r"rng='p+\.\.\. is unknown; known: philox, torch"),
    ({"feather": np.zeros(2)}, r"feather must be an integer, not ndarray"),
    ({"feather": 10**9}, r"feather=1000000000 is out of range; it must be between 0 and 65500"),
    ({"image": np.broadcast_to(np.uint8(0), (2**30, 64, 64, 3))}, r"image has 1073741824 entries; it may have at most"),
    (
        {"image": np.broadcast_to(np.uint8(0), (90_000, 64, 64, 3))},
        r"image and mask make 90000 pictures of 64 x 64 pixels; together they may have at most 268435456: split them",
    ),
    ({"image": [PICTURE, PICTURE[:48]]}, r"images are of different sizes, 64 x 64 and 64 x 48; give resize='cover'"),
    ({"exact": 1}, r"exact must be True or False, not int"),
    ({"controls": 3}, r"^controls must be a kerasdiff.Control or a list of them, not int \(3\)"),
    ({"controls": [3]}, r"controls\[0\] must be a kerasdiff.Control or \(model, image, scale\), not int \(3\);"),
    ({"controls": ("net", PICTURE)}, r"controls\[1\] must be .* a model and its image are \[\(model, image\)\]"),
    ({"controls": ["net"] * 17}, r"controls has 17 entries; it may have at most 16"),
    ({"controls": "net"}, r"controls\[0\] has no image, and the request has none either; give one of them"),
    ({"controls": [{"modle": "net"}]}, r"controls\[0\] setting='modle' is unknown; did you mean 'mode'\?"),
    ({"controls": [{"image": PICTURE}]}, r"controls\[0\] has no model; give a file, a folder"),
    ({"controls": [{"model": 5}]}, r"controls\[0\].model must be a path, not int \(5\)"),
    ({"controls": ("net", [PICTURE])}, r"controls\[1\] must be a .*; a model and its image are \[\(model, image\)\]"),
    ({"controls": [" "]}, r"controls\[0\].model is empty; give a file, a folder"),
    ({"controls": control(scale="1")}, r"controls\[0\].scale must be a number, not str"),
    ({"controls": control(scale=101)}, r"controls\[0\].scale=101 is out of range; it must be between -100 and 100"),
    ({"controls": control(scale=[1, None])}, r"controls\[0\].scale\[1\] must be a number, not None"),
    ({"controls": control(scale=[1, 2])}, r"controls\[0\].scale has 2 entries for 1 prompts and 1 images; give one"),
    ({"controls": control(end=1.5)}, r"controls\[0\].end=1.5 is out of range; it must be between 0 and 1"),
    ({"controls": control(start=0.5, end=0.25)}, r"controls\[0\]: start=0.5 is after end=0.25"),
    ({"controls": control(mode="contol")}, r"controls\[0\].mode='contol' is unknown; did you mean 'control'\?"),
    ({"controls": control(sha256=3)}, r"controls\[0\].sha256 must be a string, not int"),
    ({"controls": control("none.png")}, r"controls\[0\].image: 'none.png' cannot be read: No such file"),
    ({"controls": control(3)}, r"controls\[0\].image must be a path, a PIL image or a NumPy array, not int"),
    ({"controls": control([PICTURE, 3])}, r"controls\[0\].image\[1\] must be a path, a PIL image or a NumPy array"),
    ({"controls": control([])}, r"controls\[0\].image is an empty list; give at least one"),
    ({"controls": control(PICTURE[:50])}, r"controls\[0\].image is 50 pixels high .* give resize='cover'"),
    (
        {"controls": control(PICTURE), "height": 128},
        r"controls\[0\].image is 64 .* the nearest valid size is 128 and 64",
    ),
    (
        {"controls": [control(PICTURE), control(PICTURE[:32])]},
        r"controls\[1\].image is 64 x 32 pixels and controls\[0\].image 64 x 64; .* the same: give resize='cover'",
    ),
    (
        {"controls": control(PICTURE[:32]), "image": PICTURE},
        r"controls\[0\].image is 64 x 32 pixels and image 64 x 64; their sizes must be the same: give resize='cover'",
    ),
    (
        {"controls": control([PICTURE, PICTURE[:48]])},
        r"the pictures of controls\[0\].image are of different sizes, 64 x 64 and 64 x 48; give resize='cover'",
    ),
    (
        {"controls": control(np.broadcast_to(np.uint8(0), (520, 528, 3))), "safety": "off"},
        r"controls\[0\].image is 528 x 520 pixels, and the result would be, far above the model's 128 x 128",
    ),
    ({"image_prompts": "net"}, r"image_prompts\[0\] has no image; give the picture that is read beside the prompt"),
    ({"image_prompts": control(PICTURE)}, r"image_prompts must be a kerasdiff.ImagePrompt or a list .*, not Control"),
    ({"image_prompts": [("net", [])]}, r"image_prompts\[0\].image is an empty list; give at least one picture"),
    ({"image_prompts": [("net", [[PICTURE], []])]}, r"image_prompts\[0\].image is an empty list"),
    (
        {"image_prompts": [("net", [[PICTURE]] * 2)]},
        r"image_prompts\[0\].image has 2 entries for 1 prompts and 1 images",
    ),
    ({"image_prompts": kerasdiff.ImagePrompt("net", PICTURE, encoder=3)}, r"image_prompts\[0\].encoder must be a path"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_argument_is_one_clear_line(arguments, message):
    with pytest.raises(kerasdiff.RequestError, match=message) as caught:
        make_request(TINY, **{"prompt": "a red circle", **arguments})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 300
    assert isinstance(caught.value, kerasdiff.KerasdiffError)
    assert isinstance(caught.value, ValueError)


def test_full_size_models_have_sizes_of_their_own():
    with pytest.raises(kerasdiff.RequestError, match=r"height=500 is not a multiple of 8.* 496 or 504"):
        make_request(SD_V1, "x", height=500)


def test_defaults_are_the_models():
    request = make_request(TINY, "a red circle")
    defaults = TINY.defaults
    assert (request.height, request.width) == (128, 128)
    assert request.num_steps == defaults.num_steps
    assert request.sampler == defaults.sampler
    assert request.guidance_scale.plain() == defaults.guidance_scale
    assert request.negative_prompts == ("",)


def test_images_are_ordered_by_prompt_and_seeds_count_up():
    request = make_request(TINY, ["a", "b"], batch_size=2, seed=7, negative_prompt=["c", "d"])
    assert request.prompts == ("a", "a", "b", "b")
    assert request.negative_prompts == ("c", "c", "d", "d")
    assert request.seeds == (7, 8, 9, 10)
    assert make_request(TINY, ["a", "b"], negative_prompt="c").negative_prompts == ("c", "c")
    assert make_request(TINY, "a", batch_size=3, seed=[5, 0, MAX_SEED]).seeds == (5, 0, MAX_SEED)


def test_a_seed_is_drawn_and_recorded():
    first, second = (make_request(TINY, "a", batch_size=2).seeds for _ in range(2))
    assert first != second
    assert first[1] == first[0] + 1


def test_numpy_numbers_are_numbers():
    request = make_request(TINY, "a", batch_size=np.int64(2), seed=np.int32(3), guidance_scale=np.float32(2.5))
    assert len(request) == 2
    assert request.seeds == (3, 4)
    assert request.guidance_scale.plain() == 2.5


def test_arrays_are_lists():
    def one(**arguments):
        return make_request(TINY, **{"prompt": ["a", "b"], "seed": 1, "num_steps": 3, **arguments})

    assert one(prompt=np.array(["a", "b"])) == one()
    assert one(seed=np.array([5, 6])) == one(seed=(5, 6))
    assert one(guidance_scale=[np.array([2.0]), np.array([3])]) == one(guidance_scale=[2, 3])
    assert one(guidance_scale=np.array(2.5)) == one(guidance_scale=2.5)
    picture = {"image": PICTURE}
    assert one(strength=np.array([0.25, 0.5]), **picture) == one(strength=[0.25, 0.5], **picture)
    assert one(sampler_options={"solver_order": np.uint8(1)}).sampler_options == (("solver_order", 1),)
    assert one(exact=np.True_).exact is True


class Broken:
    """An object whose own code raises."""

    def __len__(self):
        raise OSError("lost\nconnection")

    __bool__ = __iter__ = __array__ = __eq__ = __repr__ = tolist = __len__
    __hash__ = None


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_object_that_raises_is_one_clear_line(name):
    with pytest.raises(kerasdiff.RequestError, match=name) as caught:
        make_request(TINY, **{"prompt": "a", name: Broken()})
    assert str(caught.value).isprintable()


def test_options_are_checked_where_nothing_is_left_to_do():
    """Also where the first and the last of several images start at different steps."""

    def options(strength, **values):
        count = len(strength)
        arguments = {"image": PICTURE, "num_steps": 6, "sampler": "pndm", "batch_size": count}
        return make_request(TINY, "a", strength=strength, sampler_options=values, **arguments)

    for strength in ([0.0], [0.0, 1.0]):
        assert options(strength, skip_prk_steps=False).strengths == tuple(strength)
        with pytest.raises(kerasdiff.RequestError, match="skip_prk_steps must be True or False"):
            options(strength, skip_prk_steps=3)
    with pytest.raises(kerasdiff.RequestError, match="needs at least 4 steps, not 3"):
        options([1.0, 0.5], skip_prk_steps=False)


def test_pictures_are_read_once_and_let_go(monkeypatch):
    """Large ones that are made smaller are not all kept."""
    read, made, kept = reader.read, [], []

    def counted(source, name):
        pixels = read(source, name)
        made.append(weakref.ref(pixels))
        kept.append(sum(one() is not None for one in made))
        return pixels

    monkeypatch.setattr(reader, "read", counted)
    photos = [np.full((100, 90, 3), place, "uint8") for place in range(4)]
    size = {"height": 64, "width": 64, "resize": "cover"}
    request = make_request(TINY, ["a", "b", "c", "d"], batch_size=2, image=photos, **size)
    assert request.pictures.index == (0, 0, 1, 1, 2, 2, 3, 3)
    assert request.pictures.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert len(made) == 4
    assert max(kept) == 2


def test_equal_requests_are_equal():
    assert make_request(TINY, "a", seed=1) == make_request(TINY, "a", seed=1)
    assert make_request(TINY, "a", seed=1) != make_request(TINY, "a", seed=2)


def test_a_sampler_may_be_called_as_in_diffusers():
    assert make_request(TINY, "a", sampler="EulerAncestralDiscreteScheduler").sampler == "euler_a"
    assert make_request(TINY, "a", sampler="DPM++ 2M").sampler == "dpmpp_2m"


def test_noise_levels_are_the_models_then_the_samplers_own():
    assert make_request(TINY, "a", sampler="ddim").spacing == "trailing"
    assert make_request(SD_V1, "a", sampler="ddim").spacing is None
    request = make_request(SD_V1, "a", timesteps=[999, 400.5, 20])
    assert (request.num_steps, request.spacing, request.timesteps) == (3, None, (999.0, 400.5, 20.0))
    request = make_request(SD_V1, "a", sigmas=np.array([14.6, 3.0, 0.5, 0.0]))
    assert (request.num_steps, request.spacing, request.sigmas) == (3, None, (14.6, 3.0, 0.5, 0.0))


def test_hints_have_the_size_of_the_image_or_decide_it():
    wide = np.zeros((64, 96, 3), "uint8")
    sizes = [
        ({}, [wide, wide], (64, 96)),
        ({"height": 64}, [wide], (64, 96)),
        ({"resize": "cover"}, [wide, PICTURE], (128, 128)),
        ({"resize": "fit", "height": 48}, [wide, wide], (48, 72)),
        ({"resize": "stretch", "width": 32}, [wide, PICTURE], (128, 32)),
        ({"image": wide}, [wide, None], (64, 96)),
        ({"image": PICTURE, "resize": "cover", "height": 96}, [wide], (96, 128)),
    ]
    for given, hints, size in sizes:
        request = make_request(TINY, "a", controls=[control(hint) for hint in hints], **given)
        assert (request.height, request.width) == size
        found = [one.image for one in request.controls]
        assert [one is None for one in found] == [hint is None for hint in hints]
        assert all(one.images.shape == (1, *size, 3) for one in found if one is not None)


def test_a_hint_is_made_of_the_picture_in_its_final_size():
    picture = np.zeros((32, 32, 3), "uint8")
    picture[:, 16:] = 200
    made = {"controls": [control(picture, hint="invert"), control(None, hint="gray"), control(None)]}
    request = make_request(TINY, "a", image=picture, resize="stretch", height=64, width=64, seed=1, **made)
    first, second, third = request.controls
    assert np.array_equal(first.image.images, 255 - request.pictures.images)
    assert np.array_equal(second.image.images, request.pictures.images)
    assert third.image is None
    kept = make_request(TINY, "a", image=request.pictures, seed=1, controls=request.controls)
    assert kept.controls == request.controls  # what was made once is not made again
    with pytest.raises(kerasdiff.RequestError, match=r"controls\[0\].hint='edges' is unknown; did you mean 'softedge'"):
        make_request(TINY, "a", controls=control(hint="edges"))


def test_hints_and_scales_are_one_for_all_one_per_prompt_or_one_per_image():
    hints = [np.full((64, 64, 3), level, "uint8") for level in range(4)]
    assert len(make_request(TINY, "a", controls=control(hints))) == 4  # as several images to start from
    controls = [control(hints[:2], scale=[0.5, 1]), control(hints)]
    controls += [("net", hints[3], 0.25), {"model": "net", "image": PICTURE}]
    request = make_request(TINY, ["a", "b"], batch_size=2, controls=controls, seed=1)
    levels = [one.image.images[list(one.image.index), 0, 0, 0].tolist() for one in request.controls]
    assert levels == [[0, 0, 1, 1], [0, 1, 2, 3], [3] * 4, [0] * 4]
    assert [one.scale for one in request.controls] == [(0.5, 0.5, 1, 1), (1,) * 4, (0.25,) * 4, (1,) * 4]
    part = request.only([3])
    assert [one.image.images[0, 0, 0, 0] for one in part.controls] == [1, 3, 3, 0]
    assert [one.scale for one in part.controls] == [(1,), (1,), (0.25,), (1,)]
    again = make_request(TINY, ["a", "a", "b", "b"], controls=request.controls, seed=1, height=64, width=64)
    assert again.controls == request.controls
    with pytest.raises(kerasdiff.RequestError, match="is that of a request of 4 images, and this one has 2"):
        make_request(TINY, ["a", "b"], controls=request.controls)


def test_pictures_of_image_prompts_are_read_together_or_one_set_per_image():
    first, second = PICTURE, np.ones((9, 7, 3), "uint8")
    prompts = [("ip", [first, second]), ("ip", [[first], [second]])]
    request = make_request(TINY, "a", batch_size=2, seed=1, image_prompts=prompts)
    shapes = [[[picture.shape[:2] for picture in one] for one in prompt.image] for prompt in request.image_prompts]
    assert shapes == [[[(64, 64), (9, 7)]] * 2, [[(64, 64)], [(9, 7)]]]
    assert (request.height, request.width) == (128, 128)
    again = make_request(TINY, ["a", "a"], seed=1, image_prompts=request.image_prompts)
    assert again == request
    prompts[0] = ("ip", [first, first])
    assert again != make_request(TINY, ["a", "a"], seed=1, image_prompts=prompts)


def test_all_hints_and_all_pictures_together_are_bounded(monkeypatch):
    monkeypatch.setattr(control_values, "MAX_PIXELS", 5 * 64 * 64)
    both = {"controls": [control([PICTURE] * 4)], "image_prompts": [("ip", [PICTURE] * 5)]}
    assert len(make_request(TINY, "a", **both)) == 4
    for name, more in (("controls", [control([PICTURE] * 3)] * 2), ("image_prompts", [("ip", [PICTURE] * 3)] * 2)):
        with pytest.raises(kerasdiff.RequestError, match=f"of {name} may have at most 20480 pixels together: split"):
            make_request(TINY, "a", **{name: more})


def test_guidance_is_one_weight_a_step_or_an_image():
    def guidance(prompt="a", **arguments):
        return make_request(TINY, prompt, num_steps=3, **arguments).guidance.T.tolist()

    assert guidance(guidance_scale=4) == [[4, 4, 4]]
    assert guidance(guidance_scale=[1, 2, 3]) == [[1, 2, 3]]
    assert guidance(["a", "b"], guidance_scale=[1, 2, 3]) == [[1, 2, 3]] * 2
    assert guidance(["a", "b"], guidance_scale=[5, 6], batch_size=2) == [[5] * 3] * 2 + [[6] * 3] * 2
    assert guidance(batch_size=2, guidance_scale=[5, 6]) == [[5] * 3, [6] * 3]
    assert guidance(batch_size=3, guidance_scale=[[5], [6], [7]]) == [[5] * 3, [6] * 3, [7] * 3]
    assert guidance(batch_size=3, guidance_scale=[[5, 6, 7]]) == [[5, 6, 7]] * 3
    assert guidance(batch_size=2, guidance_scale=[[1, 2, 3], [4, 5, 6]]) == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(kerasdiff.RequestError, match=r"as many steps as images; write \[\[a\], \[b\], \.\.\.\]"):
        guidance(batch_size=3, guidance_scale=[5, 6, 7])
    for wrong in ([[5, 6]], [[5], [6, 7]]):
        with pytest.raises(kerasdiff.RequestError, match="must have one number per image, or 3, one per step"):
            guidance(guidance_scale=wrong)


def test_guidance_can_be_on_for_a_part_of_the_run():
    half = make_request(TINY, "a", num_steps=4, guidance_scale=4, guidance_interval=(0.25, 0.75))
    assert half.guidance[:, 0].tolist() == [1, 4, 4, 1]
    assert half.guided
    assert not make_request(TINY, "a", guidance_interval=(0.5, 0.5)).guided
    assert not make_request(TINY, "a", num_steps=2, guidance_scale=[1, 1]).guided


def test_a_run_that_starts_where_little_noise_is_expected_warns():
    with pytest.warns(UserWarning, match=r"starts from pure noise at timestep 0 of 999.* spacing='trailing'"):
        make_request(TINY, "a", sampler="euler", spacing="linspace", num_steps=1)


def test_every_argument_and_every_field_is_listed_once():
    """Signatures, validation, flags, embedded metadata and the page of the API come from that table."""
    fields = {field.name: field for field in dataclasses.fields(Request)}
    assert {argument.per_image or name for name, argument in ARGUMENTS.items()} - {
        "batch_size",
        "lora_folder",
    } == fields.keys() - {"all_steps", "towards"}  # what follows from the model, and what a walk adds
    for function in (make_request, kerasdiff.generate, kerasdiff.Generator.generate, kerasdiff.Generator.stream):
        parameters = inspect.signature(function).parameters
        assert [name for name in parameters if name in ARGUMENTS] == list(ARGUMENTS)
        assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        described = [f" {name}: {ARGUMENTS[name].help[:40]}" in function.__doc__ for name in DEFAULTS]
        assert all(described) or function is kerasdiff.Generator.stream
    request = make_request(TINY, ["a", "b"], image=PICTURE, seed=1)
    entries = {name: getattr(request, name) for name in fields if name != "pictures"}
    lists = {name for name, value in entries.items() if isinstance(value, tuple) and len(value) == 2}
    assert lists - {"guidance_interval"} == set(PER_IMAGE) - {
        *("pictures", "guidance_scale", "towards", "controls", "image_prompts")
    }


def test_bounds_and_choices_of_the_table_are_those_of_what_uses_them():
    assert ARGUMENTS["seed"].bounds == (0, MAX_SEED)
    assert ARGUMENTS["feather"].bounds == (0, reader.MAX_SIDE)
    assert ARGUMENTS["resize"].choices == reader.RESIZES
    assert ARGUMENTS["rng"].choices == tuple(RNGS)


def test_an_argument_that_there_is_not():
    with pytest.raises(TypeError, match=r"make_request\(\) got an unexpected keyword argument 'num_step'"):
        make_request(TINY, "a", num_step=3)


@pytest.mark.parametrize("invert", [False, True])
def test_a_mask_covers_something_and_not_everything(invert):
    redrawn, kept = ("black", "white") if invert else ("white", "black")
    both = {"white": np.full((64, 64), 255, "uint8"), "black": np.zeros((64, 64), bool)}
    arguments = {"image": PICTURE, "invert_mask": invert}
    seen = {"white": "light", "black": "dark or transparent"}
    for colour, amount in ((redrawn, "everything"), (kept, "nothing")):
        with pytest.raises(kerasdiff.RequestError) as caught:
            make_request(TINY, "a", mask=both[colour], **arguments)
        assert str(caught.value).startswith(
            f"mask covers {amount}: what is {redrawn} is redrawn ({kept} with invert_mask={not invert}), and all of "
            f"its 64 x 64 pixels are {seen[colour]}; "
        )
    with pytest.raises(kerasdiff.RequestError, match=r"mask\[1\] covers nothing"):
        make_request(TINY, ["a", "b"], mask=[MASK, both[kept]], **arguments)
    masks = make_request(TINY, "a", mask=MASK, **arguments).pictures.masks
    assert np.array_equal(masks[0], invert != MASK)
    edge = np.zeros((64, 128), "uint8")
    edge[:, :20] = 255
    wide = {"image": np.zeros((64, 128, 3), "uint8"), "resize": "cover", "height": 64, "width": 64}
    amount = "everything" if invert else "nothing"
    told = f"mask covers {amount} once it is resized from 128 x 64 to 64 x 64; crop"
    with pytest.raises(kerasdiff.RequestError, match=told):
        make_request(TINY, "a", **{**arguments, **wide, "mask": edge})


def test_a_model_for_inpainting_takes_a_mask_of_all_its_image():
    unet = dataclasses.replace(TINY.unet, in_channels=9)
    config = dataclasses.replace(TINY, unet=unet)
    everything = np.ones((64, 64), bool)
    assert make_request(config, "a", image=PICTURE, mask=everything).pictures.masks.all()
    with pytest.raises(kerasdiff.RequestError, match="mask covers nothing"):
        make_request(config, "a", image=PICTURE, mask=~everything)


def test_invert_mask_needs_a_mask():
    with pytest.raises(kerasdiff.RequestError, match="invert_mask needs mask"):
        make_request(TINY, "a", image=PICTURE, invert_mask=True)
    with pytest.raises(kerasdiff.RequestError, match="invert_mask needs image and mask"):
        make_request(TINY, "a", invert_mask=True)


def test_a_size_far_above_the_models_is_taken_over_only_if_asked_for():
    large, larger = np.zeros((512, 512, 3), "uint8"), np.zeros((512, 528, 3), "uint8")
    assert make_request(TINY, "a", image=large).height == 512
    words = r"is 528 x 512 pixels, .* the model's 128 x 128; .* 0\.\d+ GB .* resize='cover' .*height=512 and width=528"
    for arguments in ({}, {"height": 512}, {"width": 528}):
        with pytest.raises(kerasdiff.RequestError, match=words):
            make_request(TINY, "a", image=larger, **arguments)
    assert make_request(TINY, "a", image=larger, height=512, width=528).width == 528
    assert make_request(TINY, "a", image=larger, resize="cover").width == 128


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_steps": 3, "guidance_scale": [[3], [2]], "negative_prompt": ["x", ""], "exact": True},
        {"num_steps": 3, "guidance_scale": [3, 2, 1], "guidance_interval": (0, 0.5), "guidance_rescale": 0.5},
        {"num_steps": 1, "guidance_scale": [3], "sampler": "ddim", "sampler_options": {"eta": 0.5}, "rng": "torch"},
        {"timesteps": [999, 400.5, 20], "guidance_scale": [[3, 2, 1], [4, 5, 6]], "long_prompts": "chunk"},
        {"sigmas": [14.6, 3.0, 0.5, 0.0], "sampler": "euler", "height": 64},
        {"deep_cache_interval": 3, "deep_cache_branch": 2, "token_merging_ratio": 0.5},
        {"image": PICTURE, "strength": [0.25, 0.5], "resize": "fit", "mask": MASK, "feather": 3, "invert_mask": True},
    ],
)
def test_a_request_gives_the_arguments_that_make_it(arguments):
    request = make_request(TINY, ["a", "b"], seed=[5, 3], **arguments)
    pictures = {name: arguments[name] for name in ("image", "mask") if name in arguments}
    again = make_request(TINY, **request.arguments(), **pictures)
    assert again == request
    assert repr(again.guidance_scale) == repr(request.guidance_scale)


@pytest.mark.parametrize(
    ("value", "weights", "plain"),
    [
        (3, ((3.0,),), 3.0),
        ([3, 2, 1], ((3.0, 2.0, 1.0),), [3.0, 2.0, 1.0]),
        ([3, 2], ((3.0,), (2.0,)), [[3.0], [2.0]]),
        ([[3], [3]], ((3.0,), (3.0,)), [[3.0], [3.0]]),
        ([[3, 2, 1]], ((3.0, 2.0, 1.0),) * 2, [[3.0, 2.0, 1.0]] * 2),
    ],
)
def test_guidance_has_one_form_and_is_written_as_it_was_given(value, weights, plain):
    scale = make_request(TINY, ["a", "b"], num_steps=3, guidance_scale=value).guidance_scale
    assert scale.weights == weights
    assert repr(scale.plain()) == repr(plain)
    assert GuidanceScale.from_plain(plain) == scale
