"""Images of other programs: what of their settings is taken over, what is listed, and what hostile files come to."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

import kerasdiff
from kerasdiff import metadata
from kerasdiff.adapter_files import EmbeddingFile, Lora
from kerasdiff.metadata import foreign
from kerasdiff.metadata.a1111_text import read as read_a1111
from kerasdiff.metadata.comfyui import read as read_comfyui
from kerasdiff.metadata.invokeai import read as read_invokeai
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request

A1111 = """a cat, (fluffy:1.2)
on a mat
Negative prompt: blur,
text: none
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 123, Size: 512x768, Model hash: 6ce0161689, \
Model: photo, Clip skip: 2, Lora hashes: "detail: 1a2b, x: 3c4d", Version: v1.10.1"""
TAKEN = {
    "rng": "torch",
    "long_prompts": "chunk",
    "prompt": "a cat",
    "negative_prompt": "blur",
    "num_steps": 20,
    "guidance_scale": 8.0,
    "seed": 7,
    "width": 512,
    "height": 768,
    "sampler": "dpmpp_2m",
    "spacing": "karras",
}
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "photo.safetensors"}},
    "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["1", 1]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "blur", "clip": ["1", 1]}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            **{"seed": 7, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0},
            **{"model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["2", 0]},
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "ComfyUI"}},
}
INVOKE = {
    **{"app_version": "4.2.6", "generation_mode": "txt2img", "positive_prompt": "a cat", "negative_prompt": "blur"},
    **{"width": 512, "height": 768, "seed": 7, "rand_device": "cpu", "cfg_scale": 8, "cfg_rescale_multiplier": 0},
    **{"steps": 20, "scheduler": "dpmpp_2m_k", "clip_skip": 0, "loras": [], "model": {"key": "1", "name": "photo"}},
}


def graph(*changes, **inputs):
    """ComfyUI's graph with other inputs of its sampler, and other nodes."""
    nodes = copy.deepcopy(GRAPH)
    nodes["5"]["inputs"] |= inputs
    for change in changes:
        nodes |= change
    return {"prompt": json.dumps(nodes)}


def invoke(**changes):
    return {"invokeai_metadata": json.dumps({**INVOKE, **changes})}


def a1111(fields, prompt="a cat"):
    return {"parameters": f"{prompt}\nSteps: 20, {fields}, Version: v1.10.1"}


def save(path, texts):
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def test_a1111():
    found = read_a1111({"parameters": A1111})
    expected = {"prompt": "a cat, (fluffy:1.2)\non a mat", "negative_prompt": "blur,\ntext: none", "seed": 123}
    expected |= {"guidance_scale": 7.5, "prompt_syntax": "a1111", "clip_skip": 1}
    assert found.arguments == TAKEN | expected
    assert (found.program, found.model, found.from_picture) == ("AUTOMATIC1111 v1.10.1", "photo", False)
    assert found.summary.endswith(
        "(rng='torch'); not taken over: Lora hashes detail: 1a2b, x: 3c4d, model hash 6ce0161689"
    )
    assert "the image will differ" in found.summary
    assert "as here" in read_a1111({"parameters": A1111.replace("Version", "RNG: CPU, Version")}).summary


@pytest.mark.parametrize(
    ("fields", "sampler", "spacing"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M SDE, Schedule type: Automatic", "dpmpp_2m_sde", "exponential"),
        ("Sampler: Euler a", "euler_a", "linspace"),
        ("Sampler: Euler, Schedule type: Beta", "euler", "beta"),
        ("Sampler: Euler, Schedule type: Uniform", "euler", "linspace"),
        ("Sampler: DDIM", "ddim", None),
        ("Sampler: PLMS", "pndm", None),
    ],
)
def test_samplers_of_a1111(fields, sampler, spacing):
    found = read_a1111(a1111(fields))
    assert (found.arguments["sampler"], found.arguments.get("spacing")) == (sampler, spacing)
    assert found.left_out == []


