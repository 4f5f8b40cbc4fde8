"""A request through all stages, as many images at a time as fit into memory."""

from __future__ import annotations

import functools
import gc
import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm.auto import tqdm

from kerasdiff import validation
from kerasdiff.diffusion.conditioning import Context
from kerasdiff.diffusion.initial_state import Encoder
from kerasdiff.diffusion.memory_model import MemoryModel
from kerasdiff.diffusion.overrides import GivenArrays
from kerasdiff.diffusion.safety_stage import CheckSafety
from kerasdiff.diffusion.sampling_loop import Callback, Drawing, Drawn
from kerasdiff.diffusion.stages import Stages
from kerasdiff.diffusion.vae_stage import Decoded
from kerasdiff.errors import OutOfMemoryError, RequestError
from kerasdiff.images.masks import paste_back
from kerasdiff.plan import Plan
from kerasdiff.request import Request
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import BatchSizer, MicroBatch, StageCost, padded
from kerasdiff.runtime.oom import first_line, is_out_of_memory

_LOG = logging.getLogger("kerasdiff")
T = TypeVar("T")
# How often what is free a single image may be expected to need: expectations are rough.
_HOPELESS = 4


class Block(NamedTuple):
    """Images that were drawn together.

    Attributes:
        places: which of the request's they are.
        drawn: their latents.
    """

    places: tuple[int, ...]
    drawn: Drawn


class Finished(NamedTuple):
    """One image.

    Attributes:
        place: which of the request's it is.
        image: uint8 (height, width, 3).
        latents: float32 (h, w, C).
        nsfw: whether the safety filter flagged it; None if it did not run.
        stopped_after: the step after which a callback stopped its run, or None.
    """

    place: int
    image: np.ndarray
    latents: np.ndarray
    nsfw: bool | None
    stopped_after: int | None


class _Failure(NamedTuple):
    """Memory ran out; what was said of it."""

    text: str


