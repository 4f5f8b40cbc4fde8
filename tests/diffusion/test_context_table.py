"""Texts that change from step to step and texts that are joined: what rows read, against NumPy, and images by hand."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

import kerasdiff
from kerasdiff.diffusion.approximation import Approximation
from kerasdiff.diffusion.conditioning import Conditioning, Contexts, ContextTable
from kerasdiff.diffusion.denoise_step import DenoiseStage
from kerasdiff.diffusion.initial_state import InitialState
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.planning import plan
from kerasdiff.diffusion.text_embedding import TextEmbedding
from kerasdiff.models.config import ScheduleConfig
from kerasdiff.models.network_configs import UNetConfig
from kerasdiff.models.token_merging import token_merging
from kerasdiff.models.unet import UNet
from kerasdiff.prompts.schedule import PromptPart, Span
from kerasdiff.request import make_request
from kerasdiff.runtime.compiled import LayerNetwork
from kerasdiff.samplers import run_table, sampling_levels, sampling_table
from kerasdiff.samplers.batched import stack_tables

NUM_STEPS, SHAPE = 6, (2, 4, 4, 4)
RUN = {"num_steps": NUM_STEPS, "sampler": "euler", "spacing": "trailing", "seed": 3, "progress": False}
A1111 = {"prompt_syntax": "a1111", **RUN}
# A prompt, the texts that it joins with their weights, and what each reads in every step: a change after three steps is
# seen a step later, as the first step is number 0.
RING, STAR, HEART, CIRCLE = "a black ring", "a white star", "a red heart", "a red circle on a blue background"
PROMPTS = {
    f"{RING} AND {CIRCLE} :0.6": [(1.0, [RING] * 6), (0.6, [CIRCLE] * 6)],
    f"[{RING}:{STAR}:0.5]": [(1.0, [RING] * 4 + [STAR] * 2)],
    f"[{STAR}|{HEART}]": [(1.0, [STAR, STAR, HEART, STAR, HEART, STAR])],
    f"{CIRCLE} AND [{HEART}::2]:-0.5": [(1.0, [CIRCLE] * 6), (-0.5, [HEART] * 3 + [""] * 3)],
}
SCALES = [4.0, 5.0, 6.0, 1.0]


def part(*spans, weight=1.0):
    return PromptPart(weight, tuple(Span(*span) for span in spans))


def two_runs(sampler):
    """Tables of an image that does all six steps and of one that does the last four."""
    levels = sampling_levels(ScheduleConfig(), sampler, NUM_STEPS, spacing="trailing")
    tables = [sampling_table(levels.from_step(first), sampler, {}) for first in (0, 2)]
    return tables, stack_tables(tables, [0, 2])


def network(latents, timesteps, context, deep=None, branch=None):
    """A stand-in for the U-Net that depends on each input, one more channel of latents among them."""
    time = keras.ops.cast(timesteps, "float32")[:, None, None, None] / 1000
    fresh = keras.ops.mean(context, axis=(1, 2))[:, None, None, None] * (1 + latents[..., 4:])
    predicted = keras.ops.tanh(latents[..., :4]) * time + (fresh if deep is None else deep)
    return predicted if branch is None or deep is not None else (predicted, fresh)


@pytest.mark.parametrize(("sampler", "rescale", "interval"), [("euler", 0.0, 1), ("heun", 0.7, 1), ("heun", 0.0, 3)])
def test_joined_texts_that_change_are_the_table_run_by_numpy(sampler, rescale, interval):
    rng = np.random.default_rng(0)
    start, concat = rng.standard_normal(SHAPE, "float32"), rng.standard_normal((2, 4, 4, 1), "float32")
    contexts = {name: TextEmbedding(rng.standard_normal((5, 6)).astype("float32")) for name in "nabc"}
    unconditional = [part((2, "n"), (6, "c")), part((6, "n"))]
    joined = [[part((3, "a"), (6, "b")), part((6, "c"))], [part((1, "a"), (6, "c")), part((6, "b"))]]
    weights = np.array([[0.7, 1.0], [-0.4, 0.0]], "float32")
    guidance = np.linspace([3.0, 5.0], [6.0, 2.0], NUM_STEPS).astype("float32")
    guidance[2] = 1  # the unconditional text has a say all the same
    tables, run = two_runs(sampler)

    def by_hand(image):
        rows, waits, kept = iter(range(len(tables[image]))), len(run) - len(tables[image]), {}

        def model(x, timestep):
            row = next(rows)
            step = tables[image].steps[row]

            def predicted(of):
                if row == 0 or (waits + row) % interval == 0:
                    kept[id(of)] = contexts[of[image].at(step)].context.astype("float64").mean() * (1 + concat[image])
                return np.tanh(x) * timestep / 1000 + kept[id(of)]

            without = predicted(unconditional)
            directions = [predicted(texts) - without for texts in joined]
            conditional = without + sum(weights[:, image][:, None, None, None] * np.array(directions))
            scale = guidance[step + (2 if image else 0), image].astype("float64")
            guided = without + scale * (conditional - without)
            return guided * (1 + rescale * (conditional.std() / guided.std() - 1))

        return run_table(tables[image], model, start[image])[-1]

    denoise = DenoiseStage(LayerNetwork(network), jit_compile=False)
    conditioning = Conditioning(ContextTable(contexts, [unconditional, *joined], weights), concat)
    scaled = InitialState((start * run.initial_scales[:, None, None, None]).astype("float32"))
    *_, last = denoise(scaled, conditioning, guidance, run, None, rescale, 1, Approximation(interval))
    assert denoise.traces == (1 if interval == 1 else 2)
    for image in range(2):
        expected = by_hand(image)
        assert np.abs(np.asarray(last.x)[image] - expected).max() < 1e-5 * np.abs(expected).max()


class Counting:
    """Stands for a backend, and counts the tensors that it makes."""

    def __init__(self):
        self.made = 0

    def tensor(self, values):
        self.made += 1
        return values


def test_rows_share_a_tensor_until_another_text_is_read():
    _, run = two_runs("heun")
    contexts = {name: TextEmbedding(np.full((5, 6), value, "float32")) for value, name in enumerate("nab")}
    same, changes = [part((6, "n"))] * 2, [part((6, "a")), part((1, "a"), (6, "b"))]
    backend = Counting()
    made = Contexts(ContextTable(contexts, [same, same]), run, backend)
    assert len({id(made.tensors(row, guided)) for row in range(len(run)) for guided in (True, False)}) == 2
    assert backend.made == 2
    made = Contexts(ContextTable(contexts, [same, changes]), run, backend)
    rows = [made.tensors(row, True) for row in range(len(run))]
    # The second image waits for two steps and sees what it begins with; its third step is the run's fifth.
    changed = [row for row in range(1, len(run)) if rows[row] is not rows[row - 1]]
    assert [run.steps[row].tolist() for row in changed] == [[4, 4]]
    assert rows[0].text[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert rows[-1].text[:, 0, 0].tolist() == [0, 0, 1, 2]
    assert made.tensors(0, False).text[:, 0, 0].tolist() == [1, 1]


SMALL = UNetConfig(widths=(32, 64), attention=(True, False), num_heads=(4, 4), context_width=16)


def test_one_latent_meets_any_number_of_texts():
    """Each has rows of its own in the deep features and in what tokens are merged, too."""
    unet, rng = UNet(SMALL), np.random.default_rng(1)
    unet.build()
    latents, context = rng.standard_normal((2, 8, 8, 4), "float32"), rng.standard_normal((6, 7, 16), "float32")
    times, order = np.array([900.0, 10.0], "float32"), np.tile(rng.permutation(64).astype("float32"), (2, 1))
    with token_merging(0.3, order):
        predicted, deep = unet(latents, times, context, branch=1)
        shallow = unet(latents[::-1], times, context, deep=deep, branch=1)
        for text in (0, 2):
            rows = slice(2 * text, 2 * text + 2)
            alone, features = unet(latents, times, context[rows], branch=1)
            assert np.allclose(predicted[rows], alone, atol=1e-5)
            assert np.allclose(deep[rows], features, atol=1e-5)
            alone = unet(latents[::-1], times, context[rows], deep=features, branch=1)
            assert np.allclose(shallow[rows], alone, atol=1e-5)


def by_hand(tiny):
    """All images from the public stages and a loop of Euler's method in NumPy."""
    levels = sampling_levels(tiny.config.schedule, "euler", NUM_STEPS, spacing="trailing")
    known = {text: tiny.encode_text([text]) for text in (RING, STAR, HEART, CIRCLE, "")}
    images = tiny.initial_latents(len(PROMPTS), seed=RUN["seed"]).astype("float64") * levels.initial_scale
    for step, (sigma, following) in enumerate(itertools.pairwise(levels.sigmas)):
        read = [[STAR, *(versions[step] for _, versions in texts)] for texts in PROMPTS.values()]
        counts = [*map(len, read)]
        predicted = tiny.networks["unet"](
            np.repeat(images * levels.unit(sigma), counts, axis=0).astype("float32"),
            np.full(sum(counts), levels.timestep(sigma), "float32"),
            np.concatenate([known[text] for text in itertools.chain(*read)]),
        )
        skip, out = levels.denoised(sigma)
        each = zip(np.split(np.asarray(predicted, "float64"), np.cumsum(counts)[:-1]), PROMPTS.values(), strict=True)
        for place, ((without, *joined), texts) in enumerate(each):
            directions = [weight * (one - without) for (weight, _), one in zip(texts, joined, strict=True)]
            denoised = skip * images[place] + out * (without + SCALES[place] * sum(directions))
            images[place] += (following - sigma) * (images[place] - denoised) / sigma
    return tiny.decode(images.astype("float32"))


