"""Graceful shutdown of a single process on SIGINT and SIGTERM, and the end of one of several without progress.

Several processes stop together after a SIGTERM to any of them: see `Checkpoints.is_preempted`.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

import jax


class StopRequest:
    """While active, SIGINT and SIGTERM set a flag instead of ending the process; a second SIGINT interrupts.

    Among several processes it leaves signals alone.

    Examples:
        >>> with StopRequest() as stop:
        ...     stop.exit_code is None
        True
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        """130 after SIGINT, 143 after SIGTERM, None before any signal."""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ():
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = 128 + number


class Watchdog:
    """While active, ends this process if it is one of several and too long without progress.

    Collectives wait for ever for a process that has stalled. The end of one process ends all others: JAX's
    coordination service tells them.

    Args:
        seconds: how long is too long.
        end: what to do then, with a message; None prints it and leaves at once, with exit code 1.
    """

    def __init__(self, seconds: float, end: Callable[[str], None] | None = None):
        self._seconds, self._end = seconds, end or leave
        self._last, self._over = time.monotonic(), threading.Event()

    def progress(self) -> None:
        """Starts the time anew."""
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.progress()
        if jax.process_count() > 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(self._seconds / 4, 10)):
            if time.monotonic() - self._last > self._seconds:
                self._end(
                    f"no progress in {self._seconds:g} s (--stall-timeout): a process or a device has stalled"
                )
                return


def leave(reason: str) -> None:
    """Ends one of several processes at once, with exit code 1; others would not come to a common end."""
    text = (
        f"error: process {jax.process_index()} of {jax.process_count()}: {reason}. The same command in all "
    )
    print(f"{text}processes resumes the run.", file=sys.stderr, flush=True)
    if jax.process_index() == 0:
        time.sleep(1)  # JAX aborts the others, without this message, as soon as process 0 is gone.
    os._exit(1)