@pytest.mark.parametrize(("there", "here"), [("0.5", 0.5), ("0.9", 0.75), ("many", None)])
def test_a_ratio_of_token_merging_is_taken_as_far_as_tokens_can_be_merged(there, here):
    found = read_a1111(a1111(f"Sampler: Euler a, Token merging ratio: {there}"))
    assert found.arguments.get("token_merging_ratio") == here
    assert found.left_out == ([] if here else ["token merging ratio 'many'"])


@pytest.mark.parametrize(("there", "here"), [("True", "xy"), ("False", None), ("x", None)])
def test_tiling_is_taken_along_both_axes(there, here):
    found = read_a1111(a1111(f"Sampler: Euler a, Tiling: {there}"))
    assert found.arguments.get("tile") == here
    assert found.left_out == (["Tiling x"] if there == "x" else [])


def test_a_sampler_is_taken_without_a_spacing_that_is_not_here():
    found = read_a1111(a1111("Sampler: Heun, Schedule type: Align Your Steps"))
    assert (found.arguments["sampler"], "spacing" in found.arguments) == ("heun", False)
    (line,) = found.left_out
    assert line.startswith("spacing='align your steps' is not available here; 'ays' is the nearest: ")
    found = read_a1111(a1111("Sampler: [Forge] Flux Realistic, Schedule type: Karras"))
    assert found.left_out == ["sampler='[Forge] Flux Realistic' is unknown"]


def test_what_a1111_has_and_is_not_here_is_listed():
    found = read_a1111(
        a1111("Sampler: DPM fast, Schedule type: SGM Uniform, ENSD: 31337, VAE: x.pt, Face restoration: G")
    )
    assert "sampler" not in found.arguments
    nearest, sampler, *others = found.left_out
    assert nearest == "schedule type SGM Uniform, of which trailing is the nearest"
    assert sampler.startswith("sampler='DPM fast'")
    assert others == ["ENSD 31337", "VAE x.pt", "Face restoration G"]
    hires = read_a1111(a1111("Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent"))
    assert not hires.from_picture
    assert "strength" not in hires.arguments
    assert hires.arguments["hires"] == {"scale": 2, "strength": 0.5, "upscaler": "latent"}
    assert not hires.left_out


@pytest.mark.parametrize(
    ("fields", "expected", "left_out"),
    [
        ("Hires resize: 1024x0, Hires steps: 0", {"width": 1024, "upscaler": "latent"}, []),
        ("Hires upscale: 2, Hires upscaler: None", {"scale": 2, "upscaler": "lanczos"}, []),
        (
            "Hires upscale: 1.5, Hires steps: 9, Hires upscaler: R-ESRGAN 4x+, Hires CFG Scale: 5, Hires checkpoint: x",
            {"scale": 1.5, "steps": 9, "guidance_scale": 5.0, "upscaler": "lanczos"},
            ["Hires upscaler R-ESRGAN 4x+, for which lanczos is taken", "Hires checkpoint x"],
        ),
        (
            'Hires upscale: 2, Hires prompt: "a dog, (b) <lora:c:1>", Hires negative prompt: blur',
            {"scale": 2, "upscaler": "latent", "prompt": "a dog, (b)", "negative_prompt": "blur"},
            ["Hires lora c:1"],
        ),
        (
            "Schedule type: Karras, Sampler: Euler, Hires upscale: 2, Hires sampler: Heun",
            {"scale": 2, "upscaler": "latent", "sampler": "heun", "spacing": "karras"},
            [],
        ),
        (
            "Sampler: Euler, Hires upscale: 2, Hires schedule type: Simple",
            {"scale": 2, "upscaler": "latent", "sampler": "euler", "spacing": "trailing"},
            ["Hires schedule type Simple, of which trailing is the nearest"],
        ),
        (
            "Sampler: DDIM, Hires upscale: 9, Hires sampler: DPM fast",
            {"upscaler": "latent"},
            ["Hires upscale '9'", "Hires sampler='DPM fast'"],
        ),
    ],
)
def test_a_second_pass_of_a1111(fields, expected, left_out):
    found = read_a1111(a1111(f"Denoising strength: 0.6, {fields}"))
    assert found.arguments["hires"] == {"strength": 0.6} | expected
    assert [entry[: len(start)] for entry, start in zip(found.left_out, left_out, strict=True)] == left_out
    assert found.arguments.get("prompt_syntax") == ("a1111" if "(b)" in fields else None)
    make_request(TINY, **{**found.arguments, "height": 64, "width": 64})


