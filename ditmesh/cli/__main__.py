"""`python -m ditmesh.cli`, where the console script is not installed."""

import sys

from ditmesh.cli import main

if __name__ == "__main__":
    sys.exit(main())
