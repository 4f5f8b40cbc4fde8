"""Controls and image prompts in receipts, in the texts of other programs, and found again from both."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers
from control_checkpoints import controlnet
from image_prompt_checkpoints import image_encoder, ip_adapter, save_ip_adapter
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_foreign import A1111, graph
from test_receipt import receipt_of

import kerasdiff
from kerasdiff import Control, ImagePrompt, metadata
from kerasdiff.adapters import control_search
from kerasdiff.checkpoints.control_files import control_hash
from kerasdiff.cli import generate_command
from kerasdiff.cli.options import GENERATE
from kerasdiff.controls import Controls
from kerasdiff.images.init_images import Pictures, PictureSets
from kerasdiff.metadata import control_fields
from kerasdiff.metadata.a1111_text import read as read_a1111
from kerasdiff.metadata.comfyui import read as read_comfyui
from kerasdiff.metadata.invokeai import read as read_invokeai

QUICK = {"height": 64, "width": 96, "num_steps": 2, "seed": 3, "progress": False, "sampler": "ddim"}
SHA = "0123456789abcdef" * 4


def pictures(seed, count=3):
    values = np.random.default_rng(seed).integers(0, 256, (count, 16, 8, 3), "uint8")
    return Pictures(values, None, tuple(range(count)))


def steered(**changes):
    """A receipt of three images with two controls and a picture as a prompt."""
    controls = (
        Control("/nets/canny.safetensors", pictures(1), (1.0, 0.5, 0.0), 0.1, 0.8, "control", "canny", SHA),
        Control("org/tile", None, (0.7,) * 3, sha256=SHA),
        Control("off.safetensors", pictures(2), (0.0,) * 3),
    )
    prompts = PictureSets(tuple((picture, picture[:8]) for picture in pictures(3).images))
    prompt = ImagePrompt("/nets/ip-adapter_sd15.bin", prompts, (0.6,) * 3, encoder="/nets/encoder", sha256=SHA)
    request = {"controls": Controls(controls), "image_prompts": Controls((prompt,)), "resize": "stretch"} | changes
    receipt = receipt_of(request)
    return dataclasses.replace(receipt, pictures=control_fields.digests(receipt.request, receipt.index))


def test_a_receipt_has_all_but_the_pictures_and_only_what_acts():
    receipt = steered()
    text = receipt.to_json()
    request = json.loads(text)["request"]
    assert request["controls"] == [
        {
            **{"model": "canny.safetensors", "scale": [1.0, 0.5, 0.0], "start": 0.1, "end": 0.8, "mode": "control"},
            **{"hint": "canny", "sha256": SHA},
        },
        {"model": "org/tile", "scale": 0.7, "sha256": SHA},
    ]
    assert request["image_prompts"] == [
        {"model": "ip-adapter_sd15.bin", "scale": 0.6, "encoder": "encoder", "sha256": SHA}
    ]
    assert sorted(receipt.pictures) == ["controls[0]", "image_prompts[0]"]
    read = metadata.Receipt.from_json(text)
    assert read.to_json() == text
    assert [entry.scale for entry in read.request.controls] == [(1.0, 0.5, 0.0), (0.7, 0.7, 0.7)]
    alone = receipt.alone()
    assert alone.pictures == receipt.pictures
    assert alone.to_json() == read.alone().to_json()
    assert json.loads(alone.to_json())["request"]["controls"][0]["scale"] == 0.5


def test_digests_are_those_of_the_images_own_pictures():
    request = steered().request
    every = [control_fields.digests(request, index) for index in range(3)]
    assert len({one["controls[0]"] for one in every}) == len({one["image_prompts[0]"] for one in every}) == 3
    assert every[1]["controls[0]"] == request.controls.entries[0].image.digests(1)["image"]
    own = dataclasses.replace(request, pictures=pictures(5), image_prompts=None)
    assert sorted(control_fields.digests(own, 0)) == ["controls[0]", "image"]
    without = dataclasses.replace(request, controls=None, image_prompts=None)
    assert control_fields.digests(without, 0) is None
    plain = dataclasses.replace(steered(), request=without)
    assert not {"controls", "image_prompts"} & set(json.loads(plain.to_json())["request"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controls": 7}, "its controls is of a wrong kind"),
        ({"controls": []}, "its controls is of a wrong kind"),
        ({"controls": [{"scale": 1}]}, "does not have model"),
        ({"controls": [{"model": "a", "image": "/etc/passwd"}]}, "has 'image'"),
        ({"controls": [{"model": 7}]}, "its model is of a wrong kind"),
        ({"controls": [{"model": "a", "scale": [1, 2]}]}, "its controls is of a wrong kind"),
        ({"controls": [{"model": "a", "scale": "1"}]}, "its controls is of a wrong kind"),
        ({"controls": [{"model": "a", "scale": True}]}, "its controls is of a wrong kind"),
        ({"controls": [{"model": "a", "start": 0.9, "end": 0.1}]}, "its controls is of a wrong kind"),
        ({"controls": [{"model": "a", "mode": "more"}]}, "its controls is of a wrong kind"),
        ({"controls": [{"model": "a", "sha256": "../.."}]}, "its controls is of a wrong kind"),
        ({"image_prompts": [{"model": "a", "scale": [None] * 3}]}, "its scale is of a wrong kind"),
        ({"image_prompts": [{"model": "a", "mode": "balanced"}]}, "has 'mode'"),
    ],
)
def test_what_a_file_says_of_controls_is_checked(change, message):
    document = json.loads(steered().to_json())
    document["request"] |= change
    with pytest.raises(kerasdiff.RequestError, match=message):
        metadata.Receipt.from_json(json.dumps(document))


def test_the_text_for_automatic1111_has_the_extensions_units_and_is_read_back(tmp_path):
    file = tmp_path / "control_v11p_sd15_canny.pth"
    file.write_bytes(bytes(2**20) + b"weights")
    receipt = steered()
    first, *others = receipt.request.controls
    request = dataclasses.replace(
        receipt.request, controls=Controls((dataclasses.replace(first, model=str(file)), *others))
    )
    text = metadata.parameters_text(dataclasses.replace(receipt, request=request))
    # The first digits of SHA-256 of what is behind the first MiB.
    assert (
        ', ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [9dd3d4e0], Weight: 0.5, '
        "Resize Mode: Just Resize, Threshold A: 100, Threshold B: 200, Guidance Start: 0.1, Guidance End: 0.8, "
        'Pixel Perfect: True, Control Mode: ControlNet is more important", ControlNet 1: "Module: none, Model: tile, '
    ) in text.replace(control_search.short_hash(file), "9dd3d4e0")
    found = read_a1111({"parameters": text})
    assert found.controls == [
        Control("control_v11p_sd15_canny", None, 0.5, 0.1, 0.8, "control", sha256=control_search.short_hash(file)),
        Control("tile", None, 0.7),
    ]
    assert found.image_prompts == [ImagePrompt("ip-adapter_sd15", None, 0.6)]
    assert (found.resize, found.left_out) == ("stretch", ["model hash 0123456789"])


@pytest.mark.parametrize(
    ("fields", "expected", "left_out"),
    [
        (
            'ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1, Resize Mode: Crop and '
            "Resize, Low Vram: False, Processor Res: 512, Threshold A: 100, Threshold B: 200, Guidance Start: 0, "
            'Guidance End: 1, Pixel Perfect: False, Control Mode: Balanced"',
            [Control("control_v11p_sd15_canny", None, 1.0, sha256="d14c016b")],
            [],
        ),
        (
            'ControlNet 0: "preprocessor: lineart_coarse, model: control_v11p_sd15_lineart [43d4be0d], weight: 0.6, '
            "starting/ending: (0.1, 0.8), resize mode: Resize and Fill, pixel perfect: True, control mode: My prompt "
            'is more important, preprocessor params: (512, 32, 64)"',
            [Control("control_v11p_sd15_lineart", None, 0.6, 0.1, 0.8, "prompt", sha256="43d4be0d")],
            ["ControlNet 0 Resize Mode Resize and Fill"],
        ),
        (
            'ControlNet 0: "Module: lineart_standard (from white bg & black line), Model: line, Weight: 1.0, Resize '
            'Mode: ResizeMode.INNER_FIT, Control Mode: ControlMode.CONTROL, Hr Option: HiResFixOption.BOTH", '
            'Controlnet 1: "module: none, model: qr [5e5778cb], weight: 1.1, resize_mode: 1, control_mode: 2"',
            [
                Control("line", None, 1.0, mode="control"),
                Control("qr", None, 1.1, mode="control", sha256="5e5778cb"),
            ],
            [],
        ),
        (
            'ControlNet 0: "Module: openpose_full, Model: None, Weight: 1", ControlNet 1: "Module: None, Model: None", '
            'ControlNet 2: "Module: canny, Model: a, Weight: 0", ControlNet 3: "Module: canny, Model: a, Weight: much"',
            [],
            ["ControlNet 0 (openpose_full), which has no model", "ControlNet 3 a"],
        ),
        (
            'ControlNet 0: "Module: ip-adapter_clip_sd15, Model: ip-adapter_sd15_light [932b88cf], Weight: 0.75, '
            'Resize Mode: Crop and Resize, Guidance Start: 0, Guidance End: 0.77, Control Mode: Balanced"',
            [ImagePrompt("ip-adapter_sd15_light", None, 0.75, 0.0, 0.77, sha256="932b88cf")],
            [],
        ),
    ],
)
def test_units_of_the_extension_are_read(fields, expected, left_out):
    before = ["model hash 6ce0161689", "Lora hashes detail: 1a2b, x: 3c4d"]
    found = read_a1111({"parameters": f"{A1111}, {fields}"})
    assert [*found.controls, *found.image_prompts] == expected
    assert found.left_out[len(before) :] == left_out


@pytest.mark.parametrize(
    "unit", ["a:" * 500_000 + "(", "a:" * 1900 + "(", "(" * 3900, "Model: " + "[" * 3900, "::,:,(,),"]
)
def test_units_from_strangers_are_read_in_no_time(unit):
    found = read_a1111({"parameters": f'{A1111}, ControlNet 0: "{unit}"'})
    assert (len(found.controls), found.image_prompts) == (int("Model" in unit), [])


def test_links_from_strangers_are_no_errors():
    for output in (True, 1.0, "0", None, [], 7, -1):
        node = {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["3", output], "strength": output}}
        found = read_comfyui(graph({"10": node}, positive=["10", output]))
        assert (found.arguments["prompt"], found.controls) == ("a cat", [])


def test_controls_of_comfyui_are_read_and_each_text_is_its_own():
    more = {
        "10": {
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {
                **{"strength": 0.8, "start_percent": 0.0, "end_percent": 1.0, "positive": ["3", 0]},
                **{"negative": ["4", 0], "control_net": ["11", 0], "image": ["13", 0]},
            },
        },
        "11": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "sd15/canny.safetensors"}},
        "12": {"class_type": "LoadImage", "inputs": {"image": "pose.png"}},
        "13": {"class_type": "Canny", "inputs": {"image": ["12", 0], "low_threshold": 0.4, "high_threshold": 0.8}},
        "14": {
            "class_type": "ControlNetApply",
            "inputs": {"conditioning": ["10", 0], "control_net": ["15", 0], "image": ["12", 0], "strength": 0.5},
        },
        "15": {"class_type": "DiffControlNetLoader", "inputs": {"control_net_name": "depth.pth", "model": ["1", 0]}},
        "16": {"class_type": "IPAdapterAdvanced", "inputs": {"weight": 1.0, "preset": "PLUS", "model": ["1", 0]}},
    }
    found = read_comfyui(graph(more, positive=["14", 0], negative=["10", 1]))
    assert (found.arguments["prompt"], found.arguments["negative_prompt"]) == ("a cat", "blur")
    assert found.controls == [Control("canny", None, 0.8), Control("depth", None, 0.5)]
    assert (found.resize, found.left_out) == ("cover", ["IPAdapterAdvanced PLUS"])
    late = copy.deepcopy(more)
    late["10"]["inputs"]["start_percent"] = 0.2
    late["15"]["class_type"] = "ACN_ControlNetLoaderAdvanced"
    found = read_comfyui(graph(late, positive=["14", 0], negative=["10", 1]))
    assert found.controls == [Control("canny", None, 0.8, 0.2, 1.0)]
    assert found.left_out == [
        "start_percent and end_percent count noise levels there, and steps here",
        "ControlNetApply",
        "ACN_ControlNetLoaderAdvanced depth.pth",
        "IPAdapterAdvanced PLUS",
    ]


def test_controls_of_invokeai_are_read_and_layers_are_named():
    adapter = {"type": "controlnet", "model": {"name": "depth"}, "weight": 0.4, "beginEndStepPct": [0, 0.7]}
    values = {
        "positive_prompt": "a cat",
        "controlnets": [
            {
                **{"control_model": {"name": "canny"}, "control_weight": 0.75, "control_mode": "more_control"},
                **{"begin_step_percent": 0.1, "end_step_percent": 0.9, "resize_mode": "fill_resize"},
            },
            {"control_model": {"name": "odd"}, "control_mode": "unbalanced"},
            {"control_model": {"name": "off"}, "control_weight": 0},
        ],
        "t2iAdapters": [{"t2i_adapter_model": {"model_name": "sketch"}, "weight": 0.5}],
        "ipAdapters": [{"ip_adapter_model": {"model_name": "ip"}, "weight": 0.6, "end_step_percent": 0.5}],
        "canvas_v2_metadata": {
            "controlLayers": [
                {"type": "control_layer", "isEnabled": True, "controlAdapter": {**adapter, "controlMode": "balanced"}},
                {"type": "control_layer", "isEnabled": False, "controlAdapter": adapter},
            ],
            "regionalGuidance": [{"type": "regional_guidance", "positivePrompt": "a dog"}],
        },
        "control_layers": {"layers": [{"type": "ip_adapter_layer", "ipAdapter": {"model": {"key": "face"}}}]},
    }
    found = read_invokeai({"invokeai_metadata": json.dumps(values)})
    assert found.controls == [
        Control("canny", None, 0.75, 0.1, 0.9, "control"),
        Control("sketch", None, 0.5),
        Control("depth", None, 0.4, 0.0, 0.7),
    ]
    assert found.image_prompts == [ImagePrompt("ip", None, 0.6, 0.0, 0.5), ImagePrompt("face", None, 1.0)]
    assert found.resize == "cover"
    assert found.left_out == [
        "controlnet resize mode fill_resize",
        "controlnet odd",
        "the layer regional guidance",
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model's folder, and a folder with two ControlNets and an IP-Adapter for it."""
    place = tmp_path_factory.mktemp("control")
    pipe = checkpoints.pipeline("v1", place / "vocabulary")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    for number in range(2):
        controlnet(pipe.unet, seed=number).save_pretrained(place / "nets" / f"net{number}")
    encoder = image_encoder()
    save_ip_adapter(place / "nets" / "ip.safetensors", ip_adapter(pipe.unet, "plain", encoder), encoder)
    return checkpoints.save(pipe, place / "model"), place / "nets"