@pytest.mark.parametrize(("sampler", "done"), [("Euler", 16), ("DDIM", 15)])
def test_as_many_steps_of_a_picture_are_done_as_in_a1111(sampler, done):
    found = read_a1111(a1111(f"Sampler: {sampler}, Denoising strength: 0.75"))
    assert found.from_picture
    assert int(20 * found.arguments["strength"]) == done


def test_text_of_this_package_whose_json_was_lost():
    text = "a ring\nSteps: 3, Sampler: Euler a, Schedule type: Karras, Seed: 5, Model: tiny, Version: kerasdiff 0.1.0"
    found = read_a1111({"parameters": text})
    assert (found.program, found.arguments["rng"], found.arguments["spacing"]) == (
        "kerasdiff 0.1.0",
        "philox",
        "karras",
    )


@pytest.mark.parametrize("text", ["", "a holiday", "Steps: 3", "a cat\n Steps: 20, Sampler: Euler"])
def test_other_texts_are_not_of_a1111(text):
    assert read_a1111({"parameters": text}) is None


def test_comfyui():
    found = read_comfyui(graph())
    assert found.arguments == TAKEN
    assert (found.model, found.from_picture, found.left_out) == ("photo.safetensors", False, [])
    assert found.summary == "made by ComfyUI: its noise is torch's on a CPU, as here (rng='torch')"


def test_links_of_comfyui_are_followed():
    more = {
        "8": {"class_type": "PrimitiveNode", "inputs": {"value": "a dog"}},
        "9": {"class_type": "Seed (rgthree)", "inputs": {"seed": 99}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["1", 1]}},
        "10": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["3", 0], "control_net": ["11", 0]}},
        "11": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "canny.safetensors"}},
        "12": {"class_type": "LoraLoader", "inputs": {"lora_name": "unused.safetensors", "model": ["1", 0]}},
    }
    found = read_comfyui(graph(more, seed=["9", 0], positive=["10", 0]))
    assert found.arguments == TAKEN | {"prompt": "a dog", "seed": 99}
    assert found.model == "photo.safetensors"
    assert [control.model for control in found.controls] == ["canny"]
    assert found.left_out == [
        "Seed (rgthree)",
        "LoraLoader unused.safetensors",
    ]


def test_nodes_of_comfyui_that_hold_a_part_each():
    parts = {
        "5": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                **{"noise": ["20", 0], "guider": ["21", 0], "sampler": ["22", 0], "sigmas": ["23", 0]},
                "latent_image": ["2", 0],
            },
        },
        "20": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        "21": {
            "class_type": "CFGGuider",
            "inputs": {"cfg": 8, "positive": ["3", 0], "negative": ["4", 0], "model": ["1", 0]},
        },
        "22": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "dpmpp_2m"}},
        "23": {"class_type": "BasicScheduler", "inputs": {"scheduler": "karras", "steps": 20, "model": ["1", 0]}},
    }
    found = read_comfyui(graph(parts))
    assert found.arguments == TAKEN
    assert found.left_out == []


