"""Which errors of the libraries below mean that memory has run out, and what an error says in one line.

The end of memory comes in many classes, most of which mean other things too: the class tells whose error it is, its
text decides. Where a text leaves it open (a library that cannot start, an algorithm that is not found) it is not
memory, as less at once would not mend it. Nothing here imports a backend.
"""

import re
from typing import NamedTuple

from kerasdiff.errors import KerasdiffError


class _Library(NamedTuple):
    """Classes by name, the modules that they come from by beginning, and texts that mean memory."""

    modules: str
    errors: frozenset[str]
    texts: re.Pattern[str]
    # Those that mean memory whatever they say, but for `_OTHER_RESOURCES`.
    exhausted: frozenset[str] = frozenset()


_MEMORY = re.compile(
    "|".join(
        (
            r"out[ _]of[ _](host |device )?memory",  # CUDA_ERROR_OUT_OF_MEMORY, "ran out of memory"
            r"failed to allocate",
            r"(?<!register )alloc(ation)?[ _]failed",  # CUDNN_STATUS_ALLOC_FAILED, "the resource allocation failed"
            r"exception: ?Status: 1,",  # dnnl_out_of_memory
            r"Dst tensor is not initialized",  # a copy to the GPU that found no place there
            r"YNNPACK operation failed: error",  # XLA's library on the CPU says no more when it cannot allocate
        )
    ),
    re.IGNORECASE,
)
# ENOMEM, and what it is on Windows, where the words may be in any language. The last is a `SystemError`: TensorFlow
# 2.21 lost a MemoryError on its way while an operation was traced.
_SYSTEM_MEMORY = re.compile(
    "cannot allocate memory|WinError 1455|paging file is too small|error return without exception set", re.IGNORECASE
)
_LIBRARIES = (
    _Library("tensorflow", frozenset({"OpError"}), _MEMORY, frozenset({"ResourceExhaustedError"})),
    _Library("jax", frozenset({"JaxRuntimeError", "XlaRuntimeError"}), _MEMORY),
    # OpenVINO's, which says where in its sources it was raised.
    _Library(
        "builtins",
        frozenset({"RuntimeError"}),
        re.compile(r"(?is)exception from src/.*(failed to allocate|could not allocate memory|can't alloc|bad.?alloc)"),
    ),
    _Library(
        "builtins",
        frozenset({"ImportError", "MemoryError", "OSError", "SystemError"}),
        _SYSTEM_MEMORY,
        frozenset({"MemoryError"}),
    ),
)
# TensorFlow has the same class for a full disk, and XLA for a kernel that does not fit into the GPU's cores.
_OTHER_RESOURCES = re.compile("no space left|disk quota|too many open files|shared memory size", re.IGNORECASE)
# Lines that say where, but not what.
_WHERE = re.compile(
    r'\s*$|\s{4}|\s*File "|Exception from src/|Graph execution error|Detected at node'
    r"|<stack traces|\d+ root error|Exception encountered"
)
_DECORATION = re.compile(r"\x1b\[\d*m|^ *\(\d+\) |\{\{function_node [^}]*\}\} ?")
_LONGEST = 300


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory has run out, so that less at once may do.

    kerasdiff's own errors never do: `OutOfMemoryError` says that less was tried.
    """
    ours = isinstance(error, KerasdiffError) or not isinstance(error, Exception)
    return not ours and any(map(_is_memory, _with_causes(error)))


def first_line(error: BaseException) -> str:
    """An error's class and the line of its text that says most, such as "ResourceExhaustedError: OOM when ..."."""
    told = next(filter(_is_memory, _with_causes(error)), error)
    whole = str(told).splitlines()
    lines = [line for line in whole if not _WHERE.match(line)] or whole
    line = next(filter(_MEMORY.search, lines), lines[0] if lines else "")
    text = " ".join(_DECORATION.sub("", line).split())
    return f"{type(told).__name__}: {text}"[:_LONGEST] if text else type(told).__name__


def _with_causes(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from; what was merely being handled meanwhile is not among them."""
    found: list[BaseException] = []
    last: BaseException | None = error
    while last is not None and last not in found:
        found.append(last)
        # Keras raises its own error instead of one that takes other arguments than a text, such as NumPy's.
        replaced = last.__context__ if hasattr(last, "_keras_call_info_injected") else None
        last = replaced if last.__cause__ is None else last.__cause__
    return found


def _is_memory(error: BaseException) -> bool:
    for library in _LIBRARIES:
        names = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.startswith(library.modules)}
        if names & library.errors:
            text = str(error)
            exhausted = names & library.exhausted or ("RESOURCE_EXHAUSTED" in text and library.modules != "builtins")
            return bool(library.texts.search(text) or (exhausted and not _OTHER_RESOURCES.search(text)))
    return False