@pytest.fixture(scope="module")
def drawn(tiny):
    """All prompts in one batch, the last one without guidance, and what was encoded for that."""
    encoded, encode = [], tiny._pipeline.conditioner.encode
    tiny._pipeline.conditioner.encode = lambda *value: encoded.append(value) or encode(*value)
    try:
        result = tiny.generate([*PROMPTS], negative_prompt=STAR, guidance_scale=SCALES, **A1111)
    finally:
        del tiny._pipeline.conditioner.encode
    return result, encoded


def test_images_are_those_made_by_hand(tiny, drawn):
    """Without guidance joined texts lead away from the negative one, too."""
    assert np.abs(drawn[0].images.astype(int) - by_hand(tiny)).max() <= 1


def test_equal_texts_are_encoded_once(drawn):
    assert len(drawn[1]) == len(set(drawn[1])) == len({RING, STAR, HEART, CIRCLE, ""})


def test_a_new_number_of_texts_compiles_once_and_a_new_text_never(tiny, drawn, openvino):
    before = tiny.traces, tiny.programs
    tiny.generate([*list(PROMPTS)[2:], f"{HEART} AND a cross:0.3", "a cross"], **A1111)
    assert (tiny.traces, tiny.programs) == before
    counts = []
    for prompt in (f"{RING} AND {STAR}", f"{HEART} AND [{STAR}|{RING}]:0.3"):
        openvino.generate(prompt, 2, **A1111)
        counts.append((openvino.traces, openvino.programs))
    assert counts[0] == counts[1]


