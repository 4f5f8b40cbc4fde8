"""Results as a table for the terminal, the same in Markdown, and a plot."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasdiff.atomic_write import atomic_write
from kerasdiff.bench.summary import NOISE

TABLE, PLOT = "table.md", "plot.png"


def _significant(value: float) -> str:
    """Three significant digits."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _spread(value: list[float]) -> str:
    return "-" if value[0] == value[1] else f"{_significant(value[0])}..{_significant(value[1])}"


def _ratio(value: dict[str, float]) -> str:
    spread = "" if value["min"] == value["max"] else f" ({value['min']:.2f}..{value['max']:.2f})"
    return f"{value['median']:.2f}{spread}"


# Heading, key of a row, format of what is not None.
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("row", "name", str),
    ("empty cache s", "cold_first_s", _significant),
    ("cold s", "cold_s", _significant),
    ("least..most", "cold_spread_s", _spread),
    ("warm s", "warm_s", _significant),
    ("least..most", "warm_spread_s", _spread),
    ("ms/step", "step_ms", _significant),
    ("images/s", "images_per_s", "{:.3f}".format),
    ("GB", "peak_memory_gb", "{:.2f}".format),
    ("GPU GB", "device_memory_gb", "{:.2f}".format),
    ("use", "utilisation", lambda value: f"{100 * value:.0f} %"),
    ("diff max", "max_difference", "{:.0f}".format),
    ("mean", "mean_difference", "{:.2f}".format),
    ("x warm", "ratio_warm", _ratio),
    ("x cold", "ratio_cold", _ratio),
    ("x step", "ratio_control", "{:.2f}".format),
)
LEGEND = (
    "cold: process start to the first image, with its files in the system's memory; empty cache: the same without "
    "cached programs and converted weights; warm: later runs; seconds are medians; use: the least time of a step, its "
    "own parts at the best rates of this device, over the time of a step; diff: grey levels to the reference's image; "
    "x: seconds over those of kerasdiff auto, median (min..max) of rounds; x step: a step over one without a ControlNet"
)
NOISY = (
    f"noisy: the slowest warm run took over {100 * NOISE:.0f} % longer than the fastest, so that a difference of that "
    "size from another row means nothing"
)


def cells(results: dict[str, Any]) -> list[list[str]]:
    """The table's lines, headings first; empty columns are left out."""
    shown = [row for row in results["rows"] if row["status"] != "absent"]
    columns = [
        column for column in COLUMNS if column[1] == "name" or any(row.get(column[1]) is not None for row in shown)
    ]
    lines = [["-" if row.get(key) is None else write(row[key]) for _, key, write in columns] for row in shown]
    for line, row in zip(lines, shown, strict=True):
        line[0] += " (noisy)" if row["noisy"] else ""
    return [[heading for heading, *_ in columns], *lines]


def remarks(results: dict[str, Any]) -> list[str]:
    """A line for every row whose status is not "ok"."""
    return [
        f"{row['name']}: {row['status']}" + (f": {row['reason']}" if row["reason"] else "")
        for row in results["rows"]
        if row["status"] != "ok"
    ]


def notes(results: dict[str, Any]) -> list[str]:
    """What the table means, and the least time of a step in each precision that a row has."""
    lines = [NOISY] if any(row["noisy"] for row in results["rows"]) else []
    for precision in dict.fromkeys(row["precision"] for row in results["rows"]):
        if least := results["ceilings"].get(precision):
            rates = ", ".join(f"{kind}s {rate:.0f}" for kind, rate in least["gflops"].items())
            line = f"least time of a step in {precision}: {_significant(1e3 * least['step_s'])} ms ({rates} GFLOP/s, "
            line += f"memory {least['bandwidth_gb_s']:.0f} GB/s)"
            if "alone_s" in least:
                line += f"; each part alone, through TensorFlow: {_significant(1e3 * least['alone_s'])} ms"
            lines.append(line)
    return [*lines, LEGEND]