def test_a_second_pass_and_a_batch_of_comfyui_are_listed():
    more = {
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 4}},
        "8": {"class_type": "LatentUpscale", "inputs": {"upscale_method": "bilinear", "samples": ["5", 0]}},
        "0": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 5, "latent_image": ["8", 0], "denoise": 0.5}},
    }
    found = read_comfyui(graph(more))
    assert found.arguments == TAKEN
    assert sorted(found.left_out) == [
        "LatentUpscale bilinear",
        "a batch of 4, of which the first image has this seed",
        "a further pass (KSampler)",
    ]


def test_a_picture_in_comfyui():
    more = {
        "8": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "2": {"class_type": "VAEEncode", "inputs": {"pixels": ["8", 0], "vae": ["1", 2]}},
    }
    found = read_comfyui(graph(more, denoise=0.5, scheduler="simple", sampler_name="euler_ancestral"))
    assert found.from_picture
    steps, strength = found.arguments["num_steps"], found.arguments["strength"]
    assert (steps, int(steps * strength)) == (40, 20)  # there 20 steps are done
    assert (found.arguments["sampler"], found.arguments["spacing"]) == ("euler_a", "trailing")
    assert found.left_out == ["scheduler simple, of which trailing is the nearest"]


def test_invokeai():
    found = read_invokeai(invoke())
    assert found.arguments == TAKEN
    assert (found.program, found.model, found.left_out) == ("InvokeAI 4.2.6", "photo", [])
    found = read_invokeai(invoke(clip_skip=1, loras=[{}], rand_device="cuda", vae={"name": "x"}))
    assert found.left_out == ["LoRA {}", "vae (1)"]
    assert found.arguments == TAKEN | {"clip_skip": 1}
    assert "the image will differ" in found.summary
    assert read_invokeai(invoke(cfg_rescale_multiplier=0.7)).arguments == {**TAKEN, "guidance_rescale": 0.7}
    assert read_invokeai(invoke(seamless_x=True, seamless_y=False)).arguments == {**TAKEN, "tile": "x"}
    found = read_invokeai(invoke(generation_mode="img2img", strength=0.4))
    assert (found.from_picture, found.arguments["strength"]) == (True, 0.4)


@pytest.mark.parametrize(
    ("prompt", "fields", "taken"),
    [
        ("a cat", "Clip skip: 1", {"prompt": "a cat"}),
        ("a [dog]", "Clip skip: 3", {"prompt": "a [dog]", "prompt_syntax": "a1111", "clip_skip": 2}),
        (r"a \(dog\)", "x: 1", {"prompt": r"a \(dog\)", "prompt_syntax": "a1111"}),
        ("a AND b", "Emphasis: No norm", {"prompt": "a AND b", "prompt_syntax": "a1111", "emphasis": "no_norm"}),
        ("(a)", "Emphasis: None", {"prompt": "(a)"}),
        ("many, " * 13, "x: 1", {"prompt": ("many, " * 13).strip(), "prompt_syntax": "a1111"}),  # chunks end at commas
        ("wide, 16:9", "x: 1", {"prompt": "wide, 16:9", "prompt_syntax": "a1111"}),  # where 9 is its weight
        ("a++", "Prompt syntax: compel", {"prompt": "a++", "prompt_syntax": "compel"}),
    ],
)
def test_what_prompts_of_a1111_mean(prompt, fields, taken):
    found = read_a1111(a1111(fields, prompt)).arguments
    assert {name: found[name] for name in {*taken, "prompt_syntax", "emphasis", "clip_skip"} & {*found}} == taken


