"""One run of a sweep, as a process that ends with the sweep: `python -m ...sweep.child PARENT FLAGS`."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from jaxattn_train.cli.commands import main

PR_SET_PDEATHSIG = 1


def follow(parent: int) -> None:
    """Requests SIGTERM (graceful shutdown) for this process when `parent` dies, however it dies; on Linux only.

    Elsewhere a run that outlives its sweep finishes, and holds the lock of the folder until then.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be followed
        sys.exit(128 + signal.SIGTERM)


def run(words: Sequence[str]) -> int:
    """Follows the process whose id is the first word, and trains with the other words as flags of lra."""
    follow(int(words[0]))
    return main(["lra", *words[1:]])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
