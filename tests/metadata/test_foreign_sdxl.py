"""Images that other programs drew with Stable Diffusion XL: sizes, the refiner, texts for each encoder."""

from __future__ import annotations

import dataclasses
import json

import pytest
from test_foreign import GRAPH, INVOKE, TAKEN, a1111, graph, invoke
from test_receipt import RECEIPT

from kerasdiff.metadata import foreign
from kerasdiff.metadata.a1111 import parameters_text
from kerasdiff.metadata.a1111_text import read as read_a1111
from kerasdiff.metadata.comfyui import read as read_comfyui
from kerasdiff.metadata.invokeai import read as read_invokeai
from kerasdiff.models.config import SDXL
from kerasdiff.request import make_request
from kerasdiff.samplers import sampling_levels


def encoder(text, clip=("1", 1), **inputs):
    """ComfyUI's node of a text and sizes, those of the picture of `GRAPH` unless they are given."""
    sizes = {"width": 512, "height": 768, "crop_w": 0, "crop_h": 0, "target_width": 512, "target_height": 768}
    return {
        "class_type": "CLIPTextEncodeSDXL",
        "inputs": {"text_g": text, "text_l": text, "clip": [*clip], **sizes, **inputs},
    }


def of_refiner(text, score, **inputs):
    values = {"ascore": score, "width": 512, "height": 768, "text": text, "clip": ["8", 1], **inputs}
    return {"class_type": "CLIPTextEncodeSDXLRefiner", "inputs": values}


ADVANCED = {
    **{name: value for name, value in GRAPH["5"]["inputs"].items() if name not in ("seed", "denoise")},
    **{"noise_seed": 7, "add_noise": "enable", "start_at_step": 0, "end_at_step": 16},
    "return_with_leftover_noise": "enable",
}
# Both models, each with texts of its own, for 20 steps.
ENSEMBLE = {
    "3": encoder("a cat"),
    "4": encoder("blur"),
    "5": {"class_type": "KSamplerAdvanced", "inputs": ADVANCED},
    "8": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "refiner.safetensors"}},
    "9": of_refiner("a cat", 6.5),
    "10": of_refiner("blur", 2.0),
    "11": {
        "class_type": "KSamplerAdvanced",
        "inputs": {
            **{**ADVANCED, "noise_seed": 0, "add_noise": "disable", "start_at_step": 16, "end_at_step": 10_000},
            **{"model": ["8", 0], "positive": ["9", 0], "negative": ["10", 0], "latent_image": ["5", 0]},
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["8", 2]}},
}


def read_ensemble(**changes):
    nodes = {**GRAPH, **ENSEMBLE}
    for name, inputs in changes.items():
        node = nodes[name[1:]]
        nodes[name[1:]] = {**node, "inputs": {**node["inputs"], **inputs}}
    return read_comfyui({"prompt": json.dumps(nodes)})


def test_an_ensemble_of_comfyui():
    found = read_ensemble()
    end = found.arguments.pop("denoising_end")
    assert found.arguments == TAKEN | {"aesthetic_score": 6.5, "negative_aesthetic_score": 2.0}
    assert (found.model, found.refiner, found.left_out) == ("photo.safetensors", "refiner.safetensors", [])
    # As many of the steps are the first model's, by the rule of diffusers.
    timesteps = sampling_levels(SDXL.schedule, "dpmpp_2m", 20, spacing="karras").timesteps
    assert sum(timesteps >= round(1000 - end * 1000)) == 16
    assert abs(end - 0.8) > 0.03  # as noise levels of this spacing are not even in the timestep


def test_what_the_models_of_an_ensemble_do_not_share_is_listed():
    found = read_ensemble(
        n11={"cfg": 5, "steps": 25, "start_at_step": 18, "scheduler": "normal"},
        n9={"text": "a dog"},
        n10={"ascore": 11},
    )
    assert found.left_out == [
        "the refiner's steps 25",
        "the refiner's cfg 5",
        "the refiner's scheduler 'normal'",
        "the refiner's start_at_step 18",
        "the refiner's positive text 'a dog'",
        "the refiner's negative ascore 11",
    ]