def title(results: dict[str, Any]) -> str:
    """The workload and the machine in one line."""
    settings, machine = results["settings"], results["machine"]
    device = ", ".join(machine.get("gpu") or []) or f"{machine.get('processor', 'CPU')}, {machine.get('cores')} cores"
    return (
        f"{settings['model']}, {settings['weights']} weights, {settings['batch_size']} x "
        f"{settings['height']} x {settings['width']}, {settings['num_steps']} steps, "
        f"guidance {settings['guidance_scale']:g}; {device}"
    )


def table(results: dict[str, Any]) -> str:
    """The table as plain text."""
    lines = cells(results)
    first, *widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    template = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in widths)])
    text = [template.format(*line).rstrip() for line in lines]
    rule = "-" * max(map(len, text))
    return "\n".join([title(results), "", text[0], rule, *text[1:], "", *remarks(results), *notes(results)])


def markdown(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    heading, *lines = cells(results)
    rule = ["---", *("---:" for _ in heading[1:])]
    text = ["| " + " | ".join(line) + " |" for line in (heading, rule, *lines)]
    below = [f"- {line}" for line in (*remarks(results), *notes(results))]
    return "\n".join([title(results), "", *text, "", *below]) + "\n"


def write_report(results: dict[str, Any], output: pathlib.Path) -> None:
    """Writes the Markdown table and the plot."""
    (output / TABLE).write_text(markdown(results))
    plot(results, output / PLOT)


_PARTS = {
    "import": "#4e79a7",
    "load": "#76b7b2",
    "build": "#59a14f",
    "programs": "#b07aa1",
    "trace": "#edc948",
    "compile": "#f28e2b",
    "run": "#e15759",
}


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Bars: cold starts by part on the left, warm runs on the right."""
    from matplotlib.figure import Figure

    bars = [
        (f"{row['name']}{kind}", row[parts])
        for row in results["rows"]
        for kind, parts in ((", empty cache", "cold_first_parts"), ("", "cold_parts"))
        if row[parts]
    ]
    if not bars:
        return
    figure = Figure(figsize=(13, 2.0 + 0.32 * len(bars)), layout="constrained")
    left, right = figure.subplots(1, 2)
    _cold(left, bars)
    _warm(right, [row for row in results["rows"] if row["warm_s"] is not None])
    for axes in (left, right):
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        axes.tick_params(labelsize=8)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title(results), fontsize=10)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower left", ncols=len(labels), frameon=False)
    with atomic_write(path, sync=False) as file:
        figure.savefig(file, format="png", dpi=120)


def _cold(axes: Any, bars: list[tuple[str, dict[str, float]]]) -> None:
    ends = np.zeros(len(bars))
    for part in dict.fromkeys([*_PARTS, *(part for _, parts in bars for part in parts)]):
        values = np.array([parts.get(part, 0.0) for _, parts in bars])
        if values.any():
            names, colour = [name for name, _ in bars], _PARTS.get(part, "#bab0ac")
            drawn = axes.barh(names, values, left=ends, color=colour, label=part)
            ends = ends + values
    axes.bar_label(drawn, [f" {_significant(end)}" for end in ends], fontsize=8)
    axes.set_title("process start to first image, by part (the median round)", fontsize=10)


def _warm(axes: Any, rows: list[dict[str, Any]]) -> None:
    seconds, spreads = [row["warm_s"] for row in rows], [row["warm_spread_s"] for row in rows]
    whiskers = np.abs(np.reshape(spreads, (-1, 2)).T - seconds)
    colours = ["#e15759" if row["name"].startswith("kerasdiff") else "#9c9c9c" for row in rows]
    drawn = axes.barh([row["name"] for row in rows], seconds, xerr=whiskers, color=colours, capsize=2)
    axes.bar_label(drawn, [f" {_significant(value)}" for value in seconds], fontsize=8)
    axes.set_title("warm run (bars: median, whiskers: minimum and maximum)", fontsize=10)
