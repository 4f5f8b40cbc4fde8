"""`keras_cv.models.StableDiffusion` and `StableDiffusionV2`, run by this package."""

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasdiff import validation
from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.formats.keras_cv_live import COMPONENTS, KerasCVSource, LiveTokenizer, fill, read_config
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import ModelError, RequestError
from kerasdiff.generator import Generator
from kerasdiff.models.tokenizer import CLIP_MERGES
from kerasdiff.request import make_request
from kerasdiff.request_arguments import RequestArguments
from kerasdiff.runtime import backend
from kerasdiff.runtime.precision import check

try:
    import keras_cv
    from keras_cv.models import stable_diffusion as parts
    from keras_cv.src.models.stable_diffusion.diffusion_model import DiffusionModelV2  # exported nowhere else
except ImportError:
    raise ModelError("kerasdiff.StableDiffusion needs keras-cv: pip install 'kerasdiff[keras-cv]'") from None
except ValueError as error:  # it looks for a Keras that fits, such as with TF_USE_LEGACY_KERAS
    raise ModelError(f"keras_cv cannot be imported here: {' '.join(str(error).split())[:200]}") from None

_MULTIPLE = 128


class _Fast:
    """What both versions share: KerasCV's interface in front, a `Generator` behind.

    KerasCV's own networks are built when they are first accessed, so that they can be trained or replaced. From then on
    every image is generated with the weights that they have at that moment; values are shared, not copied.
    """

    _preset: str
    _make: dict[str, Callable[..., Any]]

    def __init__(
        self,
        img_height: int = 512,
        img_width: int = 512,
        jit_compile: bool | str = True,
        *,
        weights: str = "pretrained",
        precision: str | None = None,
    ) -> None:
        size = {"img_height": img_height, "img_width": img_width}
        for name, value in size.items():
            validation.integer(name, value, _MULTIPLE)
        check("auto" if precision is None else precision, jit_compile)
        # The constructors between this class and their base print a licence, each time.
        base: Any = keras_cv.models.StableDiffusion.__base__
        base.__init__(self, img_height, img_width, jit_compile)
        for name, given in size.items():
            got = getattr(self, name)
            if given != got:
                warnings.warn(
                    f"{name}={given} is rounded to {got}, as KerasCV does; kerasdiff.Generator takes multiples of 8",
                    stacklevel=2,
                )
        self._weights, self._precision = weights, precision
        self._generator: Generator | None = None
        self._known: dict[str, Any] = {}

    img_height: int
    img_width: int
    jit_compile: bool | str

    def encode_text(self, prompt: str) -> np.ndarray:
        """The text embedding of a prompt, float32 (1, 77, width): of at most 77 tokens, start and end included."""
        length = len(self.tokenizer.encode(prompt))
        if length > self.opened.config.main_text_encoder.max_length:
            raise RequestError(
                f"the prompt has {length} tokens and KerasCV's interface takes 77; kerasdiff.Generator reads longer "
                "ones with long_prompts='chunk'"
            )
        return ops.convert_to_numpy(ops.cast(self._engine().encode_text([prompt]), "float32"))

    def generate_image(
        self,
        encoded_text: Any,
        negative_prompt: str | None = None,
        batch_size: int = 1,
        num_steps: int = 50,
        unconditional_guidance_scale: float = 7.5,
        diffusion_noise: Any = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Images of encoded text, uint8 (batch_size, img_height, img_width, 3).

        Args:
            encoded_text: (77, width) for all images, or one per image: (batch_size, 77, width).
            diffusion_noise: unit-variance (img_height / 8, img_width / 8, 4) for all images, or one per image.
            seed: of the noise, if none is given; the same noise as in KerasCV.
        """
        if diffusion_noise is not None and seed is not None:
            raise RequestError("give diffusion_noise or seed, not both: seed is what noise is made from")
        engine = self._engine()
        steps: RequestArguments = {"num_steps": num_steps, "guidance_scale": unconditional_guidance_scale, "seed": 0}
        request = make_request(engine.config, "", batch_size=batch_size, **steps)
        negative = self.encode_text("" if negative_prompt is None else negative_prompt)
        if diffusion_noise is None:
            diffusion_noise = self._get_initial_diffusion_noise(batch_size, seed)  # type: ignore[attr-defined]
        noise = _batch("diffusion_noise", diffusion_noise, 4)
        return engine.run(
            request,
            latents=np.repeat(noise, batch_size, axis=0) if len(noise) == 1 else noise,
            prompt_embeds=_batch("encoded_text", encoded_text, 3),
            negative_prompt_embeds=negative,
        ).images

    def warm_up(self, batch_size: int = 1) -> dict[str, float]:
        """Traces and compiles what a batch of this size needs; returns the seconds of each stage."""
        return self._engine().warm_up(batch_size)

    @property
    def text_encoder(self) -> Any:
        """KerasCV's text encoder, to be trained or replaced."""
        return self._component("text_encoder")

    @property
    def diffusion_model(self) -> Any:
        """KerasCV's U-Net, to be trained or replaced."""
        return self._component("unet")

    @property
    def decoder(self) -> Any:
        """KerasCV's decoder, to be trained or replaced."""
        return self._component("decoder")

    @property
    def image_encoder(self) -> Any:
        """KerasCV's image encoder."""
        return self._component("encoder")

    @property
    def tokenizer(self) -> Any:
        """KerasCV's tokenizer, to which words can be added; its vocabulary is the one of this package."""
        if self._tokenizer is None:
            self._tokenizer = parts.SimpleTokenizer(CLIP_MERGES)
        return self._tokenizer

    _tokenizer: Any

    @functools.cached_property
    def opened(self) -> Checkpoint:
        """The checkpoint: weights of the live component if there is one, else of the published file."""
        published = open_model(self._preset, self._weights)

        def source(network: str, shapes: Any) -> Any:
            live = self._live(network)
            return published.source(network, shapes) if live is None else KerasCVSource(live, network)

        def files(network: str) -> list[pathlib.Path]:
            return [] if published.files is None or self._live(network) is not None else published.files(network)

        return dataclasses.replace(
            published, config=read_config(self), tokenizer=LiveTokenizer(self), source=source, files=files
        )

    def _live(self, network: str) -> Any:
        """KerasCV's component if it was built or assigned, or if a subclass has a property of its own for it."""
        attribute = COMPONENTS[network]
        if getattr(type(self), attribute) is not getattr(_Fast, attribute):
            return getattr(self, attribute)
        return getattr(self, f"_{attribute}")

    def _component(self, network: str) -> Any:
        attribute = f"_{COMPONENTS[network]}"
        component = getattr(self, attribute)
        if component is None:
            component = self._make[network](self.img_height, self.img_width)
            fill(component, network, self.opened.parameters(network))
            if self.jit_compile is True:
                component.compile(jit_compile=True)
            setattr(self, attribute, component)
            self._known[network] = component
        return component

    def _engine(self) -> Generator:
        """The generator, with the weights that the live components have now."""
        live = {network: self._live(network) for network in COMPONENTS}
        if self._generator is None or live != self._known:
            self.__dict__.pop("opened", None)
            precision = keras.config.dtype_policy().name if self._precision is None else self._precision
            self._generator = Generator(
                self.opened, precision=precision, jit_compile=self.jit_compile, backend=backend.of_keras()
            )
            self._known = live
        else:
            for network, component in live.items():
                if component is not None and network in self._generator.networks:
                    self._generator.networks.network(network).reload()
        return self._generator


class StableDiffusion(_Fast, keras_cv.models.StableDiffusion):
    """Stable Diffusion 1.4 with the interface of KerasCV's class, whose subclass it is.

    Args:
        img_height: pixels, rounded to a multiple of 128 as in KerasCV, with a warning.
        img_width: pixels, rounded likewise.
        jit_compile: whether XLA compiles the networks, or "auto".
        weights: "pretrained" (downloaded when first needed) or "random".
        precision: one of `kerasdiff.Generator`; None is Keras's global policy.
    """

    _preset = "sd-v1-4"
    _make = {  # noqa: RUF012
        "text_encoder": lambda height, width: parts.TextEncoder(77, download_weights=False),
        "unet": lambda height, width: parts.DiffusionModel(height, width, 77, download_weights=False),
        "decoder": lambda height, width: parts.Decoder(height, width, download_weights=False),
        "encoder": lambda height, width: parts.ImageEncoder(download_weights=False),
    }


class StableDiffusionV2(_Fast, keras_cv.models.StableDiffusionV2):
    """Stable Diffusion 2.1 (base) with the interface of KerasCV's class, whose subclass it is.

    Arguments, errors and use are those of `StableDiffusion`.
    """

    _preset = "sd-v2-1"
    _make = {  # noqa: RUF012
        **StableDiffusion._make,
        "text_encoder": lambda height, width: parts.TextEncoderV2(77, download_weights=False),
        "unet": lambda height, width: DiffusionModelV2(height, width, 77, download_weights=False),
    }


def _batch(name: str, values: Any, dimensions: int) -> np.ndarray:
    """float32 with one batch axis in front, which may be missing or, as in KerasCV, be there more than once."""
    array = np.asarray(ops.convert_to_numpy(ops.cast(values, "float32")))
    while array.ndim > dimensions and 1 in array.shape[: -dimensions + 1]:
        array = array.squeeze(axis=array.shape.index(1))
    array = array[None] if array.ndim == dimensions - 1 else array
    if array.ndim != dimensions:
        raise RequestError(
            f"{name} has shape {array.shape}; it must have {dimensions} axes, or one less for all images"
        )
    return array
