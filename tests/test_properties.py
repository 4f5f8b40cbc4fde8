"""Whatever the arguments are: images, or one line that says which of them is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import decimal
import fractions
import pathlib
import subprocess
import sys
import warnings
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import kerasdiff
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.controls import MODES
from kerasdiff.hires import Hires
from kerasdiff.images.reader import MAX_SIDE
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request
from kerasdiff.request_arguments import ARGUMENTS
from kerasdiff.runtime import precision
from kerasdiff.samplers import RECIPES, SAMPLERS, SPACINGS, sampling_levels, sampling_table
from kerasdiff.samplers.noise import MAX_SEED
from kerasdiff.size_conditioning import SizeConditioning

# By the profile (tests/conftest.py): a few values that are the same in every run, or many new ones.
EXAMPLES = settings.default.max_examples
# Each example of these draws.
drawing = settings(max_examples=EXAMPLES // 2)
LONGEST = 300
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype="uint8")
COVER = np.arange(64 * 64).reshape(64, 64) % 3 == 0


class Raises:
    """Whatever is asked of it raises."""

    def _raise(self, *_):
        raise ZeroDivisionError("mine,\nin two lines \x1b\ud800")

    __array__ = __bool__ = __eq__ = __float__ = __fspath__ = __getattr__ = __getitem__ = __index__ = __int__ = _raise
    __iter__ = __len__ = __lt__ = __repr__ = __str__ = _raise
    __hash__ = object.__hash__

    def _repr_pretty_(self, printer, cycle):
        """How hypothesis shows it."""
        printer.text("Raises()")


class RaisingList(list):
    """A list that cannot be read."""

    __len__ = __iter__ = __getitem__ = __bool__ = Raises._raise


class Column:
    """A column of a table, as in pandas: it has no truth value and compares entry by entry."""

    def __init__(self, values):
        self._values = np.array(values)
        self.dtype, self.shape, self.ndim = self._values.dtype, self._values.shape, 1

    def tolist(self):
        return self._values.tolist()

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype)

    def __eq__(self, other):
        return Column(self._values == other)

    def __bool__(self):
        raise ValueError("the truth value is ambiguous")

    __hash__ = None


TEXTS = (
    st.text(st.characters(exclude_categories=()), max_size=20)
    | st.sampled_from(["", "\0", "\ud800", "a\nb", "tiny", "euler", "zero", "1"])
    | st.builds("x".__mul__, st.just(100_001))
    | st.sampled_from([*SAMPLERS, *SPACINGS, "Euler A ", "trailin", "philoks", "OFF", "float16"])
)
NUMBERS = (
    st.integers(-3, 5)
    | st.floats()
    | st.booleans()
    | st.sampled_from([2**31, 2**63, 2**64, -(2**64), 10**30, 10**400, -(10**400), 1e308, 5e-324, -0.0, 1e-9])
    | st.sampled_from([fractions.Fraction(1, 3), fractions.Fraction(10**400), decimal.Decimal("0.5"), 1j])
    | st.sampled_from([np.int8(3), np.uint8(255), np.uint64(2**64 - 1), np.float16("inf"), np.float32(0.5), np.True_])
    | st.sampled_from([np.longdouble("1e4000"), np.complex64(1j), np.datetime64(5, "ns"), np.timedelta64(5, "ns")])
)
ARRAYS = arrays.arrays(
    st.sampled_from(["?", "i1", "u1", "u2", "i8", "f4", ">f8", "g", "c8", "S2", "U3", "M8[ns]", "m8[s]"]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
) | st.sampled_from(
    [
        np.array([None, "x"], object),
        np.array([[1, 2], None], object),
        np.zeros(2, [("a", "f4"), ("b", "i4")]),
        np.ma.masked_array([0.5, 0.25], [True, True]),
        np.array([999, 500], "datetime64[ns]"),
        np.str_("euler"),
        np.void(b"abc"),
        np.broadcast_to(np.float64(0.5), (2**30, 2**20)),
        np.broadcast_to(np.uint8(0), (2**20, 64, 64, 3)),
        np.broadcast_to(np.False_, (2**20, 2**20)),
        np.zeros((2**40, 0)),
    ]
)
ATOMS = st.none() | NUMBERS | TEXTS | st.binary(max_size=4)
ODD = (
    st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=4) | st.tuples(inner) | st.tuples(inner, inner))
    | st.dictionaries(TEXTS | st.integers(), ATOMS, max_size=3)
    | st.sets(st.integers() | TEXTS, max_size=3)
    | st.builds(Raises)
    | st.builds(RaisingList)
    | st.builds(Column, st.lists(st.integers(0, 3) | st.floats(0, 1), max_size=3))
    | st.builds(mock.MagicMock)
    | st.builds(lambda: (one for one in (0.5, 0.25)))
    | st.builds(lambda: [Raises(), RaisingList()])
    | st.builds(lambda: [0.5] * 200_000)
    | st.builds(lambda: {"eta": Raises()})
    | st.sampled_from([range(3), np.ndarray, len, memoryview(b"abc"), bytearray(b"\xff"), Ellipsis])
)


@st.composite
def junk(draw):
    """Whatever somebody may pass by mistake."""
    return draw(ODD | ARRAYS)


JUNK = junk()

SHARES = st.floats(0, 1) | st.sampled_from([0, 1, np.float32(0.5), fractions.Fraction(1, 3)])
SEEDS = st.integers(0, MAX_SEED) | st.sampled_from([np.uint64(MAX_SEED), np.int8(5)])
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
WEIGHTS = st.floats(-1e6, 1e6) | st.integers(-20, 20)
SIDES = st.sampled_from([16, 48, 64, np.int64(80), 128, 8192])
PICTURES = st.sampled_from(
    [PICTURE, PICTURE / 255, PICTURE[:, :, :1], Image.fromarray(PICTURE), Image.new("L", (64,) * 2)]
)
COVERS = st.sampled_from([COVER, COVER * 1.0, COVER.astype("uint8"), Image.fromarray(COVER)])
STEPS = st.lists(st.integers(0, 999), min_size=1, max_size=5, unique=True).map(lambda times: sorted(times)[::-1])
# Values that are right by themselves, with the others as in `BASE`.
FILES = st.sampled_from(["a.safetensors", "org/name", pathlib.Path("folder")])
RIGHT = {
    "prompt": WORDS | st.lists(WORDS, min_size=1, max_size=3) | st.builds(np.array, st.lists(WORDS, min_size=1)),
    "batch_size": st.integers(1, 5) | st.sampled_from([np.uint8(3), 100_000]),
    "negative_prompt": st.none() | WORDS | WORDS.map(lambda text: (text,)) | st.just([None]),
    "height": st.none() | SIDES,
    "width": st.none() | SIDES,
    "tile": st.sampled_from([None, "x", "y", "xy"]),
    "num_steps": st.integers(1, 1000) | st.sampled_from([None, np.int16(7)]),
    "guidance_scale": st.none() | WEIGHTS | st.tuples(WEIGHTS, WEIGHTS, WEIGHTS) | WEIGHTS.map(lambda one: [[one]]),
    "guidance_interval": st.tuples(SHARES, SHARES).map(sorted) | st.just(np.array([0.25, 0.5])),
    "guidance_rescale": SHARES,
    "image_guidance_scale": st.none(),  # this model edits nothing; tests/test_editing.py has one that does
    "recipe": st.sampled_from([None, "none", *RECIPES]),
    "sampler": st.sampled_from([None, *SAMPLERS, "DPM++ 2M", "LCMScheduler"]),
    "sampler_options": st.sampled_from([None, {}, {"solver_order": np.uint8(1), "euler_at_final": np.True_}]),
    "spacing": st.sampled_from([None, *(name for name in SPACINGS if name != "flow")]),
    "timesteps": STEPS | STEPS.map(np.array) | st.just((999.0, 3.25)) | st.none(),
    "sigmas": st.none() | STEPS.map(lambda times: [(1 + time) / 10 for time in times] + [0]),
    "rng": st.sampled_from(["philox", "torch"]),
    "long_prompts": st.sampled_from(ARGUMENTS["long_prompts"].choices),
    "seed": st.none() | SEEDS | SEEDS.map(lambda seed: [seed]) | SEEDS.map(np.array),
    "image": PICTURES | PICTURES.map(lambda picture: [picture]) | st.just(np.stack([PICTURE, PICTURE])),
    "mask": st.none() | COVERS | COVERS.map(lambda cover: (cover,)),
    "strength": st.none() | SHARES | SHARES.map(lambda share: [share]) | st.just(np.array([0.5])),
    "resize": st.sampled_from([None, "cover", "fit", "stretch"]),
    "feather": st.integers(0, MAX_SIDE),
    "invert_mask": st.booleans() | st.just(np.True_),
    "deep_cache_interval": st.integers(1, 1000) | st.just(np.int8(3)),
    "deep_cache_branch": st.integers(0, TINY.unet.branches - 1),
    "token_merging_ratio": st.floats(0, 0.75) | st.sampled_from([0, np.float32(0.5)]),
    "prompt_syntax": st.sampled_from(ARGUMENTS["prompt_syntax"].choices),
    "emphasis": st.sampled_from(ARGUMENTS["emphasis"].choices),
    "clip_skip": st.integers(0, TINY.text_encoder.num_layers - 1) | st.just(np.int8(1)),
    "loras": st.none() | FILES | st.lists(FILES | st.tuples(FILES, SHARES) | st.tuples(FILES, SHARES, SHARES)),
    "lora_folder": st.none() | FILES,
    "embeddings": st.none() | FILES | st.lists(FILES | st.tuples(FILES, st.sampled_from(["<toy>", "toy"]))),
    "controls": st.none()
    | FILES
    | st.lists(FILES | st.tuples(FILES, PICTURES) | st.tuples(FILES, PICTURES, SHARES), max_size=3)
    | st.builds(kerasdiff.Control, FILES, PICTURES, SHARES, mode=st.sampled_from(MODES)),
    "image_prompts": st.none()
    | st.lists(st.tuples(FILES, PICTURES) | st.tuples(FILES, st.lists(PICTURES, min_size=1, max_size=2)), max_size=2)
    | st.builds(kerasdiff.ImagePrompt, FILES, st.just([[PICTURE, PICTURE[:9]]]), SHARES),
    "hires": st.none()
    | st.floats(1, 4)
    | st.sampled_from([2, np.float32(1.5), {}, "scale=2,strength=0.6", {"width": 96}, {"height": 64, "width": 128}])
    | st.fixed_dictionaries({"strength": SHARES.filter(lambda share: share == 0 or share > 0.01), "prompt": WORDS}),
    "upscale": st.none() | FILES | st.tuples(FILES, st.floats(1, 16)),
    "safety": st.sampled_from([None, "off"]),
    "exact": st.booleans() | st.just(np.True_),
    "denoising_end": st.none() | st.floats(0.3, 0.7),
    "denoising_start": st.none() | st.floats(0.3, 0.7),
    "refiner_strength": st.sampled_from([None, 0]),  # this model has no refiner; tests/test_refiner.py has
    # This model reads no sizes; those that do are in tests/test_sdxl_images.py.
    **dict.fromkeys((field.name for field in dataclasses.fields(SizeConditioning)), st.none()),
}


def falling(numbers):
    """Lists of numbers that fall, or stay where they are."""
    return st.lists(numbers, max_size=4).map(lambda drawn: sorted(drawn, reverse=True))


# Values that are nearly right.
NEAR = {
    "prompt": st.lists(TEXTS, max_size=3),
    "height": st.integers(-17, 200) | st.integers(MAX_SIDE - 32, MAX_SIDE + 32),
    "width": st.integers(-17, 200) | st.integers(MAX_SIDE - 32, MAX_SIDE + 32),
    "batch_size": st.integers(99_990, 100_010),
    "num_steps": st.integers(990, 1010),
    "guidance_scale": st.lists(WEIGHTS | NUMBERS, max_size=4)
    | st.lists(st.lists(WEIGHTS, max_size=4), max_size=3)
    | st.sampled_from([1e308, -1e39, 2**127, [[1e300]]]),
    "guidance_interval": st.lists(st.floats(-0.1, 1.1), max_size=3),
    "sampler_options": st.dictionaries(
        st.sampled_from([option for entry in SAMPLERS.values() for option in entry.options]), ATOMS, max_size=3
    ),
    "timesteps": falling(st.floats(-1, 1000) | st.integers(-1, 1000) | st.sampled_from([5, 5 - 1e-9, 1e308, -1e308])),
    "sigmas": falling(st.floats(-1, 200) | st.sampled_from([0, 5, 5 - 1e-9, 1e-7, 1e-200, 1e-320, 1e308, -1e308])),
    "image": st.lists(PICTURES | ODD, max_size=3) | arrays.arrays("uint8", st.sampled_from([(64, 65, 3), (64, 64, 2)])),
    "mask": st.lists(COVERS | ODD, max_size=3)
    | arrays.arrays(bool, st.sampled_from([(64, 65), (64, 64, 2), (1, 64, 64)])),
    "strength": st.lists(st.floats(-0.1, 1.1), max_size=3),
    "resize": st.sampled_from(["covr", "FIT", "crop"]),
    "tile": st.sampled_from(["yx", "X", "", True]),
    "controls": st.builds(kerasdiff.Control, ODD, ODD | PICTURES, NUMBERS, NUMBERS, NUMBERS, TEXTS)
    | st.dictionaries(st.sampled_from(["model", "image", "scale", "mdel"]), ATOMS | PICTURES, max_size=3)
    | st.tuples(FILES, PICTURES),
    "image_prompts": st.builds(kerasdiff.ImagePrompt, FILES, ODD | st.lists(PICTURES | ODD, max_size=3), NUMBERS)
    | st.tuples(FILES, PICTURES),
    "hires": st.dictionaries(st.sampled_from([*Hires.__annotations__, "scal", "hr_scale"]), ATOMS, max_size=3)
    | st.sampled_from(["scale=", "2,3", 'prompt="a', "width=1e400", 8.5, {"scale": Raises()}]),
}
BASE = {"prompt": "a ring", "num_steps": 3, "seed": 1, "height": 64, "width": 64, "guidance_scale": 2.0}
# What an argument is about has to be there.
NEEDS = {
    "mask": {"image": PICTURE},
    "strength": {"image": PICTURE},
    "resize": {"image": PICTURE},
    "controls": {"image": PICTURE},
    "feather": {"image": PICTURE, "mask": COVER},
    "invert_mask": {"image": PICTURE, "mask": COVER},
    "deep_cache_branch": {"deep_cache_interval": 2},
    "emphasis": {"prompt_syntax": "a1111"},
    "denoising_start": {"num_steps": 20},
    "denoising_end": {"num_steps": 20},
    "timesteps": {"num_steps": None},
    "sigmas": {"num_steps": None},
    "spacing": {"sampler": "euler"},
}
# What a message may call an argument.
CALLED = {"sampler_options": ["option", *(option for entry in SAMPLERS.values() for option in entry.options)]}


def base(name):
    return {**BASE, **NEEDS.get(name, {})}


def outcome(call, names=("",)):
    """What a call gives, or None if it is refused in one short line that names one of the arguments."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the run starts from pure noise|the prompt has|guidance_scale=.* the prompt")
        try:
            return call()
        except kerasdiff.NonFiniteError as error:  # says which stage, and what may help
            message, names = str(error), ["not finite"]
        except kerasdiff.KerasdiffError as error:
            message = str(error)
    assert message.isprintable()
    assert 0 < len(message) <= LONGEST
    assert any(called in message for name in names for called in (name, *CALLED.get(name, ())))
    return None