@pytest.mark.parametrize(
    "changes",
    [{"n11": {"model": ["1", 0]}}, {"n11": {"add_noise": "enable"}}, {"n5": {"end_at_step": 20}}],
    ids=["the same model", "new noise", "no steps left"],
)
def test_a_second_sampler_that_is_no_refiner(changes):
    found = read_ensemble(**changes)
    assert found.refiner is None
    assert "denoising_end" not in found.arguments
    assert "a further pass (KSamplerAdvanced)" in found.left_out


def test_a_run_of_comfyui_that_ends_early():
    found = read_comfyui(graph({"5": {"class_type": "KSamplerAdvanced", "inputs": ADVANCED}}, end_at_step=5000))
    assert (
        "denoising_end" in read_comfyui(graph({"5": {"class_type": "KSamplerAdvanced", "inputs": ADVANCED}})).arguments
    )
    assert found.left_out == []


def test_sizes_of_comfyui():
    sizes = {"width": 1024, "height": 2048, "crop_w": 8, "crop_h": 16, "target_width": 640, "target_height": 640}
    found = read_comfyui(graph({"3": encoder("a cat", **sizes), "4": encoder("blur", **sizes)}))
    taken = {"original_size": (2048, 1024), "crop": (16, 8), "target_size": (640, 640)}
    assert found.arguments == TAKEN | taken
    assert found.left_out == []
    found = read_comfyui(graph({"3": encoder("a cat", **sizes)}))  # the other text reads the picture's own
    assert found.arguments == TAKEN | taken | {
        **{"negative_original_size": (768, 512), "negative_crop": (0, 0), "negative_target_size": (768, 512)},
    }
    found = read_comfyui(graph({"3": encoder("a cat", **sizes), "4": encoder("blur", width="x")}))
    assert found.arguments == TAKEN | taken | {"negative_crop": (0, 0), "negative_target_size": (768, 512)}
    assert found.left_out == ["negative original size (768, 'x')"]


def test_sizes_are_in_the_text_for_a1111():
    given = {"original_size": (2048, 1024), "crop": (16, 8), "negative_target_size": (640, 320)}
    arguments = {"height": 1024, "width": 1024, "seed": 3, **given}
    receipt = dataclasses.replace(RECEIPT, request=make_request(SDXL, "a cat", **arguments), index=0)
    text = parameters_text(receipt)
    assert "Original size: 1024x2048, Crop: 8x16, Negative target size: 320x640" in text
    found = read_a1111({"parameters": text})
    assert {name: found.arguments[name] for name in arguments} == arguments
    assert not any(name in found.arguments for name in ("target_size", "negative_crop"))
    found = read_a1111({"parameters": text.replace("8x16", "8x")})
    assert found.left_out[0] == "crop ['', '8']"


def test_texts_of_comfyui():
    found = read_comfyui(graph({"3": encoder("a cat", text_l="a dog"), "4": encoder("")}))
    assert found.arguments == TAKEN | {"negative_prompt": ""}  # is encoded there
    assert found.left_out == ["text_l, as both text encoders read one text here a dog"]
    zeros = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["3", 0]}}
    found = read_comfyui(graph({"4": zeros}))
    assert "negative_prompt" not in found.arguments
    assert found.left_out == []


