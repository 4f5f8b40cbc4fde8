"""What a file or folder is that steers a model."""

from __future__ import annotations

from typing import Any

from kerasdiff.validation import line


def control_info(control: str, model: str | None = None) -> dict[str, Any]:
    """What a ControlNet, a T2I-Adapter or an IP-Adapter is, as plain values.

    Args:
        control: as `model` of a `kerasdiff.Control`.
        model: the model that it is to steer, as in `kerasdiff.Generator`; without one nothing but the file is
            looked at.

    Raises:
        ModelError: it is none of them, or not one for this model.
    """
    from kerasdiff.checkpoints.control_files import control_facts, open_control
    from kerasdiff.checkpoints.resolve import open_model

    found = control_facts(control)
    if model is None:
        return found
    checkpoint = open_model(model)
    open_control(control, checkpoint.config)
    return {**found, "model": checkpoint.name}


def control_lines(found: dict[str, Any]) -> list[str]:
    """What `control_info` gave, for people."""
    kind = f"{found['kind']}, {found['bytes'] / 1e6:.1f} MB"
    if "channel order" in found:
        kind += f", hints in {found['channel order'].upper()}"
        kind += ", residuals are means" if found["global pooling"] else ""
    report = [
        *(f"file     {line(file, 1000)}" for file in found["files"]),
        f"SHA-256  {found['sha256']}",
        f"kind     {kind}",
    ]
    if "family" in found:
        report.append(f"for      {found['family'] or 'a model that its shapes do not tell'}")
    return report + ([f"fits     {found['model']}"] if "model" in found else [])
