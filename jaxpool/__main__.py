"""`python -m jaxpool`: the command line."""

import sys

from jaxpool.cli import main

if __name__ == "__main__":
    sys.exit(main())
