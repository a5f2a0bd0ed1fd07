"""`python -m src.sync [FOLDER ...]`: uploads the runs that W&B's server has not got yet."""

import sys

from keepfrac.tracking.sync import main

if __name__ == "__main__":
    sys.exit(main())
