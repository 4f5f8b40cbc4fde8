"""How a batch will be split, what memory it will take, and what must be compiled for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a batch would be generated now.

    Attributes:
        chunks: images per batch of the U-Net, padding included, in their order.
        slices: slices of attention per image, where even one image is too much; else 1.
        tiles: tiles along each side in which an image is decoded.
        memory: expected bytes of "weights" as far as they are in memory at once, of what each stage takes besides
            ("text encoder", "U-Net", "decoder"), and of the "images" of the result.
        free: free bytes.
        programs: stage -> "ready", "kept" (read from disk in less than a second) or "new" (to be traced and compiled).
        total: all bytes of the device or the machine; None if that is not known.
        upscaled: height and width of the images of a request with `upscale`; None without.
        second_pass: the same of the pass at the larger size (`hires`), if there is one.
        stages: stage -> expected bytes while it runs, with the networks that are in memory then.
        leaving: which networks leave before others come, where not all fit at once, one sentence per stage.
        refiner: the same of the refiner's pass, if there is one.
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
    total: int | None = None
    upscaled: tuple[int, int] | None = None
    second_pass: Plan | None = None
    stages: Mapping[str, int] = dataclasses.field(default_factory=dict)
    leaving: tuple[str, ...] = ()
    refiner: Plan | None = None

    @property
    def chunk(self) -> int:
        """How many images are generated at once."""
        return self.chunks[0]

    @property
    def peak(self) -> int:
        """Expected bytes at the highest point, as stages run one after another."""
        own = self.memory["images"] + max(self.stages.values())
        return max([own, *(one.peak for one in self.later.values())])

    @property
    def fits(self) -> bool:
        """Whether one image at a time is expected to fit into all the memory there is; else it is refused."""
        own = self.total is None or max(self.stages.values()) <= self.total
        return own and all(one.fits for one in self.later.values())

    @property
    def later(self) -> dict[str, Plan]:
        """The passes after the first one, by what they are."""
        passes = {"second pass": self.second_pass, "refiner": self.refiner}
        return {name: one for name, one in passes.items() if one is not None}

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
        if self.upscaled is not None:
            lines.append(f"upscaled to {self.upscaled[1]} x {self.upscaled[0]}")
        lines += self.leaving
        if self.slices > 1:
            lines.append(f"attention in {self.slices} slices")
        if self.tiles > 1:
            lines.append(f"decoding in {self.tiles} x {self.tiles} tiles")
        if self.total is not None and not self.fits:
            lines.append(f"too large for this machine, which has {self.total / 1e9:.2f} GB: generate smaller images")
        lines += [f"{name}, {one}" for name, one in self.later.items()]
        return "\n".join(lines)
