"""One run of a sweep as a process that ends with the sweep: `python -m train.studies.sweep.child PARENT FLAGS`."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from train.cli.commands import main

PR_SET_PDEATHSIG = 1


def follow(parent: int) -> None:
    """Has the system send SIGTERM (save and leave) when `parent` dies, however it dies; Linux alone can do that.

    Elsewhere a run left over finishes, and the lock of the sweep keeps others out of the folder meanwhile.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be followed
        sys.exit(128 + signal.SIGTERM)


def run(words: Sequence[str]) -> int:
    """Follows the process in the first word and trains with the others as flags of `lra`."""
    follow(int(words[0]))
    return main(["lra", *words[1:]])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
