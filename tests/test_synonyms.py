"""Words of other programs are answered with those that are used here."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import kerasdiff
from kerasdiff.batch import Row
from kerasdiff.batch.rows import COLUMNS
from kerasdiff.cli.options import OPTIONS
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request
from kerasdiff.synonyms import SYNONYMS, advice, our_word

DRAWS = inspect.signature(kerasdiff.generate).parameters
OPENS = inspect.signature(kerasdiff.Generator).parameters


class DDIMScheduler:
    """As diffusers' class is called."""


@pytest.mark.parametrize(
    ("word", "value", "line"),
    [
        ("num_inference_steps", 3, "num_inference_steps is called num_steps here: num_steps=3"),
        ("steps", 3, "steps is called num_steps here: num_steps=3"),
        ("ddim_steps", 3, "ddim_steps is called num_steps here: num_steps=3"),
        ("cfg_scale", 7.5, "cfg_scale is called guidance_scale here: guidance_scale=7.5"),
        ("cfg", 7, "cfg is called guidance_scale here: guidance_scale=7"),
        (
            "unconditional_guidance_scale",
            7,
            "unconditional_guidance_scale is called guidance_scale here: guidance_scale=7",
        ),
        ("sampler_name", "Euler a", "sampler_name is called sampler here: sampler='Euler a'"),
        ("scheduler", "ddim", "scheduler is called sampler here: sampler='ddim'"),
        ("scheduler", "karras", "scheduler is called spacing here: spacing='karras'"),
        ("scheduler", "sgm_uniform", "scheduler is called spacing here: spacing='sgm_uniform'"),
        ("scheduler", DDIMScheduler, "scheduler is called sampler here: sampler='DDIMScheduler'"),
        ("scheduler", DDIMScheduler(), "scheduler is called sampler here: sampler='DDIMScheduler'"),
        ("scheduler", None, "scheduler is called sampler here: sampler=..."),
        ("num_images_per_prompt", 2, "num_images_per_prompt is called batch_size here: batch_size=2"),
        ("n_iter", 2, "n_iter is called batch_size here: batch_size=2"),
        (
            "generator",
            object(),
            "generator is called seed here: seed=7, with rng='torch' for the noise of torch.Generator",
        ),
        ("init_image", np.zeros((64, 64, 3)), "init_image is called image here: image=..."),
        ("mask_image", "mask.png", "mask_image is called mask here: mask='mask.png'"),
        ("denoising_strength", 0.5, "denoising_strength is called strength here: strength=0.5"),
        *(
            (
                word,
                0.5,
                f"{word} is part of controls here: kerasdiff.Control(model, image, scale=1, start=0, end=1), or ",
            )
            for word in ("control_image", "controlnet_conditioning_scale", "control_guidance_start", "controlNet")
        ),
        ("guess_mode", True, "guess_mode is part of controls here: kerasdiff.Control(model, image, mode='control')"),
        ("control", ["a"], "control is called controls here: controls=['a']"),
        ("hint", "canny", "hint is part of controls here: kerasdiff.Control(model, image, hint='canny'), or --hint="),
        ("ip_adapter_scale", 1, "ip_adapter_scale is part of image_prompts here: kerasdiff.ImagePrompt(model, image, "),
        ("ip_adapter_image_embeds", None, "ip_adapter_image_embeds is not available here: give the pictures"),
        ("denoise", 0.5, "denoise is called strength here: strength=0.5"),
        ("eta", 0.5, "eta is written sampler_options={'eta': 0.5} here"),
        ("use_karras_sigmas", True, "use_karras_sigmas is written spacing='karras' here"),
        ("use_lu_lambdas", True, "use_lu_lambdas is written spacing='lu' here"),
        (
            "final_sigmas_type",
            "zero",
            "final_sigmas_type is written sampler_options={'final_sigmas_type': 'zero'} here",
        ),
        ("use_karras_sigmas", False, "leave use_karras_sigmas out; its opposite is written spacing='karras' here"),
        ("fp16", False, "leave fp16 out; its opposite is written precision='float16' here"),
        ("safety_checker", True, "leave safety_checker out; its opposite is written safety='off' here"),
        ("nsfw", True, "nsfw is written safety='off' here"),
        ("beta_schedule", "linear", "beta_schedule is a part of the model here"),
        ("scheduler_type", "karras", "scheduler_type is called spacing here: spacing='karras'"),
        ("safety_checker", None, "safety_checker is written safety='off' here"),
        ("diffusion_noise", 3, "diffusion_noise is called latents here: latents=3"),
        ("positive", "a cat", "positive is called prompt here: prompt='a cat'"),
        ("negative", "fog", "negative is called negative_prompt here: negative_prompt='fog'"),
        ("numInferenceSteps", 3, "numInferenceSteps is called num_steps here: num_steps=3"),
        ("W", 64, "W is called width here: width=64"),
        ("output_type", "pil", "output_type is not needed here: a result has .images"),
        ("clip_stop_at_last_layers", 2, "clip_stop_at_last_layers is called clip_skip here, and counts one less"),
        ("lora_path", "a", "lora_path is called loras here: loras='a'"),
        ("hypernetwork", "a", "hypernetwork is not available here: merge it into the model"),
        ("ckpt_name", "a", "ckpt_name is called model here: model='a', an argument of kerasdiff.Generator"),
        ("torch_dtype", "fp16", "torch_dtype is called precision here: precision='float16', an argument of kerasdiff."),
        ("precision", "float16", "precision is an argument of kerasdiff.Generator"),
        ("output", "a.png", "output is a flag of the command line; in Python: result.save('out.png')"),
        (
            "negative_promt",
            "fog",
            "got an unexpected keyword argument 'negative_promt'; did you mean 'negative_prompt'?",
        ),
        ("colour", "red", "got an unexpected keyword argument 'colour'"),
    ],
)
def test_an_argument_of_another_program(word, value, line):
    with pytest.raises(TypeError) as found:
        make_request(TINY, "a", **{word: value})
    assert line in str(found.value)
    assert str(found.value).isprintable()
    assert len(str(found.value)) < 200


