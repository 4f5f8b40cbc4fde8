"""Facts about this machine and installation, told without importing a backend."""

import functools
import importlib.metadata
import pathlib
import platform
import re

_ABILITIES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
# Of a processor's name, what does not tell its kind: trademarks, the number of cores, the clock.
_NOT_ITS_KIND = re.compile(r"\((?:r|tm)\)|\b(?:cpu|processor|\d+-core)\b|@.*", re.IGNORECASE)


@functools.cache
def processor() -> str:
    """The processor by name, with what it can do that matters here, as Linux tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return " ".join([name, *(ability for ability in _ABILITIES if ability in flags)])


def processor_slug(name: str | None = None) -> str:
    """A processor's kind as the name of a folder, with the best that it can do: "amd-epyc-avx512-bf16".

    `name` is as `processor` gives it, None for this machine's.
    """
    words = (processor() if name is None else name).split()
    abilities = [word for word in words if word in _ABILITIES]
    kind = _NOT_ITS_KIND.sub(" ", " ".join(word for word in words if word not in _ABILITIES))
    return "-".join(re.findall(r"[a-z0-9]+", " ".join([kind, *abilities[-1:]]).lower())) or "unknown"


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX512-BF16 or AMX)."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor().split())


def version(package: str) -> str | None:
    """Of an installed package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str]:
    """Of those of some packages that are installed."""
    return {package: known for package in packages if (known := version(package)) is not None}
