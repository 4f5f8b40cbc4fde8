"""How a program ends after Ctrl-C, SIGTERM, and when its terminal is closed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types

# Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class SignalHandler:
    """Ends a program cleanly at the first Ctrl-C, SIGTERM or SIGHUP, and at once at the second.

    Cleanly is by a `KeyboardInterrupt`: wherever the program is, or, after `defer`, where it next calls `check`.
    `signal` is the first one that came.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferred = False

    def install(self) -> None:
        """Handles these signals of this process; one that it was started without, as by nohup, stays ignored."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # Python calls a handler between two of its instructions, so not while a library is at work. The number of the
        # signal is written at once, for a thread that waits for it.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=_exit_at_second, args=(reading,), name="kerasdiff-signals", daemon=True).start()
        sys.unraisablehook = _without_interrupts
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def defer(self) -> None:
        """Makes signals wait for `check` from now on."""
        self._deferred = True

    def check(self) -> None:
        """Ends the program cleanly if a signal came."""
        if self.signal is not None:
            raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + (signal.SIGINT if self.signal is None else self.signal)

    def _handle(self, number: int, _: types.FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
        if not self._deferred:
            self.check()


def _exit_at_second(reading: int) -> None:
    count = 0
    while count < 2:
        (number,) = os.read(reading, 1)
        count += number in _SIGNALS
    os._exit(128 + number)


def _without_interrupts(unraisable: sys.UnraisableHookArgs) -> None:
    """Prints no traceback for a signal that came where Python cannot be interrupted; `check` finds it."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
