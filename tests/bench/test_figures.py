"""What is computed from measurements: work, ratios, differences, utilisation."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from kerasdiff.bench import machine, ours, report, subjects, summary
from kerasdiff.bench.ddim_loop import ddim, levels_of
from kerasdiff.bench.flops import decoder_macs, request_macs, text_encoder_macs, unet_macs
from kerasdiff.bench.parts import Part, step_parts, unet_parts
from kerasdiff.bench.roofline import least_times
from kerasdiff.bench.task import Subject, Workload
from kerasdiff.models.config import SD_V1, SD_V2, TINY, ScheduleConfig
from kerasdiff.models.network_configs import TinyVAEConfig
from kerasdiff.runtime import platform_info
from kerasdiff.samplers import sampling_levels


def test_work_of_stable_diffusion():
    unet = unet_macs(SD_V1.unet, 64, 64)
    billions = [value / 1e9 for value in (unet.convolution, unet.linear, unet.attention, unet.total)]
    assert billions == pytest.approx([222.0, 116.6, 63.0, 401.6], abs=0.05)
    # 2.x is the same network with other heads and a wider context.
    wider = unet_macs(SD_V2.unet, 64, 64)
    assert (wider.convolution, wider.attention) == (unet.convolution, unet.attention)
    # Two multiply-adds a parameter and token, near enough, for a transformer of 85 M parameters.
    assert text_encoder_macs(SD_V1.text_encoder).linear == pytest.approx(77 * 85.0e6, rel=0.01)
    assert decoder_macs(SD_V1.vae, 64, 64).total == pytest.approx(1257e9, rel=0.01)


def test_work_of_a_request():
    base = Workload(num_steps=10)
    once = request_macs(SD_V1, base).total
    step = 2 * unet_macs(SD_V1.unet, 64, 64).total
    assert request_macs(SD_V1, Workload(num_steps=11)).total - once == pytest.approx(step)
    unguided = request_macs(SD_V1, Workload(num_steps=10, guidance_scale=1)).total
    assert unguided + 10 * step / 2 + text_encoder_macs(SD_V1.text_encoder).total == pytest.approx(once)
    assert request_macs(SD_V1, Workload(num_steps=10, batch_size=2)).total > 1.99 * once


SMALL = dataclasses.replace(TINY.unet, middle=None, only_cross_attention=(False, True))


@pytest.mark.parametrize(("unet", "side"), [(TINY.unet, 2), (SMALL, 3)])
def test_work_agrees_with_the_parameters(unet, side):
    # At one latent cell a level, nothing but weights is left: each kernel is used once an output cell.
    from kerasdiff.models.layers import parameters_of
    from kerasdiff.models.networks import make_network

    shapes = parameters_of(make_network("unet", dataclasses.replace(TINY, unet=unet), "float32"))
    work = unet_macs(unet, side, side, 1)
    expected = 0
    for name, shape in shapes.items():
        if name.endswith(".kernel"):
            expected += int(np.prod(shape)) * cells(name, side, "attn2" if unet is TINY.unet else "attn")
    assert work.convolution + work.linear == expected


def cells(name, side, reading):
    """How often a kernel of the tiny U-Net (two levels, the second one with attention) is used."""
    if "time_emb" in name or (reading in name and name.endswith(("to_k.kernel", "to_v.kernel"))):
        return 1
    coarse = any(part in name for part in ("down_blocks.1", "mid_block", "up_blocks.0.", "downsamplers"))
    return math.ceil(side / 2) ** 2 if coarse and "upsamplers" not in name else side**2


def test_work_of_a_small_decoder():
    from kerasdiff.models.layers import parameters_of
    from kerasdiff.models.networks import make_network

    vae = TinyVAEConfig(decoder_width=8, encoder_blocks=(1, 1, 1), decoder_blocks=(2, 1, 3))
    kernels = parameters_of(make_network("decoder", dataclasses.replace(TINY, vae=vae), "float32")).items()
    expected, doublings = 0, 0
    for name, shape in kernels:
        if name.endswith(".kernel"):
            # The convolution behind a doubling has no bias.
            doublings += name.replace(".kernel", ".bias") not in dict(kernels)
            expected += int(np.prod(shape)) * 3 * 5 * 4**doublings
    assert decoder_macs(vae, 3, 5).total == expected


def test_parts_of_a_step():
    # The published network has 859.5 M parameters; what is missing are its norms, biases and nothing else.
    every = unet_parts(SD_V1.unet, 32, 32)
    assert sum(part.weights * count for part, count in every.items()) == pytest.approx(859.1e6, rel=1e-4)
    parts = step_parts(SD_V1, Workload(height=256, width=256, batch_size=2))
    # Both halves of guidance are one until the first attention to a text, behind which they have twice the rows.
    assert parts[Part("convolution", (2, 32, 32, 4, 320, 3, 1))] == 1
    assert parts[Part("attention", (2, 8, 1024, 1024, 40))] == 1
    assert parts[Part("attention", (4, 8, 1024, 1024, 40))] == 4
    assert parts[Part("attention", (4, 8, 1024, 77, 40))] == 5
    # A doubling from 4 x 4 to 8 x 8 in four phases; no keys or values of texts.
    assert parts[Part("convolution", (4, 4, 4, 1280, 1280, 2, 1))] == 4
    assert not any(part.kind == "linear" and part.shape[1] == 768 for part in parts)
    once = step_parts(SD_V1, Workload(height=256, width=256, batch_size=2, guidance_scale=1))
    assert {part.shape[0] for part in once if part.kind != "linear"} == {2}


FAST, SLOW = Part("convolution", (1, 10, 10, 100, 100, 1, 1)), Part("convolution", (1, 1, 1, 100, 100, 1, 1))
DENSE, MIXED = Part("linear", (50, 100, 100)), Part("attention", (1, 5, 100, 100, 5))


def test_the_least_time_of_a_step_of_known_parts():
    # 2 GFLOP/s in the first convolution and 1 in products; the second convolution took 50 times as long as it must.
    parts, seconds = {FAST: 2, SLOW: 3, DENSE: 1, MIXED: 4}, {FAST: 1e-3, SLOW: 5e-4, DENSE: 1e-3, MIXED: 2e-3}
    found = least_times(parts, seconds, 1e9, 4)
    assert found["gflops"] == pytest.approx({"convolution": 2.0, "product": 1.0})
    assert [part["least_ms"] for part in found["parts"]] == pytest.approx([1, 0.01, 1, 0.5 * 2])
    assert [part["alone_ms"] for part in found["parts"]] == pytest.approx([1, 0.5, 1, 2])
    assert found["step_s"] == pytest.approx(1e-3 * (2 * 1 + 3 * 0.01 + 1 + 4 * 1))
    assert found["alone_s"] == pytest.approx(1e-3 * (2 * 1 + 3 * 0.5 + 1 + 4 * 2))
    # Weights that no cache holds: 40 kB of each part pass through memory at 1 GB/s, and those of 20,000 small ones.
    parts[SLOW] = 20_000
    found = least_times(parts, seconds, 1e9, 4)
    assert [part["least_ms"] for part in found["parts"]] == pytest.approx([1, 0.04, 1, 1])


@pytest.mark.parametrize(
    ("processor", "folder"),
    [
        ("AMD EPYC avx2 avx512f avx512_bf16", "amd-epyc-avx512-bf16"),
        ("AMD EPYC 9R14 96-Core Processor avx2 avx512f avx512_bf16", "amd-epyc-9r14-avx512-bf16"),
        ("Intel(R) Xeon(R) Processor @ 2.10GHz avx2 avx512f avx512_bf16 amx_bf16", "intel-xeon-amx-bf16"),
        ("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz avx2", "intel-core-i7-8700k-avx2"),
        ("arm", "arm"),
        ("", "unknown"),
    ],
)
def test_results_are_in_a_folder_named_after_the_processor(monkeypatch, processor, folder):
    monkeypatch.setattr(platform_info, "processor", lambda: processor)
    assert machine.results_folder().as_posix() == f"benchmarks/results/{folder}"


def test_published_results_are_in_the_folder_of_their_processor():
    for path in (pathlib.Path(__file__).parents[2] / "benchmarks" / "results").glob("*/**/*.json"):
        facts = json.loads(path.read_text()).get("machine", {})
        assert facts.get("gpu") or platform_info.processor_slug(facts["processor"]) in path.parts, path


def test_a_configuration_of_ours_has_any_options(monkeypatch):
    monkeypatch.setitem(ours.CONFIGS, "other", {"precision": "auto", "backend": "another"})
    (subject,) = ours.our_subjects(["other"], gpu=True)
    assert subject.name == "kerasdiff other"
    assert subject.options == {"precision": "auto", "backend": "another", "files": "float16"}


def told(number, cold, runs, kind="only", status="ok", **others):
    values = {"cold_s": cold, "cold_parts": {"run": cold}, "runs_s": runs, "one_step_s": [0.5], "precision": "float32"}
    return {
        "round": number,
        "kind": kind,
        "status": status,
        "peak_memory_gb": 1.0,
        "device_memory_gb": None,
        "reason": None,
        **(values if status == "ok" else {}),
        **others,
    }


def row(name, rounds, num_steps=5):
    return summary.summarise(name, rounds, Workload(num_steps=num_steps), {"float32": {"step_s": 0.3}})


def test_ratios_are_taken_in_each_round():
    ours = row("kerasdiff auto", [told(1, 9.0, [], "first"), told(1, 2.0, [1.0, 1.2, 1.1]), told(2, 4.0, [2.0])])
    # Twice as slow in both rounds, in one of which the machine was slower.
    theirs = row("other", [told(1, 10.0, [2.2]), told(2, 12.0, [4.0])])
    failed = row("third", [told(1, 1.0, [3.3]), told(2, 0, [], status="killed", reason="memory")])
    rows = [ours, theirs, failed]
    summary.add_ratios(rows)
    assert ours["ratio_warm"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert theirs["ratio_warm"] == pytest.approx({"median": 2.0, "min": 2.0, "max": 2.0})
    assert theirs["ratio_cold"] == pytest.approx({"median": 4.0, "min": 3.0, "max": 5.0})
    assert failed["ratio_warm"]["median"] == pytest.approx(3.0)
    assert failed["status"] == "killed"
    assert ours["cold_first_s"] == 9.0
    assert ours["cold_s"] == 3.0


def test_without_the_subject_there_are_no_ratios():
    rows = [row("other", [told(1, 10.0, [2.2])])]
    summary.add_ratios(rows)
    assert rows[0]["ratio_warm"] is None


def test_rows_with_a_controlnet_are_beside_their_own():
    plain, steered = row("kerasdiff auto", [told(1, 2.0, [2.5])]), row("kerasdiff auto control", [told(1, 3.0, [3.5])])
    theirs, theirs_steered = row("other", [told(1, 10.0, [4.5])]), row("other control", [told(1, 10.0, [7.0])])
    rows = [plain, steered, theirs, theirs_steered]
    summary.add_ratios(rows)
    assert [each["ratio_control"] for each in rows] == [None, pytest.approx(1.5), None, pytest.approx(1.625)]
    assert steered["ratio_warm"]["median"] == 1.0
    assert theirs_steered["ratio_warm"]["median"] == pytest.approx(2.0)
    assert (steered["utilisation"], plain["utilisation"]) == (None, pytest.approx(0.6))
    levels = zip(rows, (9, 99, 10, 98), strict=True)
    images = {each["name"]: np.full((1, 2, 2, 3), level, "uint8") for each, level in levels}
    summary.add_differences(rows, images)
    assert [each["max_difference"] for each in rows] == [0, 0, 1, 1]
    both = [*ours.our_subjects(["auto"], gpu=False), Subject("other", "other:Session")]
    found = subjects.with_controls(both, True)
    assert [subject.name for subject in found] == ["kerasdiff auto", "kerasdiff auto control", "other"]


def test_a_row_of_figures():
    figures = row("other", [told(1, 10.0, [2.5, 4.0, 3.0])])
    assert figures["warm_s"] == 3.0
    assert figures["warm_spread_s"] == [2.5, 4.0]
    assert figures["step_ms"] == pytest.approx(1000 * (2.5 - 0.5) / 4)
    # A step that needs 0.3 s took 0.5 s.
    assert figures["utilisation"] == pytest.approx(0.6)
    once = row("other", [told(1, 10.0, [2.5])], num_steps=1)
    assert (once["step_ms"], once["utilisation"]) == (None, None)
    assert row("other", [told(1, 10.0, [0.5])])["utilisation"] is None  # as fast as one step: not measurable


def test_a_row_whose_runs_differ_is_marked():
    quiet, noisy = row("quiet", [told(1, 10.0, [2.0, 2.3])]), row("loud", [told(1, 9.0, [2.0]), told(2, 11.0, [2.5])])
    results = {
        "rows": [quiet, noisy],
        "settings": vars(Workload()),
        "machine": {},
        "ceilings": {"float32": least_times({FAST: 1}, {FAST: 1e-3}, 2e10, 4)},
    }
    lines = report.table(results).splitlines()
    assert lines[2].split()[:8] == ["row", "cold", "s", "least..most", "warm", "s", "least..most", "ms/step"]
    assert lines[4].split()[:5] == ["quiet", "10.0", "-", "2.15", "2.00..2.30"]
    assert lines[5].split()[:6] == ["loud", "(noisy)", "10.0", "9.00..11.0", "2.25", "2.00..2.50"]
    assert lines[-3] == report.NOISY
    assert lines[-2].startswith("least time of a step in float32: 1.00 ms (convolutions 2 GFLOP/s, memory 20 GB/s);")
    assert "| loud (noisy) |" in report.markdown(results)
    assert report.NOISY not in report.table({**results, "rows": [quiet]})


def test_differences_are_to_the_reference():
    rows = [row(name, []) for name in ("a", "kerasdiff standard", "b", "c")]
    images = {
        "a": np.full((1, 2, 2, 3), 10, "uint8"),
        "kerasdiff standard": np.full((1, 2, 2, 3), 250, "uint8"),
        "b": np.full((1, 2, 2, 3), 255, "uint8"),
        "c": np.zeros((1, 1, 2, 3), "uint8"),
    }
    summary.add_differences(rows, images)
    assert [line["max_difference"] for line in rows] == [240, 0, 5, None]
    assert rows[3]["status"] == "failed"


def test_ddim_finds_the_only_picture_there_is():
    # A network that knows the picture leads to it from any noise, with each prediction type and with guidance.
    picture = np.random.default_rng(0).standard_normal((1, 4, 4, 4))
    noise = np.random.default_rng(1).standard_normal((1, 4, 4, 4), "float32")
    for kind in ("epsilon", "v_prediction"):
        schedule = ScheduleConfig(prediction_type=kind)
        levels = levels_of(schedule, 5)
        assert np.array_equal(levels.sigmas, sampling_levels(schedule, "ddim", 5, spacing="keras_cv").sigmas)

        def unet(x, timestep, kind=kind, levels=levels):
            sigma = levels.sigma(timestep)
            scale = np.sqrt(1 + sigma**2)
            epsilon = (x * scale - picture) / sigma
            return epsilon if kind == "epsilon" else (epsilon - sigma * picture) / scale

        for guidance_scale in (1, 4.0):
            assert np.abs(ddim(unet, noise, levels, guidance_scale) - picture).max() < 1e-3
