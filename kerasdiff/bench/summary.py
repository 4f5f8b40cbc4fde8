"""From what the processes told to the rows of the table: medians, spreads, ratios, differences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasdiff.bench.case import Settings

# What the others are set against.
SUBJECT = "kerasdiff auto"
REFERENCE = "kerasdiff standard"
# Kinds of processes that start with whatever cache there is, and all.
LATER = ("primed", "only")
ANY = ("first", *LATER)


def summarise(
    name: str, rounds: Sequence[dict[str, Any]], settings: Settings, macs: float, ceilings: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """One row, without what needs the other rows.

    Args:
        name: of the row.
        rounds: the answers of its processes, each with "round" and "kind" ("first", "primed" or "only").
        settings: the work.
        macs: multiply-adds of a run.
        ceilings: GFLOP/s by precision, from `kerasdiff.bench.roofline`.
    """
    done = [told for told in rounds if told["status"] == "ok"]
    ended = next((told for told in rounds if told["status"] != "ok"), None)
    later = [told for told in done if told["kind"] != "first"]
    first = [told for told in done if told["kind"] == "first"]
    runs = [seconds for told in done for seconds in told["runs_s"]]
    ones = [seconds for told in done for seconds in told["one_step_s"]]
    warm = median(runs)
    precision = done[0]["precision"] if done else None
    return {
        "name": name,
        "status": ended["status"] if ended else "ok" if done else "not run",
        "reason": ended["reason"] if ended else None,
        "precision": precision,
        "cold_s": median([told["cold_s"] for told in later]),
        "cold_spread_s": spread([told["cold_s"] for told in later]),
        "cold_first_s": median([told["cold_s"] for told in first]),
        "cold_parts": parts(later),
        "cold_first_parts": parts(first),
        "warm_s": warm,
        "warm_spread_s": spread(runs),
        "step_ms": step_ms(runs, ones, settings.num_steps),
        "images_per_s": settings.batch_size / warm if warm else None,
        "peak_memory_gb": max((told["peak_memory_gb"] for told in done), default=None),
        "device_memory_gb": max((told["device_memory_gb"] or 0 for told in done), default=0) or None,
        "utilisation": utilisation(macs, warm, ceilings.get(precision or "")),
        "max_difference": None,
        "mean_difference": None,
        "ratio_warm": None,
        "ratio_cold": None,
        "rounds": list(rounds),
    }


def step_ms(runs: Sequence[float], one_step: Sequence[float], num_steps: int) -> float | None:
    """Milliseconds that one more step costs: what text and decoding take is the same in both runs.

    From the fastest run of each: a difference of medians can be noise alone.
    """
    if not runs or not one_step or num_steps == 1:
        return None
    return 1000 * (min(runs) - min(one_step)) / (num_steps - 1)


def utilisation(macs: float, warm: float | None, ceiling: dict[str, float] | None) -> float | None:
    """Share of the best that the device reached, in a large product or convolution, in the same precision."""
    if not warm or not ceiling:
        return None
    return 2 * macs / warm / (1e9 * max(ceiling.values()))


def add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Seconds of each row over those of `kerasdiff auto` in the same round, which ran next to each other.

    Above 1, `kerasdiff auto` is the faster one. Median, least and most of all rounds.
    """
    subject = next((row for row in rows if row["name"] == SUBJECT), None)
    if subject is None:
        return
    for row in rows:
        row["ratio_warm"] = _ratios(_by_round(row, "runs_s", ANY), _by_round(subject, "runs_s", ANY))
        row["ratio_cold"] = _ratios(_by_round(row, "cold_s", LATER), _by_round(subject, "cold_s", LATER))


def _by_round(row: dict[str, Any], key: str, kinds: Sequence[str]) -> dict[int, float]:
    values = {}
    for told in row["rounds"]:
        if told["status"] == "ok" and told["kind"] in kinds and told[key]:
            values[told["round"]] = statistics.median(np.atleast_1d(told[key]).tolist())
    return values


def _ratios(theirs: dict[int, float], ours: dict[int, float]) -> dict[str, float] | None:
    ratios = [theirs[number] / ours[number] for number in sorted(theirs.keys() & ours.keys())]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)} if ratios else None


def add_differences(rows: Sequence[dict[str, Any]], images: dict[str, np.ndarray]) -> None:
    """How far each row's first images are from the reference's, in grey levels of 255.

    The reference is `kerasdiff standard`, or the first row that has images.
    """
    if not images:
        return
    reference = images[REFERENCE if REFERENCE in images else next(iter(images))].astype(int)
    for row in rows:
        if row["name"] in images:
            found = images[row["name"]].astype(int)
            if found.shape != reference.shape:
                row.update(status="failed", reason=f"its images are {found.shape}, not {reference.shape}")
                continue
            apart = np.abs(found - reference)
            row["max_difference"], row["mean_difference"] = int(apart.max()), float(apart.mean())


def median(values: Sequence[float]) -> float | None:
    """None if there is nothing to take it of."""
    return statistics.median(values) if values else None


def spread(values: Sequence[float]) -> list[float] | None:
    """Least and most."""
    return [min(values), max(values)] if values else None


def parts(told: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The parts of the cold start that is the (lower) median one, so that they add up."""
    if not told:
        return {}
    return sorted(told, key=lambda one: one["cold_s"])[(len(told) - 1) // 2]["cold_parts"]
