"""What a generation will do to memory and to time, told beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a batch would be drawn now.

    Attributes:
        chunks: how many images go through the U-Net at once, one after another; what a chunk is filled up with counts.
        slices: in how many slices attention goes through each image, if even one is too much; else 1.
        tiles: into how many tiles along each side an image is decoded; else 1.
        memory: bytes that are expected: "weights", "U-Net" and "decoder" at their largest, and "images" of the result.
        free: bytes that are free now.
        programs: stage -> "ready", "kept" (read from disk in less than a second) or "new" (to be traced and compiled).
    """

    batch_size: int
    height: int
    width: int
    chunks: tuple[int, ...]
    slices: int
    tiles: int
    memory: Mapping[str, int]
    free: int
    programs: Mapping[str, str]

    @property
    def chunk(self) -> int:
        """How many images are drawn at once."""
        return self.chunks[0]

    @property
    def peak(self) -> int:
        """Bytes that are expected at once: stages run one after another."""
        return self.memory["weights"] + self.memory["images"] + max(self.memory["U-Net"], self.memory["decoder"])

    def __str__(self) -> str:
        counts = {size: self.chunks.count(size) for size in dict.fromkeys(self.chunks)}
        chunks = " + ".join(f"{count} x {size}" if count > 1 else f"{size}" for size, count in counts.items())
        lines = [
            f"{self.batch_size} images of {self.width} x {self.height}: {chunks} at once",
            f"memory: {self.peak / 1e9:.2f} GB expected ("
            + ", ".join(f"{name} {taken / 1e9:.2f}" for name, taken in self.memory.items())
            + f"), {self.free / 1e9:.2f} GB free",
            "programs: " + ", ".join(f"{stage} {state}" for stage, state in self.programs.items()),
        ]
        if self.slices > 1:
            lines.append(f"attention in {self.slices} slices")
        if self.tiles > 1:
            lines.append(f"decoding in {self.tiles} x {self.tiles} tiles")
        return "\n".join(lines)