class Pipeline:
    """Carries out requests.

    Args:
        name: of the model, for messages and the progress bar.
        stages: of the model.
        drawing: of the model.
        works: what each stage takes.
        limits: what fits.
        make_room: frees what other models of this process hold; whether that was anything.
    """

    def __init__(
        self,
        name: str,
        stages: Stages,
        drawing: Drawing,
        works: MemoryModel,
        limits: BatchSizer,
        make_room: Callable[[], bool],
    ) -> None:
        self._name, self._stages, self._drawing = name, stages, drawing
        self._works, self._limits, self._make_room = works, limits, make_room

    def images(
        self, request: Request, given: GivenArrays, progress: bool = False, callback: Callback | None = None
    ) -> Iterator[Finished]:
        """The images of a request in its order, each as soon as it is finished.

        Args:
            request: for this model.
            given: arrays instead of prompts and seeds.
            progress: whether to show a progress bar on stderr.
            callback: as in `kerasdiff.Generator.generate`.

        Raises:
            RequestError: an array has the wrong shape.
            NonFiniteError: a stage gives numbers that are not finite.
            OutOfMemoryError: one image does not fit, in no way.
        """
        self._drawing.check(request)
        check_safety = None if request.safety == "off" else self._stages.check_safety
        if check_safety is not None:
            check_safety.load()
        self._stages.networks.follow()
        context = self.context(request, (given.prompt_embeds, given.negative_prompt_embeds))
        for block in self.blocks(request, given.latents, context, progress, callback):
            for place, latents, seen in zip(block.places, block.drawn.latents, block.drawn.seen, strict=True):
                image = _pasted(request, place, self.decode(seen))
                nsfw = None
                if check_safety is not None:
                    nsfw = self._fitting(self._works.safety(), functools.partial(_flagged, check_safety, image))
                    if nsfw and request.safety == "on":
                        image = np.zeros_like(image)
                yield Finished(place, image, latents, nsfw, block.drawn.stopped_after)

    def context(self, request: Request, given: tuple[Any, Any], **names: tuple[str, str]) -> Context:
        """The texts of a request, as `Context` takes them; each is encoded by itself."""
        return Context(self._stages.text.now, request, given, self.encode_text, **names)

    def blocks(
        self,
        request: Request,
        latents: Any,
        context: Context,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> Iterator[Block]:
        """The latents of a request in its order, by images that were drawn together.

        Args:
            request: for this model.
            latents: unit-variance noise (N, h, w, C) instead of the seeds', or None.
            context: of all images.
            progress: whether to show a progress bar on stderr.
            callback: as in `kerasdiff.Generator.generate`.
        """
        validation.boolean("progress", progress)
        if callback is not None and not callable(callback):
            raise RequestError(f"callback must be a function, not {validation.kind(callback)}")
        noise = None if latents is None else self._drawing.checked(request, latents)
        self._refuse_hopeless(request, context.tokens)
        work = self._denoising(request, context.tokens)
        encode = _once_each(self.encode)
        done, split = 0, request.exact
        with tqdm(disable=not progress, desc=self._name, unit="step") as bar:
            while done < len(request):
                left = len(request) - done
                portion = self._portion(work, request, left)
                if not split and portion.images < min(left, work.most):
                    split = True
                    _LOG.warning(
                        "%d images of %d x %d are drawn %d at a time: more may not fit into memory (%.1f GB are free)",
                        len(request),
                        request.width,
                        request.height,
                        portion.images,
                        memory.free() / 1e9,
                    )

                def draw(portion: MicroBatch, done: int = done, left: int = left) -> Block:
                    places = tuple(range(done, done + min(portion.images, left)))
                    rows = [*places, *[places[-1]] * (portion.images - len(places))]
                    some = request.only(rows)
                    bar.total = bar.n + math.ceil(left / portion.images) * len(self._drawing.schedule(some))
                    drawn = self._stages.denoise.run(
                        lambda denoise: self._drawing(
                            some,
                            None if noise is None else noise[rows],
                            context.rows(rows, some.guided),
                            denoise,
                            encode,
                            slices=portion.parts,
                            each_row=bar.update,
                            callback=_cut(callback, len(places)),
                        ),
                        lambda drawn: bool(np.isfinite(drawn.latents).all() and np.isfinite(drawn.seen).all()),
                    )
                    kept = slice(len(places))
                    return Block(places, Drawn(drawn.latents[kept], drawn.seen[kept], drawn.stopped_after))

                block = self._fitting(work, draw, portion)
                split = split or len(block.places) < min(left, portion.images)
                yield block
                if block.drawn.stopped_after is not None:
                    return
                done += len(block.places)

    def plan(self, request: Request) -> Plan:
        """How a request without pictures would be drawn now."""
        tokens = self.context(request, (None, None)).tokens
        work, portions, left = self._denoising(request, tokens), [], len(request)
        while left > 0:
            portions.append(self._portion(work, request, left))
            left -= portions[-1].images
        shape = self._drawing.shape(request)
        decoding = self._works.decode(*shape[:2])
        tiles = self._limits.portion(decoding)
        programs = {"text encoder": self._stages.text.now.state()}
        for portion in dict.fromkeys(portions):
            programs[f"U-Net {portion.images}"] = self._state(request, tokens, portion)
        programs["decoder"] = self._stages.decode.now.state(shape, tiles.parts)
        return Plan(
            len(request),
            request.height,
            request.width,
            tuple(portion.images for portion in portions),
            portions[0].parts,
            tiles.parts,
            {
                "weights": self._stages.weight_bytes,
                "U-Net": work.need(portions[0]),
                "decoder": decoding.need(tiles),
                "images": len(request) * request.height * request.width * 3,
            },
            memory.free(),
            programs,
        )

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (h, w, C) to an image uint8 (8h, 8w, 3), in tiles if memory asks for it."""

        def decode(portion: MicroBatch) -> Decoded:
            return self._stages.decode.run(lambda stage: stage(latents, portion.parts), lambda one: one.finite)

        return self._fitting(self._works.decode(*latents.shape[:2]), decode).image

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures in -1 to 1 (K, height, width, 3) to the means of their latents, float32 (K, h, w, C)."""

        def encode(picture: np.ndarray) -> np.ndarray:
            return self._fitting(
                self._works.encode(*picture.shape[:2]),
                lambda portion: self._stages.encode.run(
                    lambda stage: stage(picture[None], portion.parts), lambda means: bool(np.isfinite(means).all())
                ),
            )

        return np.concatenate([encode(picture) for picture in pictures])

    def encode_text(self, text: str, chunks: int = 1) -> np.ndarray:
        """The context of a text, float32 (1, chunks * length, width)."""
        return self._fitting(
            self._works.text(),
            lambda _: self._stages.text.run(
                lambda stage: stage([text], chunks), lambda context: bool(np.isfinite(context).all())
            ),
        )

    def _denoising(self, request: Request, tokens: int) -> StageCost:
        """The steps of a request, as `BatchSizer` takes them."""
        first = self._stages.first_run_bytes("unet")
        return self._works.denoise(
            request, tokens, lambda portion: 0 if self._state(request, tokens, portion) == "ready" else first
        )

    def _state(self, request: Request, tokens: int, portion: MicroBatch) -> str:
        """Of a portion's program: "ready", "kept" or "new"."""
        shape = (portion.images, *self._drawing.shape(request))
        text, channels = (tokens, self._works.context_width), self._drawing.condition_channels
        return self._stages.denoise.now.state(shape, text, request.guided, channels, portion.parts)

    def _refuse_hopeless(self, request: Request, tokens: int) -> None:
        """OutOfMemoryError, before anything is made, for images that are far too large for this machine."""
        h, w, _ = self._drawing.shape(request)
        for work in (self._denoising(request, tokens), self._works.decode(h, w)):
            need, free = work.need(MicroBatch(1, work.most_parts)), memory.free()
            if need > _HOPELESS * free:
                raise OutOfMemoryError(
                    f"the {work.stage} takes about {need / 1e9:.1f} GB for one image of {request.width} x "
                    f"{request.height}, even in {work.most_parts} parts, and {free / 1e9:.1f} GB are free; draw "
                    "smaller images"
                )

    def _portion(self, work: StageCost, request: Request, left: int) -> MicroBatch:
        """How many images to draw next, and how many places there are for them."""
        fits = self._limits.portion(work)
        if request.exact:
            return MicroBatch(1, fits.parts)
        if left <= fits.images:
            # The rest of a split is filled up, so that not every number of images is a program of its own.
            return MicroBatch(left if left == len(request) else padded(left, fits.images), fits.parts)
        return fits

    def _fitting(self, work: StageCost, attempt: Callable[[MicroBatch], T], portion: MicroBatch | None = None) -> T:
        """`attempt` of the largest portion that fits.

        Args:
            work: what it is.
            attempt: is repeated as a whole when memory runs out.
            portion: what to begin with; None is what is expected to fit.

        Raises:
            OutOfMemoryError: nothing fits.
        """
        portion = self._limits.portion(work) if portion is None else portion
        again = True
        while True:
            outcome = self._attempted(work, attempt, portion)
            if not isinstance(outcome, _Failure):
                return outcome
            # Here and not where it was caught: a handler keeps the frames of what failed, and with them its tensors.
            gc.collect()
            if portion.images == 1 and again:
                again = False
                room = ", without the other models of this process" if self._make_room() else ""
                _LOG.warning("memory ran out in the %s (%s); it is tried again%s", work.stage, outcome.text, room)
            else:
                portion = self._after(work, portion, outcome.text)

    def _attempted(self, work: StageCost, attempt: Callable[[MicroBatch], T], portion: MicroBatch) -> T | _Failure:
        self._limits.begun(work, portion)
        try:
            outcome = attempt(portion)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return _Failure(first_line(error))
        finally:
            self._limits.ended(work)
        self._limits.worked(work, portion)
        return outcome

    def _after(self, work: StageCost, portion: MicroBatch, text: str) -> MicroBatch:
        """What to try when a portion did not fit."""
        following = self._limits.failed(work, portion)
        if following is not None:
            _LOG.warning(
                "memory ran out in the %s with %s at once (%s); going on with %s", work.stage, portion, text, following
            )
            return following
        if self._stages.release(but=work.network):
            _LOG.warning("memory ran out in the %s (%s); the model's other parts were let go", work.stage, text)
            return portion
        raise OutOfMemoryError(
            f"the {work.stage} does not fit into memory for one image of {work.width} x {work.height}, even in "
            f"{portion.parts} parts ({text}); {memory.free() / 1e9:.1f} GB are free: a smaller size, "
            "precision='float16' or 'bfloat16', or fewer other programs would help"
        )


def _cut(callback: Callback | None, images: int) -> Callback | None:
    """A callback that does not see what a batch was filled up with."""
    if callback is None:
        return None
    return lambda step, num_steps, preview: callback(step, num_steps, None if preview is None else preview[:images])


def _once_each(encode: Encoder) -> Encoder:
    """An encoder that remembers, for a run, the pictures that it has seen."""
    known: dict[bytes, np.ndarray] = {}

    def encoded(pictures: np.ndarray) -> np.ndarray:
        digests = [hashlib.sha256(picture.tobytes()).digest() for picture in pictures]
        for digest, picture in zip(digests, pictures, strict=True):
            if digest not in known:
                known[digest] = encode(picture[None])[0]
        return np.stack([known[digest] for digest in digests])

    return encoded


def _flagged(check: CheckSafety, image: np.ndarray, _: MicroBatch) -> bool:
    return bool(check(image[None])[0])


def _pasted(request: Request, place: int, image: np.ndarray) -> np.ndarray:
    """An image with what a mask does not cover as it was."""
    pictures = request.pictures
    if pictures is None or pictures.masks is None:
        return image
    original = pictures.index[place]
    return paste_back(image, pictures.images[original], pictures.masks[original], request.feather)
