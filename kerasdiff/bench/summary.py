"""From the answers of the processes to the rows of the table: medians, spreads, ratios, differences."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerasdiff.bench.task import CONTROL, Workload

# What the others are compared with: their times, and their images.
BASELINE = "kerasdiff auto"
REFERENCE = "kerasdiff standard"
# How much longer than the fastest warm run the slowest may take.
NOISE = 0.2


def summarise(
    name: str, rounds: Sequence[dict[str, Any]], workload: Workload, ceilings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """One row, without what needs the other rows.

    `rounds` are the answers of its processes, each with "round" and "kind" ("first", "primed" or "only"). `ceilings`
    are those of `kerasdiff.bench.roofline`, by precision: "utilisation" is the least time of a step over a step's.
    """
    done = [answer for answer in rounds if answer["status"] == "ok"]
    failed = next((answer for answer in rounds if answer["status"] != "ok"), None)
    first = [answer for answer in done if answer["kind"] == "first"]
    later = [answer for answer in done if answer["kind"] != "first"]
    runs = [seconds for answer in done for seconds in answer["runs_s"]]
    one_step = [seconds for answer in done for seconds in answer["one_step_s"]]
    cold = [answer["cold_s"] for answer in later]
    warm = _median(runs)
    precision = done[0]["precision"] if done else None
    step_ms = _step_ms(runs, one_step, workload.num_steps)
    # The least time is that of a step without a ControlNet.
    least_s = None if name.endswith(CONTROL) else ceilings.get(precision or "", {}).get("step_s")
    return {
        "name": name,
        "status": failed["status"] if failed else "ok" if done else "not run",
        "reason": failed["reason"] if failed else None,
        "precision": precision,
        "cold_s": _median(cold),
        "cold_spread_s": _spread(cold),
        "cold_first_s": _median([answer["cold_s"] for answer in first]),
        "cold_parts": _parts(later),
        "cold_first_parts": _parts(first),
        "warm_s": warm,
        "warm_spread_s": _spread(runs),
        "noisy": bool(runs) and max(runs) > (1 + NOISE) * min(runs),
        "step_ms": step_ms,
        "images_per_s": workload.batch_size / warm if warm else None,
        "peak_memory_gb": max((answer["peak_memory_gb"] for answer in done), default=None),
        "device_memory_gb": max((answer["device_memory_gb"] or 0 for answer in done), default=0) or None,
        "utilisation": 1e3 * least_s / step_ms if least_s and step_ms and step_ms > 0 else None,
        "max_difference": None,
        "mean_difference": None,
        "ratio_warm": None,
        "ratio_cold": None,
        "ratio_control": None,
        "rounds": list(rounds),
    }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _spread(values: Sequence[float]) -> list[float] | None:
    return [min(values), max(values)] if values else None


def _parts(answers: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The parts of the cold start that is the (lower) median one, so that they add up."""
    ordered = sorted(answers, key=lambda answer: answer["cold_s"])
    return ordered[(len(ordered) - 1) // 2]["cold_parts"] if ordered else {}


def _step_ms(runs: Sequence[float], one_step: Sequence[float], num_steps: int) -> float | None:
    """Milliseconds that one more step costs: what text and decoding take is the same in both runs.

    From the fastest run of each: a difference of medians can be noise alone.
    """
    if not runs or not one_step or num_steps == 1:
        return None
    return 1000 * (min(runs) - min(one_step)) / (num_steps - 1)


def add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Adds seconds of each row over those of `kerasdiff auto` in the same round, which ran next to each other.

    Above 1, `kerasdiff auto` is the faster one. Median, minimum and maximum of all rounds. Rows with a ControlNet are
    beside that with one, and have the time of a step over that of their row without.
    """
    named = {row["name"]: row for row in rows}
    for row in rows:
        steered = row["name"].endswith(CONTROL)
        without = named.get(row["name"].removesuffix(CONTROL)) if steered else None
        if without is not None and min(row["step_ms"] or 0, without["step_ms"] or 0) > 0:
            row["ratio_control"] = row["step_ms"] / without["step_ms"]
        baseline = named.get(f"{BASELINE}{CONTROL if steered else ''}")
        if baseline is None:
            continue
        for ratio, key in (("ratio_warm", "runs_s"), ("ratio_cold", "cold_s")):
            theirs, ours = _by_round(row, key), _by_round(baseline, key)
            ratios = [theirs[number] / ours[number] for number in sorted(theirs.keys() & ours.keys())]
            if ratios:
                row[ratio] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _by_round(row: dict[str, Any], key: str) -> dict[int, float]:
    """Seconds by round; a cold start from an empty cache counts as none."""
    return {
        answer["round"]: statistics.median(np.atleast_1d(answer[key]).tolist())
        for answer in row["rounds"]
        if answer["status"] == "ok" and not (key == "cold_s" and answer["kind"] == "first") and answer[key]
    }


def add_differences(rows: Sequence[dict[str, Any]], images: Mapping[str, np.ndarray]) -> None:
    """Adds how far each row's first images are from the reference's, in grey levels of 255.

    The reference is `kerasdiff standard`, or the first row that has images; with a ControlNet, that with one.
    """
    for row in rows:
        alike = [name for name in images if name.endswith(CONTROL) == row["name"].endswith(CONTROL)]
        if row["name"] not in images:
            continue
        named = f"{REFERENCE}{CONTROL if row['name'].endswith(CONTROL) else ''}"
        reference = images[named if named in alike else alike[0]].astype(int)
        image = images[row["name"]].astype(int)
        if image.shape != reference.shape:
            row.update(status="failed", reason=f"its images are {image.shape}, not {reference.shape}")
            continue
        difference = np.abs(image - reference)
        row["max_difference"], row["mean_difference"] = int(difference.max()), float(difference.mean())
