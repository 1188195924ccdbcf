"""`python -m gpu_node`: what a node's container runs."""

import sys

from gpu_node.app import main

if __name__ == "__main__":
    sys.exit(main())
