"""The denoising stage: one compiled step that every sampler goes through."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from kerasdiff.diffusion.approximation import Approximation
from kerasdiff.diffusion.conditioning import Conditioning, Contexts, TextInputs
from kerasdiff.diffusion.initial_state import InitialState
from kerasdiff.diffusion.stage import Expected, Stage
from kerasdiff.models.blocks import cross_attentions
from kerasdiff.runtime import backend
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.samplers.batched import BatchTable
from kerasdiff.samplers.noise import Noise
from kerasdiff.samplers.update import MEMORIES, TERMS

if TYPE_CHECKING:
    from kerasdiff.models.network_configs import UNetConfig

EXACT = Approximation()


class State(NamedTuple):
    """Where a run is after a row, both float32 (B, h, w, C) on the device."""

    x: Any  # x0 + sigma * noise
    denoised: Any  # what the U-Net took for x0


@dataclasses.dataclass(frozen=True)
class ControlShapes:
    """Shapes of what steers a step, without rows; `image_tokens` has those of all attentions for each adapter."""

    residuals: tuple[tuple[int, ...], ...] = ()
    features: tuple[tuple[int, ...], ...] = ()
    image_tokens: tuple[tuple[int, ...], ...] = ()
    adapters: int = 0

    def __add__(self, other: ControlShapes) -> ControlShapes:
        names = [field.name for field in dataclasses.fields(self)]
        return ControlShapes(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @classmethod
    def of(cls, inputs: StepInputs) -> ControlShapes:
        """Those of a step's inputs, which are shapes."""
        names = {"residuals": "residuals", "features": "features", "image_tokens": "image_keys"}
        each = {field: tuple(shape[1:] for shape in getattr(inputs, name) or ()) for field, name in names.items()}
        return cls(**each, adapters=0 if inputs.image_scales is None else inputs.image_scales[0])


