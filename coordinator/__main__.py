"""`python -m coordinator`: what the coordinator's container runs."""

import sys

from coordinator.app import main

if __name__ == "__main__":
    sys.exit(main())
