"""Runs a ComfyUI checkout's `main.py` in this process: `python . scripts.start_comfyui FOLDER [ARGS]`.

The one thing it adds: with a CPU build of torch, torchvision's operators are declared before ComfyUI imports it.
"""

from __future__ import annotations

import os
import runpy
import sys

from ..commands.libraries import declare_torchvision_ops


def main() -> None:
    """Become ComfyUI: its folder first on the path, its arguments in `sys.argv`."""
    folder = os.path.abspath(sys.argv[1])
    script = os.path.join(folder, "main.py")
    sys.argv = [script, *sys.argv[2:]]
    sys.path.insert(0, folder)
    declare_torchvision_ops()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