@pytest.fixture(scope="module")
def generator(made):
    return kerasdiff.Generator(made[0], precision="float32", jit_compile=False, backend="openvino")


def scene():
    pixels = np.full((64, 96, 3), 240, "uint8")
    pixels[16:48, 24:72] = (200, 30, 40)
    return pixels


@pytest.fixture(scope="module")
def saved(made, generator, tmp_path_factory):
    """A picture by a scene as a prompt, and two controls: a ready-made hint and the scene's edges; then the hint."""
    hint = np.random.default_rng(4).integers(0, 256, (64, 96, 3), "uint8")
    controls = [
        Control(str(made[1] / "net1"), hint, 0.8, end=0.9),
        Control(str(made[1] / "net0"), scene(), 0.5, hint="canny", mode="prompt"),
    ]
    prompts = [ImagePrompt(str(made[1] / "ip.safetensors"), scene(), 0.7)]
    result = generator.generate("a red circle", controls=controls, image_prompts=prompts, **QUICK)
    (path,) = result.save(tmp_path_factory.mktemp("saved") / "a.png")
    return path, hint, result[0]


def again(path, *controls, **arguments):
    """The pixels of a replay without any difference."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return kerasdiff.replay(path, controls=list(controls), progress=False, **arguments)


def test_a_steered_picture_is_made_again_with_its_hints_or_what_they_were_made_of(made, saved, tmp_path):
    path, hint, before = saved
    model, nets = map(str, made)
    given = {"model": model, "image_prompts": [(nets, scene())]}
    found = again(path, Control(nets, hint), Control(nets, scene()), **given)
    np.testing.assert_array_equal(found[0], before)
    assert found.receipt(0).to_json() == metadata.read(path).to_json()
    edges = kerasdiff.hints.canny(scene())
    found = again(path, Control(f"{nets}/net1", hint), Control(f"{nets}/net0", edges), **given)
    np.testing.assert_array_equal(found[0], before)
    assert found.request.controls.entries[1].hint == "canny"
    for name, picture in (("hint", hint), ("scene", scene())):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    pictures = [f"--control={nets}:{tmp_path}/hint.png", f"--control={nets}:{tmp_path}/scene.png"]
    pictures += [f"--image_prompt={nets}:{tmp_path}/scene.png", f"--output={tmp_path}/again.png", "--noprogress"]
    assert (
        GENERATE.call(generate_command.generate, ["kerasdiff", f"--replay={path}", f"--model={model}", *pictures]) == 0
    )
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_what_is_missing_or_another_one_is_one_line(made, saved):
    path, hint, _ = saved
    model, nets = map(str, made)
    first, second = Control(nets, hint), Control(nets, scene())
    for message, controls in {
        r"with the control net1, and has neither it nor its picture; give controls=\[Control\(model, image\)\]": (),
        "with 2 controls, and 1 are given; give all, in order": (first,),
        r"control net0, whose picture is not in the file; give it as image of controls\[1\]": (first, Control(nets)),
        r"the scale of controls\[0\]; give its model and its image alone": (Control(nets, hint, 0.5), second),
        r"control net1 \(SHA-256 .*/net0 is not it": (Control(f"{nets}/net0", hint), second),
        r"was made with another one for controls\[0\]": (Control(nets, 255 - hint), second),
        r"was made with another one for controls\[1\]": (first, Control(nets, hint)),
        "there is no ControlNet or adapter": (first, Control(f"{nets}/none", hint)),
    }.items():
        with pytest.raises(kerasdiff.KerasdiffError, match=message) as caught:
            again(path, *controls, model=model, image_prompts=[(nets, scene())])
        assert "\n" not in str(caught.value)


def test_pictures_as_prompts_are_compared_too(made, saved):
    path, hint, _ = saved
    model, nets = map(str, made)
    for message, prompts in {
        r"the image prompt ip.safetensors, and has neither it nor its picture; give image_prompts=\[ImagePrompt\(": [],
        r"whose picture is not in the file; give it as image of image_prompts\[0\]": [ImagePrompt(nets, None)],
        r"was made with another one for image_prompts\[0\]": [ImagePrompt(nets, hint)],
        r"says the scale of image_prompts\[0\]": [ImagePrompt(nets, scene(), 0.2)],
    }.items():
        with pytest.raises(kerasdiff.RequestError, match=message):
            again(path, Control(nets, hint), Control(nets, scene()), model=model, image_prompts=prompts)


def test_one_made_without_controls_takes_none(generator, made, tmp_path):
    (path,) = generator.generate("a red circle", **QUICK).save(tmp_path / "a.png")
    with pytest.raises(kerasdiff.RequestError, match="made without controls; leave them out"):
        again(path, Control(str(made[1]), scene()), model=str(made[0]))
    with pytest.raises(kerasdiff.RequestError, match="made without image_prompts; leave them out"):
        again(path, model=str(made[0]), image_prompts=[ImagePrompt("a", scene())])


def test_a_picture_of_automatic1111_is_steered_by_what_is_given(made, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_BACKEND", "openvino")
    path, (model, nets) = tmp_path / "a.png", made
    digest, chunks = control_hash(nets / "net1")[:8], PngInfo()
    unit = "Weight: 0.8, Resize Mode: Crop and Resize, Guidance Start: 0, Guidance End: 0.9, Control Mode: Balanced"
    chunks.add_text(
        "parameters",
        "a red circle\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 96x64, Model: photo, "
        f'ControlNet 0: "Module: canny, Model: edges [{digest}], {unit}", '
        f'ControlNet 1: "Module: none, Model: NET0 [00000000], {unit}"',
    )
    Image.new("RGB", (96, 64)).save(path, pnginfo=chunks)
    wide = np.pad(scene(), ((0, 0), (32, 32), (0, 0)), mode="edge")
    given = [Control(str(nets), wide, hint="canny"), Control(str(nets), scene())]
    with pytest.warns(UserWarning, match="not taken over: the hash of the control NET0: net0 is another file") as told:
        result = kerasdiff.replay(path, model=model, controls=given, progress=False)
    assert "ControlNet" not in str(told[0].message)
    entries = result.request.controls.entries
    assert [(one.model, one.scale, one.end) for one in entries] == [
        (str(nets / f"net{number}"), (0.8,), 0.9) for number in (1, 0)
    ]
    assert result.request.resize == "cover"
    np.testing.assert_array_equal(entries[0].image.images[0], kerasdiff.hints.canny(scene()))
    found = metadata.read_any(path)
    found.find_controls(path, controls=(), image_prompts=())
    assert found.left_out == ["the control edges, which was not given", "the control NET0, which was not given"]
    assert not {"controls", "resize"} & set(found.arguments)
    with pytest.raises(kerasdiff.RequestError, match=r"made with the control NET0, and .* does not have it"):
        kerasdiff.replay(path, model=model, controls=[given[0], Control(str(tmp_path), scene())])