def test_every_call_answers_before_a_model_is_loaded(tiny):
    for call in (kerasdiff.generate, tiny.generate, tiny.stream):
        with pytest.raises(TypeError, match="steps is called num_steps here: num_steps=3"):
            call("a", steps=3)
        with pytest.raises(TypeError, match=r"prompts is called prompt here: prompt=\['a'\]"):
            call(prompts=["a"])
    for call in (tiny.plan, tiny.warm_up):
        with pytest.raises(TypeError, match="num_images is called batch_size here: batch_size=3"):
            call(num_images=3)
    with pytest.raises(TypeError, match="steps is called num_steps here: num_steps=3"):
        Row("a", "x", steps=3)
    with pytest.raises(TypeError, match="num_steps is an argument of generate"):
        kerasdiff.Generator(num_steps=3)
    for word, line in {
        "torch_dtype": "torch_dtype is called precision here: precision='bfloat16'$",
        "device": "device is not needed here",
        "precison": "did you mean 'precision'?",
    }.items():
        with pytest.raises(TypeError, match=line):
            kerasdiff.Generator("no such model", **{word: "bf16"})


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("steps", "'steps' is called num_steps here"),
        ("CFG scale", "'CFG scale' is called guidance_scale here"),
        ("Negative prompt", "'Negative prompt' is called negative_prompt here"),
        ("filename", "'filename' is called id here: it names the files of a row"),
        ("n_iter", "'n_iter' is called batch_size here, which belongs to all rows and is an argument of the job"),
        ("spacing", "'spacing' belongs to all rows and is an argument of the job"),
        ("output", "'output' is called id here"),
        ("eta", "'eta' is written sampler_options={'eta': 0.5} here, which belongs to all rows"),
        ("karras", "'karras' is written spacing='karras' here, which belongs to all rows"),
        ("subseed", "'subseed' is not available here"),
        ("colour", None),
    ],
)
def test_a_column_of_another_program(word, line):
    told = advice(word, None, COLUMNS, "column")
    assert told is None if line is None else told.startswith(line)


def test_every_word_is_another_ones_and_leads_to_one_of_ours():
    words = [word for others in SYNONYMS.values() for word in others.split()]
    assert len(set(words)) == len(words)
    assert SYNONYMS.keys() <= {*DRAWS, *OPENS, *OPTIONS}
    assert not set(words) & ({*DRAWS, *OPENS} - {"prompts"})
    assert all(our_word(word) == ours for ours, others in SYNONYMS.items() for word in others.split())
    assert our_word("colour") == "colour"
