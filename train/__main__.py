"""Entry point of `python -m train`."""

import sys

from train.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