class StepInputs(NamedTuple):
    """Everything that the compiled step reads, as arrays, or as shapes of arrays; None is no input."""

    x: Any  # (B, h, w, C)
    memories: Any  # (4, B, h, w, C), what the sampler remembers
    text: Any  # embeddings (B, T, width); with guidance ((1 + k) B, T, width), the unconditional ones first
    preconditioning: Any  # (B, 4): scale of what the U-Net sees, timestep, and the weights of x and of what it gives
    update: Any  # (B, 5, 7), the row of the sampler's table
    noise: Any  # as x
    concat: Any = None  # as in `Conditioning`, with the rows of x or of `text`
    guidance: Any = None  # (2, B): the weight of guidance, and how far it is rescaled
    guidance_embedding: Any = None  # (B, width): the weight of guidance, for a U-Net that takes it as an input
    text_weights: Any = None  # (k, B): of texts that are joined; else k is 1
    deep: Any = None  # deep features of an earlier row, with the rows of `text`; only the shallow part is computed then
    token_order: Any = None  # (B, tokens): where tokens are merged, those that others may be merged into first
    pooled: Any = None  # (rows, P): with the rows of `text`, what is made of each text as a whole
    time_ids: Any = None  # (rows, n): the same of sizes and the like
    # Tuples: what ControlNets add to the skip connections and the middle, (rows, h, w, C) each; what T2I-Adapters add
    # on the way down, (B, h, w, C); and of each adapter that reads pictures the keys, and the values, of each attention
    # to the text, (rows, tokens, width).
    residuals: Any = None
    features: Any = None
    image_keys: Any = None
    image_values: Any = None
    image_scales: Any = None  # (adapters, rows): how much of these counts

    @classmethod
    def shapes(
        cls,
        shape: tuple[int, ...],
        tokens: int,
        width: int,
        guided: bool,
        concat_channels: int = 0,
        merging: tuple[int, int] | None = None,
        joined: int = 0,
        embedding: int | None = None,
        pooled: tuple[int, int] | None = None,
        control: ControlShapes | None = None,
        concat_per_text: bool = False,
    ) -> StepInputs:
        """The shapes for latents of a shape (B, h, w, C), and `merging` height x width tokens, in a full row.

        `joined` is the number of texts with weights; 0 is one text without. `embedding` is the width of guidance's,
        `pooled` that of a pooled embedding, and the number of what is beside it in `time_ids`. `concat_per_text` says
        that each text has its own channels behind x.
        """
        control = control or ControlShapes()
        batch, guided = shape[0], guided or joined > 0
        rows = (1 + max(joined, guided)) * batch
        return cls(
            x=shape,
            memories=(MEMORIES, *shape),
            text=(rows, tokens, width),
            preconditioning=(batch, 4),
            update=(batch, 1 + MEMORIES, TERMS),
            noise=shape,
            concat=(rows if concat_per_text else batch, *shape[1:-1], concat_channels) if concat_channels else None,
            guidance=(2, batch) if guided else None,
            guidance_embedding=(batch, embedding) if embedding else None,
            text_weights=(joined, batch) if joined else None,
            token_order=(batch, merging[0] * merging[1]) if merging else None,
            pooled=(rows, pooled[0]) if pooled else None,
            time_ids=(rows, pooled[1]) if pooled else None,
            residuals=tuple((rows, *shape) for shape in control.residuals) or None,
            features=tuple((batch, *shape) for shape in control.features) or None,
            image_keys=tuple((rows, *shape) for shape in control.image_tokens) or None,
            image_values=tuple((rows, *shape) for shape in control.image_tokens) or None,
            image_scales=(control.adapters, rows) if control.adapters else None,
        )

    @classmethod
    def of(cls, names: Sequence[str], tensors: Sequence[Any]) -> StepInputs:
        """The inverse of `present` and `arguments`."""
        found: dict[str, Any] = dict.fromkeys(cls._fields)
        for name, tensor in zip(names, tensors, strict=True):
            found[name] = (*(found[name] or ()), tensor) if name in _TUPLES else tensor
        return cls(**found)

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the fields that are not None, in the order of the step's arguments: a tuple's as often as it has."""
        return tuple(name for name, value in self._each())

    @property
    def arguments(self) -> tuple[Any, ...]:
        return tuple(value for name, value in self._each())

    @property
    def concat_per_text(self) -> bool:
        """Whether what is behind x differs from text to text; `concat` and `x` may be shapes."""
        return self.concat is not None and _rows(self.concat) > _rows(self.x)

    @property
    def steering(self) -> tuple[Any, ...]:
        """All of what networks that steer the step give."""
        return tuple(value for name, value in self._each() if name in _TUPLES)

    def _each(self) -> Iterator[tuple[str, Any]]:
        for name, value in zip(self._fields, self, strict=True):
            if value is not None:
                yield from ((name, one) for one in (value if name in _TUPLES else (value,)))


def _rows(value: Any) -> int:
    """Those of an array, or of a shape."""
    return value[0] if isinstance(value, tuple) else value.shape[0]


# Fields of `StepInputs` that are tuples, and those that stay the same from row to row, mostly: what depends on them and
# on weights alone is computed once.
_TUPLES = ("residuals", "features", "image_keys", "image_values")
_LASTING = (*TextInputs._fields, *_TUPLES[1:])


class ControlWork(Protocol):
    """What a network does that steers steps."""

    def step_bytes(self, unet: UNetConfig, h: int, w: int, rows: int, itemsize: int, slices: int) -> int:
        """What it takes besides weights, as `kerasdiff.models.footprint.unet_bytes` has it."""


class StepControls(Protocol):
    """What steers the steps of a run."""

    def inputs(self, row: int, given: StepInputs) -> StepInputs:
        """The inputs of a row, `given` without it, with what networks that steer it make of them."""


@dataclasses.dataclass(frozen=True)
class Step:
    """The function that is traced: the U-Net, guidance, and a row of the sampler's table."""

    inputs: tuple[str, ...]
    slices: int
    branch: int | None = None  # where deep features are kept, or used
    merging_ratio: float = 0.0
    tile: str | None = None  # along which axes convolutions wrap

    def __call__(self, unet: Any, *tensors: Any) -> tuple[Any, ...]:
        """The next x and memories, the denoised x, and deep features if they are to be kept."""
        from keras import ops

        from kerasdiff.models.image_attention import image_prompts
        from kerasdiff.models.layers import attention_slices, wrapping
        from kerasdiff.models.token_merging import token_merging

        given = StepInputs.of(self.inputs, tensors)
        guided, texts = given.guidance is not None, 1
        if given.text_weights is not None:
            texts = given.text_weights.shape[0]
        scale, timesteps, skip, out = (given.preconditioning[:, index] for index in range(4))
        seen = _each(scale) * given.x
        shares = getattr(unet, "shares_latents", False) and not given.concat_per_text
        if given.concat is not None and not given.concat_per_text:
            seen = ops.concatenate([seen, given.concat], axis=-1)
        if guided and not shares:
            seen, timesteps = (ops.concatenate([each] * (1 + texts), axis=0) for each in (seen, timesteps))
        if given.concat_per_text:
            seen = ops.concatenate([seen, given.concat], axis=-1)
        more: dict[str, Any] = {} if self.branch is None else {"deep": given.deep, "branch": self.branch}
        if given.pooled is not None:
            more |= {"pooled": given.pooled, "time_ids": given.time_ids}
        if given.guidance_embedding is not None:
            more["guidance"] = given.guidance_embedding
        more |= {name: getattr(given, name) for name in ("residuals", "features") if getattr(given, name)}
        merging, pictures = token_merging(self.merging_ratio, given.token_order), image_prompts(_tokens(unet, given))
        with attention_slices(self.slices), merging, wrapping(self.tile), pictures:
            predicted, *kept = _as_tuple(unet(seen, timesteps, given.text, **more))
        predicted = ops.cast(predicted, "float32")
        if guided:
            without, conditional, *others = ops.split(predicted, 1 + texts, axis=0)
            if given.text_weights is not None:
                # Liu et al. 2022, arXiv:2206.01714: one direction for all of them, away from the unconditional one.
                each = enumerate([conditional, *others])
                conditional = without + sum(_each(given.text_weights[index]) * (one - without) for index, one in each)
            predicted = _guide(without, conditional, _each(given.guidance[0]), _each(given.guidance[1]))
        denoised = _each(skip) * given.x + _each(out) * predicted
        terms = [given.x, *(given.memories[index] for index in range(MEMORIES)), denoised, given.noise]
        following = backend.weighted_sums(given.update, terms)
        return following[0], ops.stack(following[1:]), denoised, *(ops.cast(features, "float32") for features in kept)


