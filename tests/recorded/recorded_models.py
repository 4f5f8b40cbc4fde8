"""What recorded requests draw with: generators, each made once, and programs. All that is not public is here."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import psutil

import kerasdiff

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
CHECKPOINTS = HERE.parent / "checkpoints"
# Name -> arguments of `kerasdiff.Generator`; what "auto" chooses depends on the machine.
TINY: dict[str, dict[str, Any]] = {
    "tiny": {"precision": "float32", "jit_compile": False},
    **{
        precision: {"precision": precision, "jit_compile": False}
        for precision in ("bfloat16", "mixed_bfloat16", "float16", "mixed_float16")
    },
    "xla": {"precision": "float32", "jit_compile": True},
    "random": {"precision": "float32", "jit_compile": False, "weights": "random"},
}
# Small checkpoints with random weights, made by diffusers.
MADE = ("v1", "v2", "inpainting", "filtered")
# Name -> what `python -m kerasdiff.convert` is told: a source of `MADE`, of these or "tiny", where to, and flags.
CONVERTED = {
    "native": ("tiny", "native", "--format=kerasdiff", "--dtype=bfloat16"),
    "diffusers": ("tiny", "diffusers", "--format=diffusers"),
    "single_file": ("v1", "single_file.safetensors", "--dtype=float32"),
    "back": ("single_file", "back", "--format=kerasdiff"),
}


class Models:
    """Generators by name, each made when it is first asked for.

    Args:
        folder: an empty one, for checkpoints and pictures.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> kerasdiff.Generator:
        return self.once(name, lambda: self._generator(name))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What was made under this name, now or before."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def folder(self, name: str) -> pathlib.Path:
        """A new and empty folder."""
        place = next(place for place in map(str, range(1000)) if not (self._folder / f"{name}-{place}").exists())
        made = self._folder / f"{name}-{place}"
        made.mkdir()
        return made

    def another(self, name: str = "tiny") -> kerasdiff.Generator:
        """A generator that has not learned what fits into memory."""
        return kerasdiff.Generator("tiny", **TINY[name])

    def checkpoint(self, name: str) -> pathlib.Path:
        """A model of `MADE` or `CONVERTED` on the disk."""
        return self.once(f"checkpoint {name}", lambda: (self._write if name in MADE else self._convert)(name))

    def picture(self, pixels: Any, name: str) -> pathlib.Path:
        """A file with a picture."""
        from PIL import Image

        path = self.folder("picture") / name
        Image.fromarray(pixels).save(path)
        return path

    def _generator(self, name: str) -> kerasdiff.Generator:
        if name in TINY:
            return kerasdiff.Generator("tiny", **TINY[name])
        return kerasdiff.Generator(str(self.checkpoint(name)), precision="float32", jit_compile=False)

    def _write(self, name: str) -> pathlib.Path:
        checkpoints = _checkpoints()
        folder = self.folder("made")
        pipe = checkpoints.pipeline("v1" if name == "filtered" else name, folder / "vocabulary")
        for part in ("text_encoder", "unet", "vae"):
            _fill(getattr(pipe, part))
        if name == "filtered":
            pipe = checkpoints.with_safety_checker(pipe)
            _fill(pipe.safety_checker, but="_embeds_weights")
        return checkpoints.save(pipe, folder / name)

    def _convert(self, name: str) -> pathlib.Path:
        source, target, *flags = CONVERTED[name]
        path = self.folder("converted") / target
        done = run("kerasdiff.convert", source if source == "tiny" else self.checkpoint(source), path, *flags)
        assert done.returncode == 0, done.stderr
        return path


def _checkpoints() -> Any:
    if str(CHECKPOINTS) not in sys.path:  # pytest has it there
        sys.path.append(str(CHECKPOINTS))
    import checkpoints

    return checkpoints


def _fill(module: Any, but: str = "nothing") -> None:
    """Replaces parameters by random numbers that do not depend on versions of torch and of what is built with it."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(but):
                continue
            rng = np.random.default_rng(list(name.encode()))
            values = rng.standard_normal(tuple(parameter.shape), "float32")
            if parameter.ndim == 1:
                values = 0.3 * values + (1.0 if name.endswith("weight") else 0.0)
            elif "embedding" in name:
                values *= 0.3
            else:
                values /= np.sqrt(parameter[0].numel())
            parameter.copy_(torch.from_numpy(np.asarray(values, "float32")))


def run(module: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program of the package, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def in_another_process(name: str, folder: pathlib.Path, **environment: str) -> Any:
    """What a function of `recorded_requests` gives there, with other variables of the environment.

    Args:
        name: of the function, which takes `Models`.
        folder: for what it leaves.
        **environment: the variables.
    """
    told = folder / "told.pickle"
    script = (
        "import pathlib, pickle, sys\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import recorded_models, recorded_requests\n"
        f"models = recorded_models.Models(pathlib.Path({str(folder)!r}))\n"
        f"told = getattr(recorded_requests, {name!r})(models)\n"
        f"pathlib.Path({str(told)!r}).write_bytes(pickle.dumps(told))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(told.read_bytes())


@contextlib.contextmanager
def memory_free(free: int) -> Iterator[None]:
    """In this block the machine has only so many bytes free."""
    real = psutil.virtual_memory()
    with mock.patch.object(psutil, "virtual_memory", return_value=real._replace(available=free)):
        yield
