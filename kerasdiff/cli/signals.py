"""How a program ends after Ctrl-C, SIGTERM, and when its terminal is closed."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Callable

from kerasdiff.atomic_write import remove_unfinished
from kerasdiff.cli.console import print_error

# Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds after which a signal that Python code did not get to see ends the program.
GRACE = 3.0


class SignalHandler:
    """Ends a program cleanly at the first Ctrl-C, SIGTERM or SIGHUP, and at once at the second.

    Cleanly is by a `KeyboardInterrupt`: wherever the program is, or, after `defer`, where it next calls `check`. If it
    gets to neither in `GRACE` seconds, as a library is in the middle of something long, it ends at once. `signal` is
    the first one that came.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferred = self._patient = self._heard = False
        self._before_exit: list[Callable[[], None]] = [remove_unfinished]

    def install(self, name: str = "kerasdiff") -> None:
        """Handles these signals of this process, the program `name`; one that it was started without stays ignored."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # Python calls a handler between two of its instructions, so not while a library is at work. The number of the
        # signal is written at once, for a thread that waits for it.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(reading, name), name="kerasdiff-signals", daemon=True)
        watch.start()
        sys.unraisablehook = _without_interrupts
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def defer(self, patient: bool = False) -> None:
        """Makes signals wait for `check` from now on, however long that takes if `patient`."""
        self._deferred, self._patient = True, patient
        self.check()

    def before_exit(self, function: Callable[[], None]) -> None:
        """Calls a function, which must not take long, before the process ends at once."""
        self._before_exit.append(function)

    def check(self) -> None:
        """Ends the program cleanly if a signal came."""
        if self.signal is not None:
            self._heard = True
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

    def _watch(self, reading: int, name: str) -> None:
        """Ends the process at the second signal, or some time after the first; in a thread of its own."""
        first, deadline = 0, 0.0
        while True:
            waits = not first or self._heard or self._patient
            ready, _, _ = select.select([reading], [], [], None if waits else max(0.0, deadline - time.monotonic()))
            if ready:
                (number,) = os.read(reading, 1)
                if number in _SIGNALS and first:
                    self._exit(number)
                if number in _SIGNALS:
                    first, deadline = number, time.monotonic() + GRACE
            elif not self._heard:
                print_error(f"{name}: interrupted in the middle of a step; what was finished before is kept")
                self._exit(first)

    def _exit(self, number: int) -> None:
        for function in self._before_exit:
            function()
        os._exit(128 + number)


def _without_interrupts(unraisable: sys.UnraisableHookArgs) -> None:
    """Prints no traceback for a signal that came where Python cannot be interrupted; `check` finds it."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
