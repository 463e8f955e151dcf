"""The command line as `python -m unscanned`."""

import sys

from unscanned.cli import main

if __name__ == "__main__":
    sys.exit(main())