def check(request):
    """What holds for every request, whatever it was made from."""
    count = len(request)
    for texts in (request.prompts, request.negative_prompts):
        assert len(texts) == count
        assert all(isinstance(text, str) for text in texts)
        assert "".join(texts).encode().decode() == "".join(texts)
    assert len(request.seeds) == count
    assert all(type(seed) is int and 0 <= seed <= MAX_SEED for seed in request.seeds)
    for side in (request.height, request.width):
        assert type(side) is int
        assert side % TINY.size_multiple == 0 < side <= MAX_SIDE
    assert request.guidance.shape == (request.num_steps, count)
    assert np.isfinite(request.guidance).all()
    assert len(request.first_steps) == count
    assert 0 <= min(request.first_steps) <= max(request.first_steps) <= request.num_steps
    levels = sampling_levels(
        TINY.schedule,
        request.sampler,
        request.num_steps,
        spacing=request.spacing,
        timesteps=request.timesteps,
        sigmas=request.sigmas,
    )
    assert len(levels.timesteps) == request.num_steps
    for first in {0, *request.first_steps} - {request.num_steps}:
        table = sampling_table(levels.from_step(first), request.sampler, dict(request.sampler_options))
        assert np.isfinite(table.updates.astype("float32")).all()
    if request.pictures is not None:
        shape = (len(set(request.pictures.index)), request.height, request.width)
        assert request.pictures.images.shape == (*shape, 3)
        assert request.pictures.images.dtype == np.uint8
        assert len(request.strengths) == len(request.pictures.index) == count
        assert request.pictures.masks is None or request.pictures.masks.shape == shape
    if request.controls is not None:
        for control in request.controls:
            assert len(control.scale) == count
            hint = request.pictures if control.image is None else control.image
            assert hint.images.shape[1:] == (request.height, request.width, 3)
            assert len(hint.index) == count
    for prompt in request.image_prompts or ():
        assert len(prompt.scale) == len(prompt.image) == count
        assert all(picture.dtype == np.uint8 for one in prompt.image for picture in one)
    assert hash(request) == hash(request.only(range(count)))
    assert request == request.only(range(count))


