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
PAGES = (DOCS / "samplers.md", DOCS / "troubleshooting.md", DOCS / "performance.md")
# Results of benchmarks/less_arithmetic.py, and the heads of their columns.
LESS = {
    "less_arithmetic.json": "embedded, 128",
    "less_arithmetic_sd-v1-4_256.json": "full size, 256",
    "less_arithmetic_sd-v1-4_512.json": "full size, 512",
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


def words() -> str:
    """What other programs call an argument."""
    lines = ["| here | elsewhere |", "|---|---|"]
    lines += [f"| `{ours}` | {', '.join(f'`{word}`' for word in words.split())} |" for ours, words in SYNONYMS.items()]
    return "\n".join(lines)


def less() -> str:
    """Time beside that without, and quality, of each setting."""
    columns: list[dict[str, dict]] = []
    for name in LESS:
        rows = json.loads((RESULTS / name).read_text())["rows"]
        shown = ("deep_cache_interval", "token_merging_ratio")
        columns.append({f"`{key}={row[key]}`": row for row in rows for key in shown if key in row})
    lines = [f"| | {' | '.join(LESS.values())} | right | difference |", "|---" * (len(LESS) + 3) + "|"]
    for setting, row in columns[0].items():
        times = [f"{100 * column[setting]['ratio']['median']:.0f} %" if setting in column else "" for column in columns]
        quality = f"{100 * row['right']['all']:.1f} % | {row['mean_difference']:.1f}"
        lines.append(f"| {setting} | {' | '.join(times)} | {quality} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """A page with every table between its markers rebuilt."""
    tables = {"samplers": samplers, "options": options, "spacings": spacings, "words": words, "less": less}
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        text = re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{table()}\n{end}", text, flags=re.DOTALL)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
