"""Runs a ComfyUI checkout's `main.py` in this process: `python scripts/start_comfyui.py COMFYUI_FOLDER [ARGUMENTS]`.

The one thing it adds: torchvision's wheel holds no compiled operators for a CPU build of torch, and torchvision cannot
be imported without two of them. Nothing that ComfyUI or this pack does calls either, so declaring them is enough.
"""

from __future__ import annotations

import os
import runpy
import sys


def declare_torchvision_ops() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` where the installed torchvision does not bring them."""
    import torch

    try:
        import torchvision  # noqa: F401 - importing it is the question
    except ImportError:
        return
    except RuntimeError:
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for op in ("nms", "qnms"):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)


_libraries: list[object] = []
"""Keeps the declarations alive: a torch Library undoes its own when it is collected."""


def main() -> None:
    """Become ComfyUI: its folder first on the path, its arguments in `sys.argv`."""
    folder = os.path.abspath(sys.argv[1])
    script = os.path.join(folder, "main.py")
    sys.argv = [script, *sys.argv[2:]]
    sys.path[0] = folder
    declare_torchvision_ops()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