def test_loras_and_embeddings_of_a1111():
    fields = 'Lora hashes: "detail: 1a2b, x: 3c4d", TI hashes: "bad_hands: 5e6f"'
    found = read_a1111(a1111(fields, "a cat <lora:detail:0.8>, <lyco:b:0.5:0.7> <hypernet:h:1>, bad_hands"))
    assert found.arguments["prompt"] == "a cat , , bad_hands"
    assert found.loras == [Lora("detail", 0.8, 0.8, short_hash="1a2b"), Lora("b", 0.7, 0.5)]
    assert found.embeddings == [EmbeddingFile("bad_hands", "bad_hands", "5e6f")]
    assert found.left_out == ["hypernet h:1", "Lora hashes x: 3c4d"]
    found = read_a1111(a1111("x: 1", "<lora:none:1>" * 60))
    found.find_adapters([], [])
    assert (len(found.left_out), found.left_out[1]) == (52, "10 more LoRAs")
    found = read_a1111(a1111("x: 1", "a <lora:detail:much>"))
    assert found.left_out[0] == "<lora:detail:much> in a prompt is not of the form <lora:name:0.8>"


def test_loras_and_embeddings_of_comfyui():
    more = {
        "3": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": r"(embedding:sub/toy.pt:1.2) [a] AND b \(c\)", "clip": ["10", 0]},
        },
        "8": {
            "class_type": "LoraLoader",
            "inputs": {
                **{"lora_name": "sub\\detail.safetensors", "strength_model": 0.8, "strength_clip": 0.5},
                **{"model": ["1", 0], "clip": ["1", 1]},
            },
        },
        "9": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"lora_name": "other.safetensors", "strength_model": 1, "model": ["8", 0]},
        },
        "10": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["8", 1]}},
    }
    found = read_comfyui(graph(more, model=["9", 0]))
    assert found.loras == [Lora("detail", 0.8, 0.5), Lora("other", 1.0, 0.0)]
    assert found.embeddings == [EmbeddingFile("toy", "toy")]
    assert found.arguments == TAKEN | {
        "prompt": r"(toy:1.2) \[a\] and b \(c\)",
        "prompt_syntax": "a1111",
        "emphasis": "no_norm",
        "clip_skip": 1,
    }
    assert found.left_out == ["how words are weighted, of which emphasis no_norm is the nearest"]
    more["8"]["inputs"]["strength_model"] = "much"
    assert "LoraLoader" in read_comfyui(graph(more, model=["9", 0])).left_out[1]


def test_loras_and_embeddings_of_invokeai():
    loras = [
        {"model": {"key": "1", "name": "detail"}, "weight": 0.8},
        {"lora": {"model_name": "old"}, "weight": 1},
        {"model": {"name": "x"}},
    ]
    found = read_invokeai(invoke(loras=loras, positive_prompt="a (red cat)1.2 <toy>", clip_skip=2))
    assert found.loras == [Lora("detail", 0.8, 0.8), Lora("old", 1.0, 1.0)]
    assert found.embeddings == [EmbeddingFile("toy", "<toy>")]
    assert found.arguments == TAKEN | {
        **{"prompt": "a (red cat)1.2 <toy>", "prompt_syntax": "compel", "clip_skip": 2},
    }
    assert found.left_out == ["LoRA {'model': {'name': 'x'}}"]
    found = read_invokeai(invoke(positive_prompt="a (cat).swap(dog)"))
    assert "prompt_syntax" not in found.arguments
    assert ".swap() needs control" in found.left_out[0]
    for text in ("a well-known cat - red", "C++ , one+two"):
        assert ("prompt_syntax" in read_invokeai(invoke(positive_prompt=text)).arguments) == text.startswith("C")