@pytest.mark.parametrize(
    ("read", "texts", "of_others", "of_sdxl"),
    [
        (read_a1111, a1111("Clip skip: 2"), 1, None),  # which it leaves out for other models only
        (read_a1111, {"parameters": "a\nSteps: 2, Clip skip: 2, Version: kerasdiff 0.1"}, 1, 1),
        (read_comfyui, -1, None, "listed"),
        (read_comfyui, -2, 1, None),  # the usual layer of both encoders
        (read_comfyui, -3, 2, 1),
        (read_invokeai, invoke(clip_skip=1), 1, None),
    ],
)
def test_layers_are_counted_by_the_family_of_the_model(read, texts, of_others, of_sdxl):
    if isinstance(texts, int):
        last = {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": texts, "clip": ["1", 1]}}
        texts = graph({"8": last, "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["8", 0]}}})
    for family, expected in (("sd1", of_others), ("sdxl", of_sdxl)):
        found = read(texts)
        found.take_family(family)
        assert found.arguments.get("clip_skip") == (None if expected == "listed" else expected)
        assert any("last layers" in entry for entry in found.left_out) == (expected == "listed")


def test_other_models_read_no_sizes():
    sizes = {"width": 1024, "crop_h": 16}
    found = read_comfyui(graph({"3": encoder("a cat", **sizes), "4": encoder("blur", **sizes)}))
    found.take_family("sd1")
    assert found.arguments == TAKEN
    assert found.left_out == ["original size (768, 1024)", "crop (16, 0)"]


def test_a_negative_prompt_that_is_empty_is_none_where_it_is_zeros():
    assert "negative_prompt" not in read_a1111(a1111("Seed: 7")).arguments
    assert "negative_prompt" not in read_invokeai(invoke(negative_prompt="")).arguments


STYLED = {
    **INVOKE,
    **{"generation_mode": "sdxl_txt2img", "positive_style_prompt": "oil", "negative_style_prompt": ""},
    **{"refiner_model": {"key": "2", "name": "refiner"}, "refiner_start": 0.8, "refiner_steps": 20},
    **{"refiner_scheduler": "euler", "refiner_cfg_scale": 8},
    **{"refiner_positive_aesthetic_score": 6, "refiner_negative_aesthetic_score": 2.5},
}


def test_an_ensemble_of_invokeai():
    found = read_invokeai({"invokeai_metadata": json.dumps(STYLED)})
    refined = {"denoising_end": 0.8, "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5}
    assert found.arguments == TAKEN | refined
    assert (found.model, found.refiner, found.from_picture) == ("photo", "refiner", False)
    assert found.left_out == [
        "positive style prompt, as both text encoders read one text here oil",
        "refiner scheduler euler",
    ]
    without = {"generation_mode": "sdxl_img2img", "strength": 0.5, "refiner_model": None, "refiner_start": 0.8}
    found = read_invokeai({"invokeai_metadata": json.dumps({**STYLED, **without, "positive_style_prompt": "a cat"})})
    assert found.arguments == TAKEN | {"strength": 0.5}
    assert (found.refiner, found.from_picture, found.left_out) == (None, True, [])


def node(kind, **inputs):
    return {"type": kind, **inputs}


def edge(source, to, field):
    return {"source": {"node_id": source, "field": "any"}, "destination": {"node_id": to, "field": field}}


def test_sizes_of_invokeai():
    sizes = {"original_width": 1024, "original_height": 2048, "crop_top": 16, "crop_left": 8}
    usual = {"target_width": 512, "target_height": 768}
    nodes = {
        "positive": node("sdxl_compel_prompt", **sizes, **usual),
        "negative": node("sdxl_compel_prompt", **sizes, **{**usual, "target_width": 640}),
        "collected": node("collect"),
        "denoise": node("denoise_latents"),
    }
    edges = [
        edge("positive", "collected", "item"),
        edge("collected", "denoise", "positive_conditioning"),
        edge("negative", "denoise", "negative_conditioning"),
    ]
    found = read_invokeai({**invoke(), "invokeai_graph": json.dumps({"nodes": nodes, "edges": edges})})
    assert found.arguments == TAKEN | {
        **{"original_size": (2048, 1024), "crop": (16, 8), "negative_target_size": (768, 640)},
    }
    for strange in ("[]", '{"nodes": [], "edges": [1, {"source": 3}]}', '{"edges": {}}', "{"):
        assert read_invokeai({**invoke(), "invokeai_graph": strange}).arguments == TAKEN


def test_what_has_been_passed_of_more_steps_than_there_are():
    assert foreign.passed({"num_steps": 5000, "spacing": "trailing"}, 4000) == 0.8
