"""The benchmark of Stable Diffusion XL: everybody does the same work, and it is counted right."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from xl_checkpoints import xl_pipeline

import kerasdiff
import kerasdiff.bench.__main__ as bench
from kerasdiff.bench import checkpoint_files, run, subjects
from kerasdiff.bench.flops import (
    MacCount,
    controlnet_macs,
    decoder_macs,
    hint_macs,
    request_macs,
    text_encoder_macs,
    unet_macs,
)
from kerasdiff.bench.ours import request_of
from kerasdiff.bench.parts import Part, step_parts, unet_parts
from kerasdiff.bench.peers import bare_networks, diffusers, openvino_ir
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import SDXL, SDXL_REFINER
from kerasdiff.models.control_configs import ControlNetConfig

NOISE = np.random.default_rng(0).standard_normal((1, 8, 12, 4), "float32")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    place = tmp_path_factory.mktemp("xl")
    made = xl_pipeline("base", place / "vocabulary")
    made.save_pretrained(place / "model")
    made.set_progress_bar_config(disable=True)
    made.folder = place / "model"
    return made


@pytest.fixture(scope="module")
def task(pipe):
    """Makes tasks of a subject for the small model; they share the files that are written for them."""
    work = str(pipe.folder.parent / "work")

    def made(subject=None, **changes):
        values = {"num_steps": 2, "height": 64, "width": 96, "guidance_scale": 5.0, "prompt": "a red circle"}
        workload = Workload(str(pipe.folder), "pretrained", **{**values, **changes})
        return Task("measure", workload, subject or Subject("any"), work)

    return made


class TorchSession(bare_networks.NetworksSession):
    """The networks as PyTorch has them, before any runtime gets them."""

    def __init__(self, task):
        super().__init__(task, Clock(time.time()))
        modules = {network: bare_networks.exported(task, network)[0] for network in self.networks_of(task)}

        def run(module):
            def outputs(*inputs):
                found = module(*map(torch.from_numpy, inputs))
                return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]

            return torch.no_grad()(outputs)

        self.networks = {name: run(module) for name, module in modules.items()}


def theirs(task, **changes):
    (subject,) = diffusers.subjects(["float32"], gpu=False)
    return diffusers.DiffusersSession(task(subject, **changes), Clock(time.time()))


def test_peers_and_we_draw_the_same_picture(task):
    checkpoint_files.write_diffusers_folder(task(), "float32")
    expected = theirs(task).run(NOISE, 2).astype(int)
    assert expected.std() > 20
    generator = kerasdiff.Generator(checkpoint_files.diffusers_folder(task(), "float32"), precision="float32")
    ours = generator.run(request_of(generator.config, task().workload, 2), latents=NOISE, progress=False).images
    assert abs(ours - expected).max() <= 1
    assert abs(TorchSession(task()).run(NOISE, 2) - expected).max() <= 1


def test_peers_draw_the_same_picture_with_the_settings_of_a_distilled_model(task):
    settings = {"guidance_scale": 1.0, "spacing": "trailing"}
    checkpoint_files.write_diffusers_folder(task(), "float32")
    expected = theirs(task, **settings).run(NOISE, 2).astype(int)
    assert abs(TorchSession(task(**settings)).run(NOISE, 2) - expected).max() <= 1


def test_openvino_gets_large_networks_in_half_precision(task, monkeypatch, tmp_path):
    chosen = ("text_encoder_2", "unet")
    monkeypatch.setattr(openvino_ir.OpenVINOSession, "networks_of", lambda task: chosen)
    (subject,) = openvino_ir.subjects(["bfloat16"], gpu=False)
    one = dataclasses.replace(task(subject, height=128, width=256), work=str(tmp_path))  # traced with 16 x 16
    openvino_ir.OpenVINOSession.prepare(one)
    assert not checkpoint_files.diffusers_folder(one, "float32").exists()
    runtime = openvino_ir._runtime().Core()
    for network in chosen:
        files = openvino_ir.OpenVINOSession.folder(one) / f"{network}.xml"
        module, inputs = bare_networks.exported(one, network, "float32")
        size = sum(parameter.numel() for parameter in module.parameters())
        assert 1.9 * size < files.with_suffix(".bin").stat().st_size < 2.2 * size
        request = runtime.compile_model(files, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        request.infer([value.numpy() for value in inputs.values()])
        with torch.no_grad():
            expected = module(*inputs.values())
        expected = expected if isinstance(expected, tuple) else (expected,)
        for tensor, value in zip(request.output_tensors, expected, strict=True):
            np.testing.assert_allclose(tensor.data, value, atol=0.05)


def test_work_is_what_pytorch_counts(pipe, task):
    config = checkpoint_files.open_checkpoint(task().workload).config
    workload = task(num_steps=1, guidance_scale=5.0).workload
    options = {"height": workload.height, "width": workload.width, "guidance_scale": 5.0, "output_type": "np"}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe(workload.prompt, num_inference_steps=1, **options)
    counted = {name: sum(kinds.values()) / 2 for name, kinds in counter.get_flop_counts().items()}
    size = workload.height // 8, workload.width // 8
    assert counted["UNet2DConditionModel"] == 2 * unet_macs(config.unet, *size).total
    assert counted["CLIPTextModelWithProjection"] == text_encoder_macs(config.text_encoder_2).total
    assert decoder_macs(config.vae, *size).total == counted["Decoder"] + 4 * 4 * size[0] * size[1]
    # Of the first text encoder they compute the last layer too, which nobody reads.
    read = counted["CLIPTextModel"] - counted["CLIPTextModel.encoder.layers.2"]
    assert text_encoder_macs(config.text_encoder).total == read
    total = sum(counted[name] for name in ("UNet2DConditionModel", "CLIPTextModelWithProjection", "Decoder"))
    assert request_macs(config, workload).total == total + read + 4 * 4 * size[0] * size[1]


def test_everybody_steers_alike_and_the_work_is_what_pytorch_counts(task):
    (_, subject) = subjects.with_controls(diffusers.subjects(["float32"], gpu=False), True)
    one = task(subject)
    checkpoint_files.write_diffusers_folder(one, "float32")
    folder = checkpoint_files.write_control_folder(one, "float32")
    session = diffusers.DiffusersSession(one, Clock(time.time()))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        expected = session.run(NOISE, 1).astype(int)
    generator = kerasdiff.Generator(checkpoint_files.diffusers_folder(one, "float32"), precision="float32")
    controls = kerasdiff.Control(str(folder), checkpoint_files.hint_of(one.workload))
    steered, plain = (
        generator.run(request_of(generator.config, one.workload, 1, each), latents=NOISE, progress=False).images
        for each in (controls, None)
    )
    assert abs(steered - expected).max() <= 1
    assert abs(plain - expected).max() > 3
    # They encode the hint in each step, and for both halves of guidance.
    counted = sum(counter.get_flop_counts()["ControlNetModel"].values()) / 2
    unet = generator.config.unet
    hint, half = hint_macs(ControlNetConfig(unet=unet), 64, 96), controlnet_macs(unet, 8, 12)
    assert counted == 2 * (hint.total + half.total)
    with_one = request_macs(generator.config, dataclasses.replace(one.workload, control=True)).total
    assert with_one - request_macs(generator.config, one.workload).total == hint.total + 4 * half.total


def test_parts_of_a_step_at_full_size():
    # The published network has 2567.46 M parameters; what is missing are its norms and biases.
    every = unet_parts(SDXL.unet, 128, 128)
    assert sum(part.weights * count for part, count in every.items()) == pytest.approx(2565.9e6, rel=1e-4)
    step = step_parts(SDXL, Workload(height=1024, width=1024))
    assert sum((MacCount(**{part.kind: count * part.macs}) for part, count in step.items()), MacCount()).total > 6e12
    # Both halves of guidance have sizes of their own, and are one in the first layer only.
    assert {part.shape[0] for part in step if part.kind == "convolution"} == {1, 2}
    assert sum(count for part, count in step.items() if part.shape[0] == 1 and part.kind == "convolution") == 1
    deepest = Part("attention", (2, 20, 1024, 1024, 64))
    assert step[deepest] == 10 * (2 + 1 + 3)


def test_rows_of_sdxl(monkeypatch):
    found, absent = subjects.peer_subjects(
        ["diffusers", "openvino", "keras_cv", "onnxruntime"], SDXL, Workload(), False
    )
    assert [row.name for row in found] == ["diffusers f32", "diffusers bf16", "openvino f32", "openvino bf16"]
    assert absent == {
        "keras_cv": "KerasCV builds Stable Diffusion 1.x and 2.x at full size only",
        "onnxruntime": "ONNX Runtime is compared on Stable Diffusion 1.x and 2.x only: its files of a larger model are "
        "float32",
    }
    monkeypatch.setattr(subjects.importlib.util, "find_spec", lambda name: name)
    cpp, absent = subjects.peer_subjects(["stable_diffusion_cpp"], SDXL, Workload(), gpu=False)
    assert ([row.name.split()[1] for row in cpp], absent) == (["f32", "f16", "q8_0"], {})
    assert subjects.peer_subjects(["stable_diffusion_cpp"], SDXL_REFINER, Workload(), gpu=False)[1] == {
        "stable_diffusion_cpp": "stable-diffusion.cpp builds published networks at full size only"
    }


def test_a_refiner_is_refused(capsys, tmp_path):
    assert bench.PROGRAM.call(bench.main, ["bench", "--model=sdxl-refiner", f"--output={tmp_path}"]) == 2
    said = "model=sdxl-refiner refines pictures, and what is measured is text to image; use sdxl"
    assert capsys.readouterr() == ("", f"kerasdiff.bench: {said}\n")


def test_files_are_written_before_anything_is_measured(capsys, tmp_path, monkeypatch, pipe):
    done = []
    answers = iter([{"status": "ok"}, {"status": "failed", "reason": "no room"}])
    monkeypatch.setattr(run, "run_task", lambda task, _: (done.append(task), next(answers))[1])
    flags = ["--prepare", "--configs=auto", "--peers=keras_cv,diffusers", "--peer_precisions=bfloat16"]
    arguments = ["bench", f"--model={pipe.folder}", f"--output={tmp_path}", "--weights=random", *flags]
    assert bench.PROGRAM.call(bench.main, [*arguments, "--noprogress"]) == 1
    assert [(task.action, task.subject.name) for task in done] == [
        ("prepare", "kerasdiff auto"),
        ("prepare", "diffusers bf16"),
    ]
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert (out, len(lines)) == ("", 2)
    assert lines[0].startswith("kerasdiff.bench: keras_cv: ")
    assert lines[1] == "kerasdiff.bench: diffusers bf16: its files could not be prepared: no room"


def test_results_of_before_there_was_a_spacing_are_gone_on_with(tmp_path):
    settings = {name: value for name, value in vars(Workload()).items() if name != "spacing"}
    results = {"settings": settings, "machine": {}, "ceilings": {}, "rows": []}
    (tmp_path / run.RESULTS).write_text(json.dumps(results))
    run.Benchmark(Workload(), tmp_path).resume()
    with pytest.raises(kerasdiff.RequestError, match="measured with spacing='keras_cv', not 'trailing'"):
        run.Benchmark(Workload(spacing="trailing"), tmp_path).resume()
