"""Entry point of `python -m train`."""

import io
import sys

from train.cli.commands import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the locale lacks are escaped, not an error
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
