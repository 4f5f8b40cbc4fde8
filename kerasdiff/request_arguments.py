"""The arguments of a request, each listed once: type, bounds, default and help.

From this table follow the signatures of `kerasdiff.generate` and its like (`typing.Unpack`, PEP 692), validation in
`request.py`, the flags and their --help in `cli/options.py`, the fields of embedded metadata that are per image, and
the table in docs/api/request_result.md. It imports next to nothing, so that --help is quick.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Annotated, Any

from kerasdiff.argument_kinds import Argument
from kerasdiff.sampling_arguments import SamplingArguments


class RequestArguments(SamplingArguments, total=False):
    """The arguments of `make_request` besides the prompt and the batch size, for `typing.Unpack`.

    `help(kerasdiff.generate)` and docs/api/request_result.md describe each.
    """

    long_prompts: Annotated[
        str,
        Argument(
            "choice",
            "Prompts longer than the text encoder's 75 tokens: cut them off, with a warning, or encode them in chunks.",
            "With chunks, every 75 tokens are encoded by themselves and the U-Net sees all of them, as in "
            "AUTOMATIC1111's interface; each number of chunks compiles the U-Net once more.",
            default="cut",
            choices=("cut", "chunk"),
        ),
    ]
    prompt_syntax: Annotated[
        str,
        Argument(
            "choice",
            "Syntax of prompts: plain (none, all is text), a1111 or compel.",
            "With a1111, (word:1.2) and [word] are weights, BREAK begins a new chunk, AND joins prompts, and [a:b:0.5] "
            "and [a|b] change from step to step; with compel, word++, word-, (words)1.2, .and() and .blend(). Both "
            "read long prompts in chunks, of which a shorter prompt beside them gets empty ones, as with "
            "AUTOMATIC1111's option to pad prompts.",
            default="plain",
            choices=("plain", "a1111", "compel"),
        ),
    ]
    emphasis: Annotated[
        str,
        Argument(
            "choice",
            "With prompt_syntax=a1111: whether a chunk's mean is restored after weighting (original) or not (no_norm).",
            default="original",
            choices=("original", "no_norm"),
        ),
    ]
    clip_skip: Annotated[
        int,
        Argument(
            "integer",
            "How many of the text encoder's last layers are left out, as diffusers counts; AUTOMATIC1111 counts one "
            "more.",
            "A negative prompt is read with all layers where prompt_syntax is plain, as in diffusers, and else as the "
            "prompt is.",
            default=0,
            bounds=(0, None),
        ),
    ]
    loras: Annotated[
        Any,
        Argument(
            "loras",
            "LoRA or one of its family (LoCon, LoHa, LoKr, DoRA, ...), with the multiplier of its changes.",
            "A path, or a list of paths, (path, scale) and (path, scale, text_scale): a file, a folder, or 'org/name' "
            "or 'org/name/file.safetensors' on the Hugging Face hub. The scale is the final multiplier, 1 by default, "
            "text_scale that of the text encoder, the same by default. None is the generator's own.",
            flag="lora",
        ),
    ]
    lora_folder: Annotated[
        str | None,
        Argument(
            "path",
            "Folder of LoRAs that prompts name as <lora:name:0.8>.",
            "A tag is taken out of its prompt. A second number is the U-Net's, the first one then the text encoder's. "
            "All prompts of a call must name the same ones.",
        ),
    ]
    embeddings: Annotated[
        Any,
        Argument(
            "embeddings",
            "Embeddings (textual inversion): files, or folders of them.",
            "A path, or a list of paths and (path, trigger). The trigger is the word in a prompt that it stands for; "
            "by default the one in the file, or the file's name. None is the generator's own.",
            flag="embedding",
        ),
    ]
    seed: Annotated[
        int | Sequence[int] | None,
        Argument(
            "integers",
            "Seed of the first image, from which the others count up, or one per image. Default: random.",
            "0 to 2**64 - 1.",
            bounds=(0, 2**64 - 1),
            per_image="seeds",
        ),
    ]
    image: Annotated[
        Any,
        Argument(
            "images",
            "Image to start from.",
            "A path, a PIL image, or an array (height, width, 3), uint8 or from 0 to 1; or several, one per prompt or "
            "per image: a list, an array (N, height, width, 3) or a `Result`. One prompt is used once for each. The "
            "result has its size, unless `resize` is given.",
            per_image="pictures",
        ),
    ]
    mask: Annotated[
        Any,
        Argument(
            "images",
            "Image that is white where the first one is to be redrawn, and black or transparent where it is kept.",
            "The same kinds of values as `image`, or an array of bool or of zeros and ones.",
            per_image="pictures",
        ),
    ]
    invert_mask: Annotated[
        bool,
        Argument(
            "boolean",
            "Redraw what is black in the mask, and keep what is white.",
            "What is transparent is redrawn too, unless the mask has only black on transparency: then only that is.",
            default=False,
        ),
    ]
    strength: Annotated[
        float | Sequence[float] | None,
        Argument(
            "numbers",
            "0 to 1: how much of the image is redrawn. Default: 0.8, or 1 with a mask.",
            "One number, or one per prompt or per image. The last int(num_steps * strength) steps are done; 0 gives "
            "what the autoencoder makes of the image.",
            bounds=(0, 1),
            per_image="strengths",
        ),
    ]
    resize: Annotated[
        str | None,
        Argument(
            "choice",
            "How an image of another size is brought to height x width. Default: the result has the image's size.",
            '"cover" crops what sticks out, "fit" makes the result smaller, "stretch" changes the aspect ratio.',
            choices=("cover", "fit", "stretch"),
        ),
    ]
    feather: Annotated[
        int, Argument("integer", "Feather width in pixels inside the mask's edge.", default=0, bounds=(0, 65_500))
    ]
    controls: Annotated[
        Any,
        Argument(
            "controls",
            "ControlNet or T2I-Adapter with the image that it reads, and how much it counts.",
            "A `Control`, a path, or a list of these, (model, image) and (model, image, scale). The model is a folder, "
            "a file, or 'org/name' or 'org/name/file.safetensors' on the Hugging Face hub. Without an image, the "
            "request's own is the hint. Where there is no `image`, the result has the size of the first hint, by the "
            "same rules; several hints make as many images of one prompt.",
            per_image="controls",
            flag="control",
        ),
    ]
    image_prompts: Annotated[
        Any,
        Argument(
            "image_prompts",
            "IP-Adapter with the image that it reads beside the prompt, and how much that counts.",
            "An `ImagePrompt`, or a list of several and of (model, image) and (model, image, scale). A list as an "
            "image is several pictures that are read together, and a list of lists is one per prompt or per image.",
            per_image="image_prompts",
            flag="image_prompt",
        ),
    ]
    hires: Annotated[
        Any,
        Argument(
            "hires",
            "Second pass at a larger size (hires fix): the scale, or its settings.",
            "A number, a dict, or a text such as 'scale=2,strength=0.6', in which a value with a comma has double "
            "quotes. Settings are scale (2 by default) or height and width, of which one alone keeps the aspect ratio; "
            "strength (0.7 by default); upscaler ('latent' by default, or with one of (antialiased), (bicubic), "
            "(bicubic antialiased), (nearest), (nearest-exact) behind it; 'lanczos', 'nearest' or a file such as those "
            "of `upscale` for pixels); and steps, prompt, negative_prompt, sampler, spacing and guidance_scale, which "
            "are the first pass's by default. Only without `image`.",
        ),
    ]
    denoising_end: Annotated[
        float | None,
        Argument(
            "number",
            "Share of the noise levels, from 0 to 1, after which the refiner takes over, or else the run ends.",
            "The steps at lower timesteps are the refiner's, which goes on from noisy latents, as diffusers has it (an "
            "ensemble of expert denoisers). Without a refiner, latents have noise left, and images are what the model "
            "took for the result.",
            bounds=(0, 1),
        ),
    ]
    denoising_start: Annotated[
        float | None,
        Argument(
            "number",
            "Share of the noise levels, from 0 to 1, that given latents have passed.",
            "`latents`, of a run with that `denoising_end`, then take the place of noise; the steps before are left "
            "out.",
            bounds=(0, 1),
        ),
    ]
    refiner_strength: Annotated[
        float | None,
        Argument(
            "number",
            "0 to 1: how much of the finished latents the refiner redraws, unless denoising_end is given; 0 is "
            "without it. Default: 0.3.",
            bounds=(0, 1),
        ),
    ]
    deep_cache_interval: Annotated[
        int,
        Argument(
            "integer",
            "DeepCache: the whole U-Net runs once in so many evaluations; others reuse its deep features. 1 is off.",
            "Ma et al. 2023, arXiv:2312.00858; 3 is usual. Evaluations count from the run's first step; samplers such "
            "as heun have two in a step.",
            default=1,
            bounds=(1, 1000),
        ),
    ]
    deep_cache_branch: Annotated[
        int,
        Argument(
            "integer",
            "DeepCache: the skip connection below which features are reused, from 0, the fastest, on.",
            "The number that DeepCache calls cache_branch_id.",
            default=0,
            bounds=(0, None),
        ),
    ]
    token_merging_ratio: Annotated[
        float,
        Argument(
            "number",
            "Token merging (ToMe): share of the tokens merged in self-attention at the finest level, up to 0.75.",
            "Bolya & Hoffman 2023, arXiv:2303.17604. It saves time in large images only; 0 is off.",
            default=0.0,
            bounds=(0, 0.75),
        ),
    ]
    upscale: Annotated[
        Any,
        Argument(
            "upscaler",
            "Upscaler of ESRGAN's kind that makes finished images larger, and how many times. Default: as it was made.",
            "A path or (path, scale): a .safetensors or .pth file, or 'org/name/file.pth' on the Hugging Face hub. A "
            "smaller scale than the upscaler's is reached by Lanczos' filter. Latents, and `height` and `width` of the "
            "request, are those before.",
        ),
    ]
    safety: Annotated[
        str | None,
        Argument(
            "choice",
            "Safety filter: on (black out flagged images), flag (only report them) or off. Default: on if the model "
            "ships one.",
            choices=("on", "flag", "off"),
        ),
    ]
    exact: Annotated[
        bool,
        Argument(
            "boolean",
            "Generate every image by itself, so that it is bit for bit the same in any batch.",
            "Otherwise the last digits depend on how many images are generated at once.",
            default=False,
        ),
    ]


# What to do for a seed that is none, such as -1.
NO_SEED = "leave it out for a random one"
_HINTS = typing.get_type_hints(RequestArguments, include_extras=True)
# All arguments of a request by name.
ARGUMENTS: dict[str, Argument] = {
    "prompt": Argument("strings", "Prompt: a string or a list of them.", per_image="prompts"),
    "batch_size": Argument("integer", "Images per prompt.", default=1, bounds=(1, None)),
    **{name: hint.__metadata__[0] for name, hint in _HINTS.items()},
}
TYPES: dict[str, Any] = {name: hint.__origin__ for name, hint in _HINTS.items()}
DEFAULTS: dict[str, Any] = {name: ARGUMENTS[name].default for name in _HINTS}
# The fields of `Request` with one value per image, where they are not None.
PER_IMAGE = (*dict.fromkeys(argument.per_image for argument in ARGUMENTS.values() if argument.per_image), "towards")
# Those that leave out arithmetic, at some cost in quality.
APPROXIMATIONS = ("deep_cache_interval", "deep_cache_branch", "token_merging_ratio")
