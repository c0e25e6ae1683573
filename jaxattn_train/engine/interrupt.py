"""Graceful shutdown on SIGINT and SIGTERM."""

import signal
from types import FrameType, TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopRequest:
    """While active, SIGINT and SIGTERM set a flag instead of ending the process; a second SIGINT interrupts.

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
        for number in (signal.SIGINT, signal.SIGTERM):
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

    def agreed(self) -> bool:
        """Whether any process got a signal; a collective: all processes call it together, and agree."""
        if jax.process_count() == 1:
            return self.exit_code is not None
        codes = multihost_utils.process_allgather(np.int32(self.exit_code or 0))
        if codes.max():
            self.exit_code = int(codes.max())
        return self.exit_code is not None
