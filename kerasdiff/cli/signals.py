"""How a program is ended by Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types

_ENDING = (signal.SIGINT, signal.SIGTERM)


class Ending:
    """How a program is ended: the first Ctrl-C or SIGTERM in order, the second one at once.

    In order is a `KeyboardInterrupt`: where the program is, or, after `wait`, where it next calls `check`.

    Attributes:
        signal: the first one that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waits = False

    def install(self) -> None:
        """Takes both signals over, for this process; those that it was started without stay ignored."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # Python calls a handler between two of its instructions, so not while a library is at work. The number of the
        # signal is written at once, for a thread that waits for it.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=_end_at_second, args=(reading,), name="kerasdiff-ending", daemon=True).start()
        sys.unraisablehook = _without_interrupts
        for one in _ENDING:
            if signal.getsignal(one) is not signal.SIG_IGN:
                signal.signal(one, self._came)

    def wait(self) -> None:
        """From now on a signal is only noted, for `check`."""
        self._waits = True

    def check(self) -> None:
        """Ends the program in order if a signal came.

        Raises:
            KeyboardInterrupt: one came.
        """
        if self.signal is not None:
            raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """As shells tell it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (signal.SIGINT if self.signal is None else self.signal)

    def _came(self, number: int, _: types.FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
        if not self._waits:
            self.check()


def _end_at_second(reading: int) -> None:
    came = 0
    while came < 2:
        (number,) = os.read(reading, 1)
        came += number in _ENDING
    os._exit(128 + number)


def _without_interrupts(unraisable: sys.UnraisableHookArgs) -> None:
    """A signal that came while Python could not be interrupted is found by `check`, without a traceback before."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
