"""``python -m agents.cli``: the same as ``htm``."""

import sys

from agents.cli import main

if __name__ == "__main__":
    sys.exit(main())
