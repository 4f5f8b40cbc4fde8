"""Writes tables of pages from what they are about and from measured results: python docs/make_tables.py."""

from __future__ import annotations

import json
import pathlib
import re

import kerasdiff
from kerasdiff.models.config import SD_V1
from kerasdiff.samplers import sampling_levels, sampling_table
from kerasdiff.synonyms import SYNONYMS

DOCS = pathlib.Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
WITH_TABLES = ("samplers", "troubleshooting", "performance", "adapters")
PAGES = (DOCS.parent / "README.md", *(DOCS / f"{name}.md" for name in WITH_TABLES))
SIZES = (256, 512)
# Rows of the benchmark that have another name in the README.
ROWS = {
    "kerasdiff auto": "kerasdiff",
    "kerasdiff tensorflow": "kerasdiff on TensorFlow",
    "keras_cv xla": "KerasCV, XLA, float32",
    "diffusers bf16": "diffusers, bfloat16",
    "openvino bf16": "OpenVINO, bfloat16",
    "kerasdiff auto_float32": "kerasdiff, float32",
    "diffusers f32": "diffusers, float32",
    "openvino f32": "OpenVINO, float32",
    "stable_diffusion_cpp f16": "stable-diffusion.cpp, float16",
    "stable_diffusion_cpp q8_0": "stable-diffusion.cpp, 8 bits",
}


def samplers() -> str:
    """One row per sampler."""
    rows = json.loads((RESULTS / "sampler_quality.json").read_text())["rows"]
    lines = ["| name | what it is | evaluations | noise | right at 25 steps |", "|---|---|---|---|---|"]
    for name, sampler in kerasdiff.SAMPLERS.items():
        table = sampling_table(sampling_levels(SD_V1.schedule, name, 10), name, {})
        evaluations = {10: "n", 11: "n + 1", 19: "2n - 1"}[len(table)]
        fresh = "every step" if table.noisy.any() else "none"
        right = f"{100 * rows[name]['right']['all']:.1f} %"
        lines.append(f"| `{name}` | {sampler.summary} | {evaluations} | {fresh} | {right} |")
    return "\n".join(lines)


def options() -> str:
    """The options of the samplers that have some."""
    lines = ["| name | in diffusers | options and their defaults |", "|---|---|---|"]
    for name, sampler in kerasdiff.SAMPLERS.items():
        classes = ", ".join(f"`{alias}`" for alias in sampler.aliases if alias.endswith("Scheduler")) or "an option"
        own = ", ".join(f"`{key}={value!r}`" for key, value in sampler.options.items()) or "none"
        lines.append(f"| `{name}` | {classes} | {own} |")
    return "\n".join(lines)


def spacings() -> str:
    """One row per spacing."""
    lines = ["| name | what it is |", "|---|---|"]
    for name, function in kerasdiff.SPACINGS.items():
        lines.append(f"| `{name}` | {(function.__doc__ or '').splitlines()[0]} |")
    return "\n".join(lines)


def recipes() -> str:
    """One row per recipe."""
    lines = ["| name | for | sampler | steps |", "|---|---|---|---|"]
    for name, recipe in kerasdiff.RECIPES.items():
        own = "".join(f", {key}={value}" for key, value in recipe.sampler_options.items())
        levels = (
            f"timesteps {', '.join(f'{time:g}' for time in recipe.timesteps)}" if recipe.timesteps else recipe.spacing
        )
        predicts = f", predicts {recipe.prediction_type}" if recipe.prediction_type else ""
        predicts += f", {recipe.size} x {recipe.size}" if recipe.size else ""
        lines.append(f"| `{name}` | {recipe.about} | {recipe.sampler}{own}, {levels}{predicts} | {recipe.num_steps} |")
    return "\n".join(lines)


def words() -> str:
    """What other programs call an argument."""
    lines = ["| here | elsewhere |", "|---|---|"]
    lines += [f"| `{ours}` | {', '.join(f'`{word}`' for word in words.split())} |" for ours, words in SYNONYMS.items()]
    return "\n".join(lines)


def speed() -> str:
    """A table for each processor whose folder has results of both sizes."""
    return "\n\n".join(_speed(folder.parent) for folder in sorted(RESULTS.glob(f"*/peers_{SIZES[0]}")))


