"""Whether somebody watches: what moves on a terminal or in a notebook is noise in a log."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

# Modules of the stderr of a notebook.
_NOTEBOOKS = ("ipykernel.", "google.colab.")
# Characters of a name in front of a progress bar, so that it fits on a line of 80.
_NAME = 24
# Of a terminal that does not say, as in a container.
_COLUMNS = 79


def is_watched() -> bool:
    """Whether stderr is a terminal or a notebook, and not the log of a continuous integration."""
    if type(sys.stderr).__module__.startswith(_NOTEBOOKS):
        return True
    if os.environ.get("TERM") == "dumb" or os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    return sys.stderr is not None and sys.stderr.isatty()


def shows_progress(progress: bool | None) -> bool:
    """What the argument `progress` says; None: whether somebody watches."""
    return is_watched() if progress is None else progress


def bar(shown: bool, **arguments: Any) -> "tqdm":
    """A progress bar of tqdm, or one that is not `shown`."""
    if type(sys.stderr).__module__.startswith(_NOTEBOOKS):
        import tqdm.auto as module  # which takes longer to import
    else:
        import tqdm as module
    return module.tqdm(disable=not shown, **arguments, **_shape())


def _shape() -> dict[str, Any]:
    """Arguments of tqdm for a bar that fits its line, also when the window becomes smaller."""
    with contextlib.suppress(AttributeError, OSError):  # no terminal
        if os.get_terminal_size(sys.stderr.fileno()).columns == 0:
            return {"ncols": _COLUMNS}
    return {"dynamic_ncols": True}


def short_name(name: str) -> str:
    """A name for the front of a progress bar."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
