"""`python -m fastdiffusers.cluster.parallel`: what `client` starts. Not for a terminal: it reads JSON lines."""

from __future__ import annotations

import sys

from .processes import main

if __name__ == "__main__":
    sys.exit(main())