def _speed(processor: pathlib.Path) -> str:
    measured = [json.loads((processor / f"peers_{size}" / "results.json").read_text()) for size in SIZES]
    machine, rows = measured[0]["machine"], [{row["name"]: row for row in one["rows"]} for one in measured]
    links = [
        f"[{size} x {size}, {one['settings']['num_steps']} steps]"
        f"({processor.relative_to(DOCS.parent)}/peers_{size}/table.md)"
        for size, one in zip(SIZES, measured, strict=True)
    ]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores: {', '.join(links)}.",
        "",
        "| |" + "".join(f" {size}: warm | cold | cold, empty cache | peak |" for size in SIZES),
        "|---|" + "---|---|---|---|" * len(SIZES),
    ]
    for name in rows[0]:
        cells = [_cell(one[name], *what) if name in one else "" for one in rows for what in _FIGURES]
        row = [ROWS.get(name, name), *cells]
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|")
    return "\n".join(lines)


_FIGURES = (("warm_s", "s"), ("cold_s", "s"), ("cold_first_s", "s"), ("peak_memory_gb", "GB"))


def _cell(row: dict, key: str, unit: str) -> str:
    if row[key] is None:
        return ""
    noisy = " (noisy)" if key == "warm_s" and row.get("noisy") else ""
    digits = ".1f" if unit == "GB" or 10 <= row[key] < 100 else ".0f" if row[key] >= 100 else ".3g"
    return f"{row[key]:{digits}} {unit}{noisy}"


# Folders of the benchmark's results for few steps, and the heads of their columns.
FEW = {
    "few_25_guided": "25 steps, guided",
    "few_4_unguided": "4 steps (LCM)",
    "few_1_taesd": "1 step, TAESD",
}


def few() -> str:
    """A table for each processor of what few steps and a small autoencoder save."""
    return "\n\n".join(_few(folder.parent) for folder in sorted(RESULTS.glob(f"*/{next(iter(FEW))}")))


def _few(processor: pathlib.Path) -> str:
    measured = {name: json.loads((processor / name / "results.json").read_text()) for name in FEW}
    machine, settings = (measured["few_25_guided"][key] for key in ("machine", "settings"))
    links = [f"[{FEW[name]}]({processor.relative_to(DOCS.parent)}/{name}/table.md)" for name in FEW]
    size = f"{settings['height']} x {settings['width']}"
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {size}: {', '.join(links)}.",
        "",
        "| |" + "".join(f" {head}: warm | cold |" for head in FEW.values()),
        "|---" * (1 + 2 * len(FEW)) + "|",
    ]
    rows = [{row["name"]: row for row in one["rows"]} for one in measured.values()]
    for name in dict.fromkeys(name for one in rows for name in one):
        cells = [_cell(one[name], *what) if name in one else "" for one in rows for what in _FIGURES[:2]]
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in [ROWS.get(name, name), *cells]) + "|")
    return "\n".join(lines)


# Folders of the benchmark's results for Stable Diffusion XL, and the figures of each: head, key of a row, unit.
SDXL = {
    "sdxl_4_steps": (
        ("4 steps: warm", "warm_s", "s"),
        ("cold", "cold_s", "s"),
        ("cold, empty cache", "cold_first_s", "s"),
        ("peak", "peak_memory_gb", "GB"),
        ("a step", "step_ms", "ms"),
    ),
    "sdxl_guided": (("a guided step", "step_ms", "ms"),),
}


def sdxl() -> str:
    """A table for each processor of what an image of Stable Diffusion XL takes."""
    return "\n\n".join(_sdxl(file.parents[1]) for file in sorted(RESULTS.glob("*/sdxl_4_steps/results.json")))


def _sdxl(processor: pathlib.Path) -> str:
    files = {name: processor / name / "results.json" for name in SDXL}
    measured = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    links = [
        f"[{one['settings']['num_steps']} steps, guidance {one['settings']['guidance_scale']:g}]"
        f"(../{(processor / name).relative_to(DOCS.parent)}/table.md)"
        for name, one in measured.items()
    ]
    machine, settings = (measured["sdxl_4_steps"][key] for key in ("machine", "settings"))
    rows = {name: {row["name"]: row for row in one["rows"]} for name, one in measured.items()}
    columns = [(rows[name], *figure) for name in measured for figure in SDXL[name]]
    size = f"{settings['height']} x {settings['width']}"
    lines = [f"{machine['processor']}, {machine['cores']} cores, {size}: {', '.join(links)}.", ""]
    lines += [f"| | {' | '.join(head for _, head, *_ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in (name for name, row in rows["sdxl_4_steps"].items() if row["status"] == "ok"):
        cells = [_cell(one[name], key, unit) if name in one else "" for one, _, key, unit in columns]
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in [ROWS.get(name, name), *cells]) + "|")
    return "\n".join(lines)


def control() -> str:
    """A table for each processor of what a step costs with a ControlNet."""
    return "\n\n".join(_control(file.parent) for file in sorted(RESULTS.glob("*/control/results.json")))


