"""`python -m fastdiffusers.cluster.child`: what `client` starts. Not for a terminal: it reads JSON lines."""

from __future__ import annotations

import sys

from .driver import main

if __name__ == "__main__":
    sys.exit(main())
