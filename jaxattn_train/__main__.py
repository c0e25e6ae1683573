"""Entry point of `jaxattn-train`, which is also `python -m jaxattn_train`."""

import io
import sys

from jaxattn_train.cli.commands import main


def run() -> None:
    """Runs the command line and ends the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the locale lacks are escaped, not an error
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())


if __name__ == "__main__":
    run()