def test_every_argument_is_tried():
    arguments = ARGUMENTS.keys()
    assert RIGHT.keys() == arguments
    assert NEAR.keys() <= arguments


@pytest.mark.parametrize("name", RIGHT)
@given(data=st.data())
def test_right_values_are_taken(name, data):
    request = outcome(lambda: make_request(TINY, **{**base(name), name: data.draw(RIGHT[name])}))
    assert request is not None
    check(request)


@pytest.mark.parametrize("name", RIGHT)
@given(data=st.data())
def test_any_value_makes_a_request_or_one_line(name, data):
    value = data.draw(data.draw(st.sampled_from([NEAR.get(name, JUNK), JUNK])))
    request = outcome(lambda: make_request(TINY, **{**base(name), name: value}), [name])
    if request is not None:
        check(request)


@pytest.mark.parametrize("sampler", [name for name, entry in SAMPLERS.items() if entry.options])
@given(data=st.data())
def test_any_option_makes_a_request_or_one_line(sampler, data):
    values = st.floats(0, 1) | st.integers(0, 4) | st.booleans() | ATOMS
    own = {name: st.just(value) | values for name, value in SAMPLERS[sampler].options.items()}
    options = data.draw(st.fixed_dictionaries({}, optional=own))
    timesteps = data.draw(STEPS)
    arguments = {"sampler": sampler, "sampler_options": options, "timesteps": timesteps}
    request = outcome(lambda: make_request(TINY, "a ring", **arguments), ["sampler_options"])
    if request is not None:
        check(request)