def test_adapters_are_found_by_hash_and_by_name(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, name in enumerate(("detail", "renamed", "other", "toy")):
        called = {"ss_output_name": "Trained" if name == "other" else name}
        save_file({name: np.full((1, 768), number, "float32")}, folder / f"{name}.safetensors", called)
    Image.new("RGB", (8, 8)).save(folder / "a.png")  # no embedding
    data = [np.full((1, 768), number, "float32").tobytes() for number in range(4)]
    hashes = [hashlib.sha256(behind).hexdigest()[:12] for behind in data]
    whole = hashlib.sha256((folder / "toy.safetensors").read_bytes()).hexdigest()[:12]
    fields = f'Lora hashes: "wrong: {hashes[1]}, Detail: 000000000000", TI hashes: "toy: {whole}"'
    tags = "<lora:wrong:0.5> <lora:Detail:1> <lora:trained:2> <lora:none:1>"
    found = read_a1111(a1111(fields, f"a toy {tags}"))
    found.find_adapters([Lora(str(folder))], [EmbeddingFile(str(folder))])
    files = [str(folder / f"{name}.safetensors") for name in ("renamed", "detail", "other")]
    assert found.arguments["loras"] == [
        Lora(file, scale, scale) for file, scale in zip(files, (0.5, 1, 2), strict=True)
    ]
    assert found.arguments["embeddings"] == [EmbeddingFile(str(folder / "toy.safetensors"), "toy")]
    assert found.left_out == [
        "the hash of the LoRA Detail: detail.safetensors is another file",
        "the LoRA none, which was not given",
    ]
    found = read_a1111(a1111("x: 1", "a toy"))
    found.find_adapters([Lora(files[0])], [EmbeddingFile(str(folder))])
    assert "loras" not in found.arguments
    assert found.arguments["embeddings"] == [EmbeddingFile(str(folder / "toy.safetensors"), "toy")]
    assert found.left_out[-1] == "renamed.safetensors, which it does not name"


def test_older_invokeai():
    image = {
        "prompt": [{"prompt": "a cat [blur]", "weight": 1.0}],
        "steps": 20,
        "cfg_scale": 8,
        "seed": 7,
        "perlin": 0.1,
    }
    image |= {"width": 512, "height": 768, "type": "txt2img", "sampler": "k_euler_a"}
    old = {"model_weights": "stable-diffusion-1.5", "app_version": "2.2.5", "image": image}
    found = read_invokeai({"sd-metadata": json.dumps(old)})
    without = {key: value for key, value in TAKEN.items() if key != "spacing"}
    assert found.arguments == without | {"sampler": "euler_a"}
    assert (found.model, found.left_out) == ("stable-diffusion-1.5", ["perlin 0.1"])
    found = read_invokeai({"Dream": '"a cat [blur]" -s 20 -S 7 -W512 -H768 -C 8.0 -A plms'})
    assert found.arguments == without | {"sampler": "pndm"}


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ({"prompt": '{"1":' + "[" * 100_000}, "the metadata of ComfyUI is damaged: it is not JSON"),
        ({"invokeai_metadata": "[]"}, "the metadata of InvokeAI is damaged: it is not a JSON object"),
        ({"invokeai_metadata": "{" + " " * 2**20}, "the metadata of InvokeAI is too long: 1048577 characters"),
        ({"parameters": A1111 + " " * 2**20}, "the parameters text is too long"),
        ({"workflow": '{"nodes": []}'}, "it has only the workflow of ComfyUI's editor"),
        ({"prompt": json.dumps({"1": {"class_type": "SaveImage", "inputs": {}}})}, "has no sampler that is known here"),
        ({"prompt": json.dumps({str(n): GRAPH["1"] for n in range(3000)})}, "has 3000 nodes; at most 2000 are read"),
        ({"prompt": "a cat", "seed": "3"}, "has no embedded metadata"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, texts, line):
    from PIL import PngImagePlugin

    assert len("".join(texts.values())) < 2 * PngImagePlugin.MAX_TEXT_MEMORY
    with pytest.raises(kerasdiff.RequestError) as caught:
        metadata.read_any(save(tmp_path / "a.png", texts))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_in_a_circle_ends():
    found = read_comfyui(
        graph({"8": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0]}}}, positive=["8", 0])
    )
    assert "prompt" not in found.arguments
    assert "prompt: no text leads to it" in found.left_out