class DenoiseStage(Stage):
    """The U-Net inside a sampler's row, compiled once for each batch size and picture size.

    With guidance both halves of the batch, unconditional first, go through the U-Net in one call; without it, or in a
    row where its weight is 1, only the conditional half exists. Of k texts that are joined each has rows of its own,
    1 + k times the batch, in every row of the table.
    """

    name = "U-Net"

    @property
    def traces(self) -> int:
        """How often the step was traced so far."""
        return sum(compiled.traces for compiled in self.compiled)

    def expected(
        self, shapes: StepInputs, slices: int = 1, approximation: Approximation = EXACT, tile: str | None = None
    ) -> Expected:
        """The program for inputs of these shapes."""
        shapes_of_all = tuple((*shape, "float32") for shape in shapes.arguments)
        return Expected(self._step(shapes, slices, approximation, tile), shapes_of_all)

    def __call__(
        self,
        start: InitialState,
        conditioning: Conditioning,
        guidance: np.ndarray | None,
        run: BatchTable,
        noise: Noise,
        guidance_rescale: float = 0.0,
        slices: int = 1,
        approximation: Approximation = EXACT,
        embedding: int | None = None,
        tile: str | None = None,
        controls: StepControls | None = None,
    ) -> Iterator[State]:
        """Carries out a run and yields the state after each row; `slices` are of attention, `tile` as in a request.

        `guidance`, float32 (num_steps, B), has the weight of each step and image, and comes with an unconditional text
        in `conditioning`, unless the U-Net takes it as an input, as an embedding that is `embedding` wide.
        `guidance_rescale` is the share of the guided prediction that is scaled back to the deviation of the conditional
        one (Lin et al. 2023, arXiv:2305.08891, section 3.4).
        """
        x, batch, tensor = start.x, len(start.x), self._network.backend.tensor
        memories = np.zeros((MEMORIES, *x.shape), "float32")
        none = tensor(np.zeros_like(x))
        contexts = Contexts(conditioning.text, run, self._network.backend)
        text_weights = _text_weights(conditioning.text.weights, run.steps)
        concat = None if conditioning.concat is None else tensor(conditioning.concat)
        rescale = np.full(batch, guidance_rescale, "float32")
        deep: Any = None
        weights = np.ones(run.steps.shape, "float32") if guidance is None else _weights(guidance, run.steps)
        full = approximation.full_rows(run)
        always = conditioning.text.weights is not None
        halves = np.any(weights != 1, axis=1) if embedding is None else np.zeros(len(run), bool)
        guided = approximation.guided_rows(halves | always, full)
        for row, (preconditioning, update) in enumerate(zip(run.inputs, run.updates, strict=True)):
            fresh = noise.fresh(run.draws[row]) if np.any(run.draws[row] >= 0) else none
            order = approximation.token_order(noise, run, row, x.shape)
            read = contexts.tensors(row, guided[row])
            inputs = StepInputs(x, memories, read.text, preconditioning, update, fresh, concat, token_order=order)
            inputs = inputs._replace(pooled=read.pooled, time_ids=read.time_ids)
            if embedding is not None:
                inputs = inputs._replace(guidance_embedding=guidance_embedding(weights[row], embedding))
            if guided[row]:
                inputs = inputs._replace(guidance=np.stack([weights[row], rescale]), text_weights=text_weights[row])
            if not full[row]:
                # Without guidance of both halves' features only the conditional ones.
                inputs = inputs._replace(deep=deep if len(deep) == len(inputs.text) else deep[batch:])
            if controls is not None:
                inputs = controls.inputs(row, inputs)
            x, memories, denoised, *kept = self._step(inputs, slices, approximation, tile)(*inputs.arguments)
            deep = kept[0] if kept else deep
            if start.known is not None and (row + 1 < len(run) or run.ends_early):
                x = start.known.blend(x, run.levels[row])
            yield State(x, denoised)

    def _step(self, inputs: StepInputs, slices: int, approximation: Approximation, tile: str | None) -> Compiled:
        present, branch, ratio = inputs.present, None, approximation.merging_ratio
        kind = "joined" if "text_weights" in present else "guided" if "guidance" in present else "plain"
        name = f"{kind} {slices}"
        if approximation.reuses:
            branch = approximation.branch
            name += f" {'full' if inputs.deep is None else 'shallow'} {branch}"
        if ratio:
            name += f" merged {ratio}"
        if tile:
            name += f" tile {tile}"
        name += "".join(f" with {field}" for field in (*_TUPLES[:2], "image_scales") if field in present)
        lasting = [place for place, field in enumerate(present) if field in _LASTING]
        return self.function(name, Step(present, slices, branch, ratio, tile), lasting)