def test_a_batch_has_as_many_rows_as_its_own_images_need(tiny):
    prompts = [RING, f"{RING} AND {STAR} AND {HEART}", f"{RING}:0.5"]
    request = make_request(tiny.config, prompts, prompt_syntax="a1111", guidance_scale=1)
    texts = tiny._pipeline.conditioner.texts(request, Overrides())
    assert texts.joined(request) == 3
    for rows, joined in (([0], 0), ([1], 3), ([2], 1), ([0, 2], 1)):
        part = request.only(rows)
        assert texts.joined(part) == joined
        assert len(texts.table(rows, part.guided).parts) == (1 + joined if joined else 1)


def test_rows_of_joined_texts_count_in_what_a_batch_takes(tiny, drawn):
    """And those of texts that were drawn are known to be ready."""

    def planned(number, **size):
        texts = " AND ".join([RING, STAR, HEART][:number])
        request = make_request(tiny.config, texts, batch_size=4, prompt_syntax="a1111", **size)
        found = plan(tiny._pipeline, request)
        return found.memory["U-Net"], found.programs["U-Net 4"]

    assert [planned(number)[1] for number in (2, 3)] == ["ready", "new"]
    one, two, three = (planned(number, height=80, width=176)[0] for number in (1, 2, 3))
    assert three - two == two - one > 0


def read(tiny, prompt, embeddings=None, **arguments):
    """What the rows of an image read in its first step: its negative prompt first."""
    overrides = Overrides(prompt_embeds=embeddings)
    table = tiny._pipeline.conditioner.texts(make_request(tiny.config, prompt, **arguments), overrides).table([0], True)
    return [table.contexts[key].context for key in table.read([0], True)]


def test_what_is_shorter_is_followed_by_empty_chunks(tiny):
    ring, star, heart, empty = tiny.encode_text([RING, STAR, HEART, ""])
    rows = read(tiny, f"{RING} BREAK {STAR} AND {HEART}", negative_prompt=STAR, prompt_syntax="a1111")
    assert np.array_equal(rows, [np.concatenate(pair) for pair in ((star, empty), (ring, star), (heart, empty))])
    rows = read(tiny, RING, negative_prompt=f'("{STAR}", "{HEART}").and()', prompt_syntax="compel")
    assert np.array_equal(rows, [np.concatenate(pair) for pair in ((star, heart), (ring, empty))])


def test_a_negative_prompt_is_read_with_all_layers_where_diffusers_does_so(tiny):
    ring, star = tiny.encode_text([RING, STAR], clip_skip=1)
    for syntax, negative in (("plain", tiny.encode_text([STAR])[0]), ("a1111", star), ("compel", star)):
        rows = read(tiny, RING, negative_prompt=STAR, prompt_syntax=syntax, clip_skip=1)
        assert np.array_equal(rows, [negative, ring])
    with pytest.raises(kerasdiff.RequestError, match="clip_skip=9 is out of range"):
        tiny.encode_text([RING], clip_skip=9)


def test_embeddings_are_not_parsed(tiny):
    context, star = tiny.encode_text([f"{RING} AND {HEART}"]), tiny.encode_text([STAR])
    rows = read(tiny, "", context, negative_prompt=STAR, prompt_syntax="a1111")
    assert np.array_equal(rows, np.concatenate([star, context]))
