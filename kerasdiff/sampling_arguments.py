"""The first half of a request's arguments: sizes, steps and guidance; `request_arguments.py` has the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from kerasdiff.argument_kinds import Argument

# Two integers, or their text, such as "768,1024".
Pair = Sequence[int] | str
# What an aesthetic score may be; those of SDXL's training went from 0 to 10.
SCORES = (0.0, 1000.0)


class SamplingArguments(TypedDict, total=False):
    """What an image is to be of, its size, and the steps that lead to it."""

    negative_prompt: Annotated[
        str | Sequence[str | None] | None,
        Argument(
            "strings",
            "Negative prompt.",
            "One string, or one per prompt. SDXL makes a difference between none, which is zeros, and the empty text.",
            per_image="negative_prompts",
        ),
    ]
    height: Annotated[
        int | None, Argument("integer", "Height in pixels. Default: the model's, or the image's.", bounds=(1, None))
    ]
    width: Annotated[
        int | None, Argument("integer", "Width in pixels. Default: the model's, or the image's.", bounds=(1, None))
    ]
    original_size: Annotated[
        Pair | None,
        Argument(
            "pair",
            "SDXL: height and width of the picture that the image is like. Default: the image's own.",
            "SDXL was told of each picture how large it was before it was scaled and cropped: with small ones, such as "
            "(256, 256), it draws as in enlarged pictures. Of two passes each has its own size. In Python a pair, or "
            "its text.",
        ),
    ]
    crop: Annotated[
        Pair | None,
        Argument(
            "pair",
            "SDXL: top and left, in pixels, of what was cut out of that picture. Default: 0,0, nothing cut off.",
            "Larger numbers move what is drawn up and to the left, as in pictures that were cropped.",
        ),
    ]
    target_size: Annotated[
        Pair | None,
        Argument(
            "pair",
            "SDXL: height and width that it was brought to. Default: the image's own.",
            "A refiner does not read it.",
        ),
    ]
    negative_original_size: Annotated[
        Pair | None,
        Argument(
            "pair",
            "SDXL: original_size beside the negative prompt. Default: as beside the prompt.",
            "Guidance leads away from it, as from the next two.",
        ),
    ]
    negative_crop: Annotated[
        Pair | None, Argument("pair", "SDXL: crop beside the negative prompt. Default: as beside the prompt.")
    ]
    negative_target_size: Annotated[
        Pair | None,
        Argument("pair", "SDXL: target_size beside the negative prompt. Default: as beside the prompt."),
    ]
    aesthetic_score: Annotated[
        float | None,
        Argument("number", "SDXL's refiner: how much the image is liked. Default: 6.", bounds=SCORES),
    ]
    negative_aesthetic_score: Annotated[
        float | None,
        Argument("number", "SDXL's refiner: the same beside the negative prompt. Default: 2.5.", bounds=SCORES),
    ]
    tile: Annotated[
        str | None,
        Argument(
            "choice",
            "Make the image seamless: its copies side by side (x), one above another (y), or both (xy) have no seams.",
            "All convolutions of the U-Net and the autoencoder go on at the opposite side, as AUTOMATIC1111's Tiling "
            "has it.",
            choices=("x", "y", "xy"),
        ),
    ]
    num_steps: Annotated[
        int | None,
        Argument(
            "integer",
            "Number of sampling steps. Default: the model's.",
            "With `timesteps` or `sigmas`, as many as they make.",
            bounds=(1, None),
        ),
    ]
    recipe: Annotated[
        str | None,
        Argument(
            "string",
            "Settings that a model or LoRA was distilled for: a name from kerasdiff.RECIPES (--list_samplers), such as "
            "turbo, lcm or hyper-4, or none. Default: the model's.",
            "It sets sampler, spacing, steps, guidance and what the U-Net predicts; what a request says itself comes "
            "first.",
        ),
    ]
    guidance_scale: Annotated[
        float | Sequence[float] | Sequence[Sequence[float]] | None,
        Argument(
            "weights",
            "Weight of the prompt in classifier-free guidance; 1, or 0 with a recipe, is none. Default: the model's.",
            "One number from -1e6 to 1e6; a list with one per step, per prompt or per image; or for each image a list "
            "with one, or one per step. A step's weight holds for every evaluation of the U-Net from its noise level "
            "down to the next one's.",
            # Far beyond any use; float32 still has room for what is computed with it.
            bounds=(-1e6, 1e6),
            per_image="guidance_scale",
        ),
    ]
    guidance_interval: Annotated[
        Sequence[float],
        Argument(
            "numbers",
            "Part of the run in which guidance is on, as start and end from 0 to 1.",
            "Guidance is on in a step if start <= step / num_steps < end (Kynkäänniemi et al. 2024, arXiv:2404.07724); "
            "in the others the U-Net runs on half the batch.",
            default=(0.0, 1.0),
            bounds=(0, 1),
        ),
    ]
    image_guidance_scale: Annotated[
        float | None,
        Argument(
            "number",
            "Models that edit an image (InstructPix2Pix): weight of the image in guidance. Default: 1.5.",
            "A larger one keeps more of the image, and a larger guidance_scale changes more of it.",
            bounds=(0, 1e6),
        ),
    ]
    guidance_rescale: Annotated[
        float,
        Argument(
            "number",
            "0 to 1: how far guided predictions are scaled back to the standard deviation of the conditional ones.",
            "Lin et al. 2023, arXiv:2305.08891, section 3.4.",
            default=0.0,
            bounds=(0, 1),
        ),
    ]
    sampler: Annotated[
        str | None,
        Argument(
            "string",
            "Sampler: a name from kerasdiff.SAMPLERS (--list_samplers), a scheduler class of diffusers, or a name with "
            "a spacing, such as 'DPM++ 2M Karras'. Default: the model's.",
        ),
    ]
    sampler_options: Annotated[
        Mapping[str, Any] | None,
        Argument("options", "Options of the sampler, such as eta=0.5.", 'In Python a dictionary, {"eta": 0.5}.'),
    ]
    spacing: Annotated[
        str | None,
        Argument(
            "string",
            "Which noise levels the steps visit: a name from kerasdiff.SPACINGS (--list_samplers). Default: the "
            "model's, else the sampler's.",
        ),
    ]
    timesteps: Annotated[
        Sequence[float] | None,
        Argument("numbers", "Instead of a spacing: the timestep of each step, decreasing."),
    ]
    sigmas: Annotated[
        Sequence[float] | None,
        Argument("numbers", "Instead of a spacing: the noise level of each step, decreasing, then 0."),
    ]
    rng: Annotated[
        str,
        Argument(
            "choice",
            "Random number generator of the noise; torch gives that of diffusers with a CPU generator.",
            default="philox",
            choices=("philox", "torch"),
        ),
    ]
