"""Entry point of `jaxattn-train`, which is also `python -m jaxattn_train`."""

import io
import os
import sys

from jaxattn_train.cli.commands import main


def run() -> None:
    """Runs the command line and ends the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the locale lacks are escaped, not an error
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(
            130
        )  # at once: a compilation still runs in a thread, and would crash while Python shuts down
    except BrokenPipeError:  # of `| head`
        os._exit(141)
    jax = sys.modules.get("jax")
    if code and jax is not None and jax.distributed.is_initialized():
        os._exit(code)  # JAX would wait for the other processes, which wait for this one
    sys.exit(code)


if __name__ == "__main__":
    run()
