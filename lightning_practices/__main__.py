"""``python -m lightning_practices``: the command ``lightning-practices``."""

import sys

from lightning_practices.cli import main

if __name__ == "__main__":
    sys.exit(main())