@st.composite
def arguments_of_any_kind(draw):
    """Some of the arguments, right, nearly right or wrong."""
    names = draw(st.lists(st.sampled_from([*RIGHT]), max_size=6, unique=True))
    return {name: draw(draw(st.sampled_from([RIGHT[name], NEAR.get(name, JUNK), JUNK]))) for name in names}


@given(arguments_of_any_kind())
@settings(max_examples=3 * EXAMPLES)
def test_any_values_make_a_request_or_one_line(arguments):
    request = outcome(lambda: make_request(TINY, **{"prompt": "a ring", **arguments}), RIGHT)
    if request is not None:
        check(request)


@st.composite
def several(draw):
    """Arguments of a request with several images, and for each of these those that make it alone."""
    prompts, batch_size = draw(st.lists(WORDS, min_size=1, max_size=3)), draw(st.integers(1, 2))
    count, steps = len(prompts) * batch_size, draw(st.integers(1, 4))
    shared = {"num_steps": steps, "height": 64, "width": 64, "sampler": draw(st.sampled_from([None, "ddim", "heun"]))}

    def each(values):
        """One for all, one a prompt or one an image, and which of them each image has."""
        length = draw(st.sampled_from([1, len(prompts), count]))
        given = [draw(values) for _ in range(length)]
        return given, [given[place * length // count] for place in range(count)]

    negatives = [draw(WORDS) for _ in prompts]
    seeds = [draw(SEEDS) for _ in range(count)]
    scales, scale_of = each(st.lists(WEIGHTS, min_size=1, max_size=1))
    if draw(st.booleans()):
        scales, scale_of = ([one * steps for one in part] for part in (scales, scale_of))
    arguments = {
        "prompt": prompts,
        "batch_size": batch_size,
        "negative_prompt": negatives,
        "seed": seeds,
        "guidance_scale": scales,
    }
    alone = [
        {
            "prompt": prompts[place // batch_size],
            "negative_prompt": negatives[place // batch_size],
            "seed": seeds[place],
            "guidance_scale": [scale_of[place]],
        }
        for place in range(count)
    ]
    if draw(st.booleans()):
        parts = {"image": each(PICTURES), "strength": each(SHARES)}
        if draw(st.booleans()):
            parts["mask"] = each(COVERS)
        for name, (given, of) in parts.items():
            arguments[name] = given
            for place in range(count):
                alone[place][name] = of[place]
    return {**arguments, **shared}, [{**one, **shared} for one in alone]


@pytest.mark.filterwarnings("ignore:guidance_scale=.* the prompt")
@given(several(), st.data())
def test_a_part_of_a_request_is_what_its_images_are_alone(arguments, data):
    arguments, alone = arguments
    request = make_request(TINY, **arguments)
    check(request)
    singles = [make_request(TINY, **one) for one in alone]
    places = data.draw(st.lists(st.integers(0, len(request) - 1), min_size=1, max_size=6))
    part = request.only(places)
    check(part)
    assert np.array_equal(part.guidance, request.guidance[:, places])
    assert part.first_steps == tuple(request.first_steps[place] for place in places)
    for index, place in enumerate(places):
        assert part.only([index]) == request.only([place]) == singles[place]


LARGE = """
import resource
import numpy as np
from kerasdiff import RequestError
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request
zeros = lambda *shape: np.broadcast_to(np.uint8(0), shape)
cases = [
    {"batch_size": 10**9},
    {"batch_size": 10**5000},
    {"prompt": "a" * 10**7},
    {"prompt": b"a" * 10**7},
    {"prompt": ["a"] * 10**6},
    {"negative_prompt": np.broadcast_to(np.array("a"), 2**50)},
    {"height": 2**40},
    {"width": 10**5000},
    {"height": 65472, "width": 65472},
    {"num_steps": 10**9},
    {"seed": 2**64},
    {"seed": [0] * 10**6},
    {"image": zeros(64, 64), "mask": zeros(64, 64), "feather": 10**9},
    {"timesteps": list(range(10**6, 0, -1))},
    {"timesteps": np.broadcast_to(0.0, 2**50)},
    {"sigmas": list(range(10**6, -1, -1))},
    {"guidance_scale": 10**400},
    {"guidance_scale": [1.0] * 10**6},
    {"guidance_scale": [[1.0] * 10**6]},
    {"guidance_scale": np.broadcast_to(1.0, (2**20, 2**20))},
    {"guidance_scale": np.zeros((2**40, 0))},
    {"guidance_interval": [0.0] * 10**6},
    {"image": zeros(64, 64), "strength": np.broadcast_to(0.5, 2**50)},
    {"image": zeros(2**30, 64, 64, 3)},
    {"image": zeros(2**20, 2**20, 3)},
    {"image": zeros(90_000, 64, 64, 3)},
    {"image": zeros(64, 64), "mask": np.broadcast_to(False, (2**20, 2**20))},
    {"image": zeros(64, 64), "resize": "stretch", "height": 65472, "width": 65472},
    {"image": "a" * 10**7},
    {"sampler": "a" * 10**7},
    {"sampler": "lcm", "sampler_options": {"timestep_scaling": 1e300}},
    {"spacing": "karras" * 10**6},
]
with open("/proc/self/statm") as pages:
    taken = int(pages.read().split()[0]) * resource.getpagesize()
seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime
# What takes more memory fails, and what takes for ever is ended.
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, -1))
resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + len(cases), -1))
for case in cases:
    try:
        make_request(TINY, **{"prompt": "a", **case})
    except RequestError as error:
        assert len(str(error)) <= 300, error
    else:
        raise AssertionError(f"{[*case]} was not refused")
print("refused:", len(cases))
"""


def test_large_values_are_refused_before_anything_large_is_made():
    done = subprocess.run([sys.executable, "-W", "error", "-c", LARGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: ")


@given(JUNK, JUNK)
def test_any_way_to_compute_is_checked(kind, jit_compile):
    outcome(lambda: precision.check("auto", jit_compile), ["jit_compile"])
    outcome(lambda: precision.check(kind, "auto"), ["precision"])


# A text with a slash would be looked for on the hub.
@pytest.mark.parametrize("name", ["model", "weights", "revision", "variant"])
@given(value=JUNK.filter(lambda value: not isinstance(value, str) or "/" not in value))
def test_any_model_is_opened_or_refused(name, value):
    found = outcome(lambda: open_model(**{"model": "tiny", name: value}), [name])
    assert found is None or found.config == TINY


@given(
    st.sampled_from(["save", "save_grid"]),
    st.builds("{}{}".format, WORDS, st.sampled_from([".png", ".jpg", ".webp", ".gif", ""]))
    | st.sampled_from(["a\n.gif", "a\0.png", "\ud800.png", f"no/{'a' * 500}.png", f"{'a' * 500}.png", "a" * 500])
    | ODD,
    st.integers(1, 3),
)
def test_any_path_is_written_or_refused(tmp_path_factory, how, path, count):
    images = np.zeros((count, 16, 16, 3), "uint8")
    result = kerasdiff.Result(images, np.zeros((count, 2, 2, 4)), make_request(TINY, "a", batch_size=count), "tiny")
    with contextlib.chdir(tmp_path_factory.mktemp("saved")):
        written = outcome(lambda: getattr(result, how)(path))
        for one in [] if written is None else [written] if how == "save_grid" else written:
            with Image.open(one) as picture:
                assert picture.height == 16 or how == "save_grid"


@pytest.mark.parametrize("how", ["grid", "save_grid"])
@given(columns=JUNK)
def test_any_number_of_columns_is_laid_out_or_refused(tmp_path_factory, how, columns):
    result = kerasdiff.Result(np.stack([PICTURE] * 3), np.zeros((3, 8, 8, 4)), make_request(TINY, ["a"] * 3), "tiny")
    to = {} if how == "grid" else {"path": tmp_path_factory.getbasetemp() / "grid.png"}
    outcome(lambda: getattr(result, how)(**to, columns=columns), ["columns"])


@st.composite
def drawable(draw):
    """Arguments that a few pictures can be drawn with, in few shapes, as each is traced."""
    more = draw(st.booleans())
    prompts, batch_size = draw(st.lists(WORDS, min_size=1 + more, max_size=1 + more)), 1 + more
    height, width = (64, 64) if more else draw(st.sampled_from([(64, 64), (128, 80)]))
    arguments = {
        "prompt": prompts,
        "batch_size": batch_size,
        "height": height,
        "width": width,
        "seed": draw(st.integers(0, MAX_SEED - 3)),
        "guidance_scale": draw(st.sampled_from([3.0, -2.5, 2, [[4.0]]])),
        "guidance_rescale": draw(st.sampled_from([0.0, 0.7])),
        "deep_cache_interval": draw(st.sampled_from([1, 1, 2, 5])),
        **{
            name: draw(RIGHT[name]) for name in ("negative_prompt", "sampler", "rng", "long_prompts", "exact", "safety")
        },
    }
    if draw(st.booleans()):
        arguments["num_steps"] = draw(st.integers(1, 2))
    else:
        arguments["timesteps"] = draw(STEPS)[:2]
    if draw(st.booleans()):
        arguments |= {"image": draw(PICTURES), "resize": "stretch", "strength": draw(SHARES)}
        if draw(st.booleans()):
            arguments |= {"mask": draw(COVERS), "feather": draw(st.integers(0, 9))}
    return arguments


def generate(tiny, names=("",), **arguments):
    """Images that are what they must be, or None if the arguments were refused."""
    result = outcome(lambda: tiny.generate(**{"progress": False, **arguments}), names)
    if result is not None:
        request = result.request
        assert result.images.shape == (len(request), request.height, request.width, 3)
        assert result.images.dtype == np.uint8
        assert np.isfinite(result.latents).all()
        assert len(result.seeds) == len(request)
    return result


@given(arguments=drawable())
@drawing
def test_right_values_are_drawn(tiny, arguments):
    assert generate(tiny, **arguments) is not None


EMBEDS = arrays.arrays("float32", st.sampled_from([(1, 77, 128), (2, 77, 128), (1, 0, 128), (0, 77, 128), (1, 77, 64)]))
GIVEN = {
    "latents": arrays.arrays("float32", st.sampled_from([(1, 8, 8, 4), (2, 8, 8, 4), (8, 8, 4), (1, 8, 8, 0)])),
    "prompt_embeds": EMBEDS,
    "negative_prompt_embeds": EMBEDS,
    "callback": st.just(lambda step, num_steps, preview: False) | st.just(lambda *_: np.True_),
    "progress": st.just(False),
}


@pytest.mark.parametrize("name", ["any argument", *GIVEN])
@given(data=st.data())
@drawing
def test_any_value_makes_images_or_one_line(tiny, name, data):
    name = data.draw(st.sampled_from([*RIGHT])) if name == "any argument" else name
    # One image at a time: a number of images is not traced for each value that happens to be one.
    # What a function raises itself is passed on.
    wrong = JUNK.filter(lambda value: name != "callback" or not callable(value))
    value = data.draw(GIVEN[name] | wrong if name in GIVEN else wrong)
    arguments = {**base(name), "exact": True, name: value}
    if name == "prompt_embeds":
        del arguments["prompt"]
    generate(tiny, [name], **arguments)
