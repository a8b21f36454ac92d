"""`python -m fastdiffusers`: the engine without ComfyUI."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
