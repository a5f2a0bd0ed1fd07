"""`python -m src.dashboard [--sweep NAME]`: saves the W&B workspace of the project."""

import sys

from keepfrac.tracking.workspace import main

if __name__ == "__main__":
    sys.exit(main())
