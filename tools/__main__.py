"""The ``kqcap`` command as ``python -m kqcap_tools``; from a checkout ``python -m tools``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