WRONG = st.sampled_from(
    [None, True, -1, 0, 1e400, float("nan"), 2**70, "", "x", "-3", "9" * 500, [], ["1", 0], {}, [[]]]
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([*sorted(INVOKE), "strength", "init_image"]), WRONG), st.data())
def test_hostile_values_are_listed_or_one_line(changes, data):
    inputs = data.draw(st.dictionaries(st.sampled_from(sorted(GRAPH["5"]["inputs"])), WRONG))
    fields = ", ".join(f"{name}: {value}" for name, value in changes.items())
    tries = [
        (read_invokeai, invoke(**changes)),
        (read_invokeai, {"sd-metadata": json.dumps({"image": changes, "app_version": 3})}),
        (read_comfyui, graph(**inputs)),
        (read_a1111, a1111(f"{fields}, Size: {fields}, Seed: {fields}, Sampler: {fields}")),
    ]
    for read, texts in tries:
        found = read(texts)
        assert len(found.summary) < 2000
        assert found.summary.isprintable()
        for name, check in (("seed", foreign.seed), ("num_steps", foreign.steps), ("width", foreign.side)):
            assert name not in found.arguments or check(found.arguments[name]) is not None


def test_texts_in_jpeg_and_webp(tmp_path):
    for encoding in ("utf-16-be", "utf-16-le"):
        exif = Image.Exif()
        exif[0x8769] = {0x9286: b"UNICODE\0" + A1111.replace("a cat", "猫 é").encode(encoding)}
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
        found = metadata.read_any(tmp_path / "a.jpg").arguments
        assert (found["seed"], found["prompt"]) == (123, "猫 é, (fluffy:1.2)\non a mat")
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{graph()['prompt']}", 'workflow:{"nodes": []}'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert metadata.read_any(tmp_path / "a.webp").arguments == TAKEN


SMALL = {"steps": 2, "sampler_name": "euler", "scheduler": "normal"}
SIZE = {"2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}}


def test_an_image_of_another_program_is_drawn_with_a_model_that_is_given(tiny, tmp_path):
    path = save(tmp_path / "a.png", graph(SIZE, **SMALL))
    with pytest.raises(kerasdiff.RequestError, match=r"made by ComfyUI with 'photo\.safetensors'; give .* as model"):
        kerasdiff.replay(path)
    with pytest.raises(kerasdiff.RequestError, match="was made without an initial image; leave image out"):
        kerasdiff.replay(path, model="tiny", image=np.zeros((64, 64, 3), "uint8"))
    with pytest.warns(UserWarning, match="made by ComfyUI: its noise is torch's on a CPU"):
        result = kerasdiff.replay(path, model="tiny")
    arguments = {"seed": 7, "num_steps": 2, "guidance_scale": 8.0, "sampler": "euler", "spacing": "linspace"}
    same = kerasdiff.generate("a cat", negative_prompt="blur", width=64, height=64, rng="torch", **arguments)
    assert np.array_equal(result.images, same.images)
    with pytest.raises(kerasdiff.RequestError, match="was made by ComfyUI, and only kerasdiff's metadata is read"):
        metadata.read(path)
    save(path, invoke(width=64, height=100))
    with pytest.raises(kerasdiff.RequestError, match=r"a\.png: height=100 is not a multiple of 8"):
        kerasdiff.replay(path, model="tiny")
    save(path, invoke(init_image="x", strength=0.5))
    with pytest.raises(kerasdiff.RequestError, match="made from a picture, which is not in the file; give it as image"):
        kerasdiff.replay(path, model="tiny")


def test_a_model_that_moved_is_given_anew(tiny, tmp_path):
    (path,) = tiny.generate("a ring", seed=1, num_steps=2, height=64, width=64).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = kerasdiff.replay(path, model=kerasdiff.checkpoints.resolve.TINY_FOLDER)
    assert np.array_equal(again[0], np.asarray(Image.open(path)))
    with pytest.raises(kerasdiff.RequestError, match="revision and variant are of a model; give model as well"):
        kerasdiff.replay(path, revision="main")