def _control(folder: pathlib.Path) -> str:
    measured, turns = (
        json.loads(file.read_text()) for file in (folder / "results.json", folder.parent / "control.json")
    )
    settings, rows = measured["settings"], {row["name"]: row for row in measured["rows"] if row["status"] == "ok"}
    processor = folder.parent.relative_to(DOCS.parent)
    lines = [
        f"{measured['machine']['processor']}, {measured['machine']['cores']} cores, {settings['height']} x "
        f"{settings['width']}, {settings['num_steps']} steps: [results](../{processor}/control/table.md).",
        "",
        "| | a step | with a ControlNet | ratio | an image | with a ControlNet | peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        steered = rows.get(f"{name} control")
        if steered is not None:
            cells = [_cell(each, key, unit) for key, unit in _FIGURES[:1] for each in (row, steered)]
            steps = [_cell(each, "step_ms", "ms") for each in (row, steered)]
            ratio, peak = f"{steered['ratio_control']:.2f}", _cell(steered, "peak_memory_gb", "GB")
            lines.append(f"| {ROWS.get(name, name)} | {' | '.join([*steps, ratio, *cells, peak])} |")
    clock, work = turns["ratio"]["clock"], turns["ratio_of_multiply_adds"]
    return "\n".join(
        [
            *lines,
            "",
            f"In turns, in one process, a step with a ControlNet takes {clock:.2f} of one without "
            f"([results](../{processor}/control.json)), and {work:.2f} of its multiply-adds.",
        ]
    )


# Results of benchmarks/less_arithmetic.py, and the heads of their columns.
LESS = {
    "less_arithmetic.json": "embedded, 128 x 128",
    "less_arithmetic_sd-v1-4_256.json": "full size, 256 x 256",
    "less_arithmetic_sd-v1-4_512.json": "full size, 512 x 512",
}


def less() -> str:
    """For each processor the time beside that without, and the quality, of each setting."""
    return "\n\n".join(_less(file.parent) for file in sorted(RESULTS.glob("*/less_arithmetic.json")))


def _less(processor: pathlib.Path) -> str:
    measured = {name: json.loads((processor / name).read_text()) for name in LESS if (processor / name).exists()}
    links = [
        f"[{LESS[name]}, {one['num_steps']} steps](../{(processor / name).relative_to(DOCS.parent)})"
        for name, one in measured.items()
    ]
    machine = next(iter(measured.values()))["machine"]
    shown = ("deep_cache_interval", "token_merging_ratio")
    columns = [
        {next((f"`{key}={row[key]}`" for key in shown if key in row), "without"): row for row in one["rows"]}
        for one in measured.values()
    ]
    heads = [*(LESS[name] for name in measured), "right", "difference"]
    lines = [f"{machine['processor']}, {machine['cores']} cores: {', '.join(links)}.", ""]
    lines += [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for setting, row in columns[0].items():
        times = [f"{100 * column[setting]['ratio']['median']:.0f} %" if setting in column else "" for column in columns]
        cells = [*times, f"{100 * row['right']['all']:.1f} %", f"{row['mean_difference']:.1f}"]
        lines.append(f"| {setting} | {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def loras() -> str:
    """For each processor what loading, switching and unloading a LoRA takes at full size."""
    return "\n\n".join(map(_loras, sorted(RESULTS.glob("*/lora.json"))))


def _loras(file: pathlib.Path) -> str:
    measured = json.loads(file.read_text())
    machine = measured["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores: [{measured['model']}](../{file.relative_to(DOCS.parent)}).",
        "",
        "| | load | switch | unload | an image with it, beside one without | peak memory, before and after |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in measured["rows"].items():
        backend, _, rank = name.partition(" ")
        ours = {"openvino": "kerasdiff on OpenVINO", "tensorflow": "kerasdiff on TensorFlow"}
        called = ours.get(backend, "diffusers and peft")
        value = {key: one["median"] for key, one in row.items()}
        measured_s = [value[key] for key in ("load_s", "switch_s", "unload_s")]
        seconds = " | ".join(f"{each:.1f} s" if each > 0.05 else "none" for each in measured_s)
        memory = f"{value['memory_before_gb']:.1f} GB, {value['peak_memory_gb']:.1f} GB"
        lines.append(f"| {called}, {rank} | {seconds} | {value['image']:.2f} | {memory} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """A page with every table between its markers rebuilt."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        text = re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{table()}\n{end}", text, flags=re.DOTALL)  # noqa: B023
    return text


TABLES = {
    "speed": speed,
    "samplers": samplers,
    "options": options,
    "spacings": spacings,
    "recipes": recipes,
    "words": words,
    "few": few,
    "less": less,
    "loras": loras,
    "sdxl": sdxl,
    "control": control,
}

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