def _tokens(unet: Any, given: StepInputs) -> dict[str, list[tuple[Any, Any, Any]]]:
    """Keys, values and scales of pictures for each attention of a U-Net, of one adapter after another."""
    if given.image_scales is None:
        return {}
    places = [*cross_attentions(unet.config)]
    tokens: dict[str, list[tuple[Any, Any, Any]]] = {place: [] for place in places}
    for number, pair in enumerate(zip(given.image_keys, given.image_values, strict=True)):
        tokens[places[number % len(places)]].append((*pair, given.image_scales[number // len(places)]))
    return tokens


def _weights(guidance: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The weight of guidance of each image in each row, float32 (rows, B); 1 for those that wait."""
    images = np.arange(steps.shape[1])
    return np.where(steps >= 0, guidance[steps, images], np.float32(1))


def _text_weights(weights: np.ndarray | None, steps: np.ndarray) -> Sequence[np.ndarray | None]:
    """The weights of texts in each row, (k, B): the same, or those of each image's own step, (num_steps, k, B)."""
    if weights is None or weights.ndim == 2:
        return [weights] * len(steps)
    return [*np.moveaxis(weights[steps, :, np.arange(steps.shape[1])], -1, 1).copy()]


def guidance_embedding(weights: np.ndarray, width: int) -> np.ndarray:
    """Sinusoids of 1000 (w - 1) for weights of guidance (B,) -> float32 (B, width), sines first.

    As latent consistency models were distilled with them (Luo et al. 2023, arXiv:2310.04378, section 4.3). Phases are
    large, and each operation is rounded to float32 as it was then.
    """
    half = width // 2
    distance = np.float32(math.log(10_000)) / np.float32(half - 1)
    frequencies = np.exp((np.arange(half, dtype="float32") * -distance).astype("float64")).astype("float32")
    phases = ((weights.astype("float32") - 1) * np.float32(1000))[:, None] * frequencies
    return np.pad(np.concatenate([np.sin(phases), np.cos(phases)], axis=1), ((0, 0), (0, width % 2)))


def _as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def _each(values):
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _guide(without, conditional, scale, rescale):
    from keras import ops

    guided = without + scale * (conditional - without)
    axes = (1, 2, 3)
    deviation = ops.maximum(ops.std(guided, axis=axes, keepdims=True), 1e-12)
    ratio = ops.std(conditional, axis=axes, keepdims=True) / deviation
    return guided * (1 + rescale * (ratio - 1))
