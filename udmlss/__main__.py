"""The command `python -m udmlss`, which is the same as `udmlss`."""

import sys

from udmlss.cli import main

if __name__ == "__main__":
    sys.exit(main())
