"""The models of this process: where memory runs out for one, the others unload what they can load again."""

import gc
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

from kerasdiff.errors import OutOfMemoryError
from kerasdiff.runtime import memory
from kerasdiff.runtime.oom import first_line, is_out_of_memory

T = TypeVar("T")


class Releasable(Protocol):
    """What holds weights."""

    def release(self, but: str | None = None) -> bool:
        """Unloads all weights but those of one network; they come back when needed. Returns whether there were any."""


_LIVING: weakref.WeakSet[Releasable] = weakref.WeakSet()


def add(model: Releasable) -> None:
    """From now on others may ask it for room."""
    _LIVING.add(model)


def make_room(asking: Releasable | None = None) -> bool:
    """Makes all but one release what they hold; returns whether there was anything."""
    released = [other.release() for other in list(_LIVING) if other is not asking]
    gc.collect()
    return any(released)


def load_or_evict(name: str, load: Callable[[], T]) -> T:
    """What `load` gives, if need be after others have made room for it.

    Raises:
        OutOfMemoryError: there is still not enough.
    """
    while True:
        try:
            return load()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            problem = first_line(error)
        gc.collect()
        if not make_room():
            raise OutOfMemoryError(
                f"the weights of {name} do not fit into memory ({problem}); {memory.free() / 1e9:.1f} GB are free: "
                "precision='float16' or 'bfloat16', or fewer other programs would help"
            )
