"""Words of other programs, and what is written here instead: on a call, as flags and as columns of a file."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import shlex
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeVar

from kerasdiff import validation
from kerasdiff.request_arguments import ARGUMENTS

# "option" is a column, too, in a line of options.
Style = Literal["argument", "flag", "column", "option"]
_Function = TypeVar("_Function", bound=Callable[..., Any])

# Our word -> those of diffusers, KerasCV, AUTOMATIC1111, ComfyUI, InvokeAI, CompVis' scripts and web services.
SYNONYMS = {
    "prompt": "positive positive_prompt prompts text caption description",
    "negative_prompt": "negative negative_prompts neg_prompt neg uncond_prompt uc",
    "height": "img_height image_height h",
    "width": "img_width image_width w",
    "tile": "tiling seamless seamless_tiling make_seamless",
    "num_steps": "num_inference_steps inference_steps num_inference_step steps step sampling_steps "
    "num_sampling_steps ddim_steps n_steps step_count",
    "guidance_scale": "cfg_scale cfg cfgs guidance guidance_weight unconditional_guidance_scale "
    "classifier_free_guidance_scale cfg_weight scale",
    "image_guidance_scale": "image_cfg_scale image_cfg",
    "guidance_rescale": "cfg_rescale cfg_rescale_multiplier rescale_cfg",
    "sampler": "sampler_name sampler_index sampling_method sample_method method scheduler_name scheduler_class",
    "sampler_options": "scheduler_kwargs sampler_kwargs",
    "spacing": "schedule schedule_type scheduler_type noise_schedule sigma_schedule timestep_spacing",
    "seed": "seeds manual_seed noise_seed random_seed rng_seed",
    "rng": "randn_source noise_source",
    "batch_size": "num_images_per_prompt num_images n_images images_per_prompt image_count n_iter n_samples "
    "num_samples num_outputs number_of_images image_number batch batch_count iterations n",
    "image": "init_image init_images init_img initial_image input_image start_image source_image image_path img",
    "mask": "mask_image mask_img mask_path inpaint_mask image_mask",
    "invert_mask": "mask_invert inpainting_mask_invert invert mask_inverted inverse_mask",
    "deep_cache_interval": "cache_interval deepcache_interval deepcache deep_cache",
    "deep_cache_branch": "cache_branch_id deepcache_branch deepcache_branch_id cache_branch",
    "token_merging_ratio": "tome tome_ratio tomesd token_merging merge_ratio",
    "strength": "denoising_strength denoise_strength denoise image_strength img2img_strength noise_strength "
    "prompt_strength init_strength",
    "resize": "resize_mode resize_method",
    "crop": "crops_coords_top_left crops_coords crop_coords",
    "negative_crop": "negative_crops_coords_top_left",
    "pooled_prompt_embeds": "pooled_embeds pooled_prompt_embeddings add_text_embeds",
    "negative_pooled_prompt_embeds": "negative_pooled_embeds negative_pooled_prompt_embeddings",
    "feather": "mask_blur mask_feather blur",
    "clip_skip": "clipskip",
    "prompt_syntax": "prompt_parser prompt_format",
    "emphasis": "emphasis_mode",
    "loras": "lora lora_path lora_name lora_file lora_weights lora_model lora_model_id adapters adapter_weights",
    "lora_folder": "lora_dir lora_directory lora_model_dir",
    "embeddings": "embedding textual_inversion textual_inversions embedding_path embd_dir",
    "controls": "control",
    "image_prompts": "image_prompt",
    "upscale": "upscaler upscale_model upscaler_name upscaler_1 upscale_model_path esrgan esrgan_model realesrgan",
    "prompt_embeds": "prompt_embeddings text_embeddings encoded_text prompt_embedding",
    "negative_prompt_embeds": "negative_prompt_embeddings negative_embeddings",
    "latents": "latent latent_image diffusion_noise noise init_noise initial_noise start_code x_t init_latents",
    "callback": "callback_on_step_end progress_callback step_callback",
    "progress": "progress_bar show_progress",
    "model": "ckpt ckpt_name ckpt_path checkpoint checkpoint_path model_id model_name model_path base_model "
    "model_id_or_path pretrained_model_name_or_path sd_model sd_model_checkpoint",
    "refiner": "refiner_checkpoint refiner_model refiner_name refiner_path",
    "denoising_end": "refiner_switch_at refiner_switch high_noise_frac",
    "vae": "vae_name vae_path sd_vae autoencoder first_stage_model",
    "preview_vae": "taesd preview_method latent_preview",
    "precision": "torch_dtype dtype weight_dtype",
    "jit_compile": "xla compile torch_compile",
    "backend": "engine runtime framework execution_provider",
    "output": "output_path output_file out o outfile save_path filename",
    "output_dir": "outdir outpath_samples output_folder outpath",
    "long_prompts": "long_prompt max_embeddings_multiples",
    "grid_columns": "n_rows grid_cols",
    "prompts": "from_file prompt_file prompts_file",
    "replay": "png_info",
}
_VALUE = object()
_OPTIONS = (
    "solver_order solver_type lower_order_final final_sigmas_type sigma_min sigma_max interpolation_type timestep_type "
    "euler_at_final lambda_min_clipped predict_x0 original_inference_steps timestep_scaling variance_type"
)
# A word -> our argument with a value, or with theirs as one of the sampler's options.
_WRITTEN: dict[str, tuple[str, Any]] = {
    **{word: ("sampler_options", {"eta": _VALUE}) for word in ("eta", "ddim_eta", "eta_ancestral")},
    **{word: ("sampler_options", {word: _VALUE}) for word in _OPTIONS.split()},
    **{f"use_{name}_sigmas": ("spacing", name) for name in ("karras", "exponential", "beta")},
    "use_lu_lambdas": ("spacing", "lu"),
    "karras": ("spacing", "karras"),
    "plms": ("sampler", "pndm"),
    **dict.fromkeys(("disable_safety_checker", "no_safety_checker", "nsfw"), ("safety", "off")),
    **dict.fromkeys(("fp16", "half", "half_precision"), ("precision", "float16")),
    **dict.fromkeys(("no_half", "full_precision"), ("precision", "float32")),
    "disable_progress_bar": ("progress", False),
    **dict.fromkeys(("hires_fix", "enable_hr", "highres_fix", "enable_hires_fix"), ("hires", 2)),
}
# The same for words that are written here if they are off there.
_WRITTEN_IF_OFF = dict.fromkeys(
    ("safety_checker", "requires_safety_checker", "enable_safety_checker", "nsfw_filter", "safety_filter"),
    ("safety", "off"),
)
_OFF = ("false", "no", "off", "0", "none")
_BY_SEED = "seed=7, with rng='torch' for the noise of torch.Generator('cpu').manual_seed(7)"
_ARGUMENT = re.compile(r"\b(?=(?:height|width|seed|rng|image|strength|hires)=)")
_ADAPTER = "merge it into the model first, and open that"
_ALONE = "each image has one seed and no second one"
# A word -> what is done here without it.
_INSTEAD = {
    "generator": f"is called seed here: {_BY_SEED}",
    "size": "is called height and width here: height=512, width=512",
    "output_type": "is not needed here: a result has .images (uint8), .latents, and .grid() as a PIL image",
    "return_dict": "is not needed here: a result is always an object",
    "callback_steps": "is not needed here: callback is called after every step",
    "algorithm_type": "is part of sampler here: dpmpp_2m, dpmpp_2m_sde or dpm_solver",
    "device": "is not needed here: a GPU is used if there is one; CUDA_VISIBLE_DEVICES= hides it",
    "use_safetensors": "is not needed here: they are taken where a model has them",
    "cache_dir": "is the environment variable HF_HOME here",
    "token": "is the environment variable HF_TOKEN here",
    "local_files_only": "is the environment variable HF_HUB_OFFLINE=1 here",
    "prediction_type": "is a part of the model here: it stands in the folder's scheduler/scheduler_config.json",
    "xformers": "is not needed here: the fastest kernels are chosen anyway",
    "unet": "is a part of the model here: save the pipeline that has it with save_pretrained, and open that folder",
    "vae_tiling": "is automatic here, when memory asks for it",
    "clip_stop_at_last_layers": "is called clip_skip here, and counts one less: clip_skip=1 leaves out one layer",
    "subseed": f"is not available here: {_ALONE}",
    "hypernetwork": f"is not available here: {_ADAPTER}",
    "cross_attention_kwargs": "is part of loras here: loras=[(file, scale)]",
    "controlnet": "is part of controls here: kerasdiff.Control(model, image, scale=1, start=0, end=1), or "
    "--control=MODEL:IMAGE:1:0:1 on the command line",
    "guess_mode": "is part of controls here: kerasdiff.Control(model, image, mode='control'), or "
    "--control_mode=control on the command line",
    "preprocessor": "is part of controls here: kerasdiff.Control(model, image, hint='canny'), or --hint=canny on the "
    "command line",
    "ip_adapter": "is part of image_prompts here: kerasdiff.ImagePrompt(model, image, scale=1), or "
    "--image_prompt=MODEL:IMAGE:1 on the command line",
    "ip_adapter_image_embeds": "is not available here: give the pictures, as kerasdiff.ImagePrompt(model, image)",
    "hr_scale": "is part of hires here: hires='scale=2,steps=15,upscaler=latent'",
    "restore_faces": "is not available here",
    "styles": "is not available here: write what it adds into the prompt",
    "s_churn": "is not available here: no sampler has churn",
    "prompt_2": "is not needed here: both text encoders of SDXL read prompt and negative_prompt",
    "padding_mask_crop": "is not available here: the whole image is repainted under the mask",
}
_LIKE = {
    "size": "image_size resolution",
    "return_dict": "callback_on_step_end_tensor_inputs",
    "device": "device_map cuda gpu",
    "token": "use_auth_token hf_token",
    "prediction_type": "parameterization beta_schedule beta_start beta_end trained_betas num_train_timesteps "
    "rescale_betas_zero_snr set_alpha_to_one clip_sample",
    "xformers": "enable_xformers opt_sdp_attention enable_xformers_memory_efficient_attention",
    "unet": "text_encoder tokenizer feature_extractor",
    "vae_tiling": "low_vram lowvram medvram enable_vae_tiling enable_attention_slicing attention_slicing",
    "clip_stop_at_last_layers": "stop_at_clip_layer skipped_layers",
    "subseed": "subseed_strength variation_seed variation_strength variation_amount seed_resize_from_h "
    "seed_resize_from_w",
    "cross_attention_kwargs": "joint_attention_kwargs lora_scale lora_strength",
    "controlnet": "control_image control_images control_net controlnets controlnet_units controlnet_image "
    "controlnet_model controlnet_conditioning_image conditioning_image controlnet_conditioning_scale controlnet_scale "
    "controlnet_strength controlnet_weight control_scale control_strength control_weight control_guidance_start "
    "control_guidance_end controlnet_start controlnet_end t2i_adapter adapter_image adapter_conditioning_scale "
    "adapter_conditioning_factor",
    "guess_mode": "control_mode controlnet_mode controlnet_guess_mode",
    "preprocessor": "hint controlnet_preprocessor control_preprocessor annotator",
    "ip_adapter": "ip_adapter_image ip_adapter_scale ip_adapter_model ip_adapter_weight ip_adapters",
    "hr_scale": "hr_upscaler hr_second_pass_steps hr_resize_x hr_resize_y hr_prompt hr_negative_prompt hr_sampler_name "
    "hr_scheduler hr_cfg hires_scale hires_steps hires_upscaler hires_upscale hires_strength hires_denoise",
    "restore_faces": "face_restoration facetool",
    "styles": "style style_preset",
    "s_churn": "s_tmin s_tmax s_noise",
    "prompt_2": "negative_prompt_2",
    "padding_mask_crop": "inpaint_full_res inpaint_full_res_padding inpainting_fill",
}
# Where an argument is given that a call does not have; the others are of a request.
_PLACES = {
    **dict.fromkeys(
        (
            "model",
            "weights",
            "revision",
            "variant",
            "vae",
            "refiner",
            "preview_vae",
            "precision",
            "jit_compile",
            "backend",
        ),
        "an argument of kerasdiff.Generator",
    ),
    "output": "a flag of the command line; in Python: result.save('out.png')",
    "output_dir": "a flag of the command line; in Python: kerasdiff.batch.run",
    **dict.fromkeys(("grid_columns", "prompts", "replay"), "a flag of the command line"),
}
_PRECISIONS = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
_OF_REQUEST = "an argument of generate"
_FILES = ("output", "output_dir")
_OF_JOB = "belongs to all rows and is an argument of the job"
# Characters of a value that is worth repeating.
_SHORT = 50


def _bare(word: str) -> str:
    """A word without case and separators: "CFG Scale", "cfg-scale" and "cfgScale" are one."""
    return re.sub(r"[\W_]+", "", word).lower()


_OURS = {"prompt": "prompt"} | {_bare(theirs): ours for ours, words in SYNONYMS.items() for theirs in words.split()}
_OTHERS = {_bare(word): text for word, text in _INSTEAD.items()}
_OTHERS |= {_bare(theirs): _INSTEAD[word] for word, words in _LIKE.items() for theirs in words.split()}
_TO_WRITE = {_bare(word): written for word, written in (_WRITTEN | _WRITTEN_IF_OFF).items()}
_IF_OFF = set(map(_bare, _WRITTEN_IF_OFF))


def advice(word: str, value: Any, known: Collection[str], style: Style = "argument") -> str | None:
    """One line on a word that is not among the `known` ones: what is written here; None if nobody has that word.

    Args:
        word: as it was given, without dashes in front.
        value: what was given for it; None if that is not known.
        known: what can be given here.
        style: how values are written here.
    """
    bare = _bare(word)
    shown = {"argument": word, "column": repr(word)}.get(style, f"--{word}")
    of_row = style in ("column", "option")
    spelt = next((name for name in known if _bare(name) == bare), None)
    ours = spelt or _OURS.get(bare) or (word if of_row and word in _FILES else None)
    if spelt is None and bare in ("scheduler", "schedulername"):
        ours, value = _scheduler(value)
    elif spelt is None and bare in _TO_WRITE:
        ours, template = _TO_WRITE[bare]
        given = 0.5 if value is None else value
        wanted = (str(value).lower() in _OFF) == (bare in _IF_OFF) or (value is None and style != "argument")
        value = dict.fromkeys(template, given) if isinstance(template, dict) else template
        written = _written(ours, value, style)
        if wanted or isinstance(template, dict):
            where = f", which {_OF_JOB}" if of_row and ours not in known else ""
            return f"{shown} is written {written} here{where}"
        return f"leave {shown} out; its opposite is written {written} here"
    if ours is None:
        if bare in _OTHERS:
            text = _OTHERS[bare]
            return f"{shown} {re.sub(_ARGUMENT, '--', text) if style == 'flag' else text}"
        return f"{shown} {_OF_JOB}" if of_row and (word in ARGUMENTS or word in _PLACES) else None
    if of_row:
        if ours in _FILES:
            return f"{shown} is called id here: it names the files of a row"
        return f"{shown} is called {ours} here{'' if ours in known else f', which {_OF_JOB}'}"
    if style == "argument":
        place = "" if ours in known else f", {_PLACES.get(ours, _OF_REQUEST)}"
        return f"{shown} is called {ours} here: {_written(ours, value, style)}{place}"
    if ours == "prompt" and "prompts" in known:
        return f"{shown} is no flag here: write the prompt alone, in quotes: kerasdiff {_quoted(value)}"
    return f"{shown} is called --{ours} here: {_written(ours, value, style)}" if ours in known else None


def our_word(word: str) -> str:
    """What a word of another program is called here; the word itself if it has no other name."""
    return _OURS.get(_bare(word), word)


def unknown_argument(function: str, word: str, value: Any, known: Collection[str]) -> str:
    """The message of a TypeError for an argument that a function does not have."""
    told = advice(word, value, known)
    if told is not None:
        return told
    if word in ARGUMENTS or word in _PLACES:
        return f"{word} is {_PLACES.get(word, _OF_REQUEST)}"
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{function}() got an unexpected keyword argument {word!r}{hint}"


def explained(function: _Function) -> _Function:
    """A function, or a class, whose TypeError for an argument that it does not have says what to write."""
    if isinstance(function, type):
        function.__init__ = explained(function.__init__)  # type: ignore[misc]
        return function
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*positional: Any, **named: Any) -> Any:
        for word, value in named.items():
            if word not in known:
                raise TypeError(unknown_argument(function.__qualname__, word, value, known))
        return function(*positional, **named)

    return checked  # type: ignore[return-value]


def _scheduler(value: Any) -> tuple[str, Any]:
    """What diffusers and InvokeAI call scheduler is a sampler here, and what ComfyUI calls so is a spacing."""
    if value is not None and not isinstance(value, str):
        found = value if isinstance(value, type) else type(value)
        return "sampler", found.__name__ if "Scheduler" in found.__name__ else value
    spacing = value is not None and re.fullmatch(
        r"normal|karras|exponential|simple|beta|\w*[ _]uniform|leading|trailing|linspace", value.strip().lower()
    )
    return ("spacing" if spacing else "sampler"), value


def _written(name: str, value: Any, style: Style) -> str:
    """How an argument is given, with the value that was given if it is short."""
    if name == "precision" and value is not None:
        word = (value if isinstance(value, str) else validation.shown(value)).removeprefix("torch.")
        value = _PRECISIONS.get(word, word)
    if style == "flag":
        if isinstance(value, dict):
            value = ",".join(f"{option}={one}" for option, one in value.items())
        if isinstance(value, bool):
            return f"--{name}" if value else f"--no{name}"
        text = "" if value is None else str(value)
        if not text and name in ARGUMENTS and ARGUMENTS[name].kind == "boolean":
            return f"--{name}"
        return f"--{name}={shlex.quote(text) if 0 < len(text) < _SHORT else '...'}"
    simple = isinstance(value, bool | int | float | str | list | tuple | dict)
    text = validation.shown(value) if simple else ""
    return f"{name}={text if 0 < len(text) < _SHORT else '...'}"


def _quoted(value: Any) -> str:
    text = "" if value is None else str(value)
    return f'"{text}"' if text and len(text) <= _SHORT and text.isprintable() and '"' not in text else '"a prompt"'
