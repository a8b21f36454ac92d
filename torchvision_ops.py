"""A torchvision that does not match torch, made importable: transformers imports it wherever it is installed."""

from __future__ import annotations

import re
import sys

from .errors import first_line

_declared: list[object] = []
"""Keeps the declarations alive: a torch Library undoes its own when it is collected."""


_faults: list[str] = []
"""Why torchvision could not be imported as it is."""


def torchvision_fault() -> str:
    """Why programs that declare nothing, ComfyUI among them, cannot import torchvision here; "" where they can."""
    return _faults[0] if _faults else ""


def torchvision_command(torch_version: str) -> str:
    """What installs the torchvision that belongs to a torch: of the same build, and of the release made with it.

    https://github.com/pytorch/vision#installation: 0.15 is that of 2.0, and both have gone up together since.
    """
    release, _, build = torch_version.partition("+")
    found = re.match(r"2\.(\d+)", release)
    package = f"'torchvision==0.{int(found[1]) + 15}.*'" if found else "torchvision"
    published = re.fullmatch(r"cpu|cu\d+|rocm[\d.]+", build)
    index = f" --index-url https://download.pytorch.org/whl/{build}" if published else ""
    return f"pip install --force-reinstall --no-deps {package}{index}"


def declare_torchvision_ops() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` where torchvision does not bring its compiled operators.

    torchvision cannot be imported without these two, and transformers imports it where it is installed. Beside a CPU
    build of torch its ordinary wheel has none. Nothing that ComfyUI or this pack runs calls them, so declaring them is
    enough; whoever does call one is told that there is no implementation.
    """
    import torch

    try:
        import torchvision  # noqa: F401 - importing it is the question
    except ImportError:
        return
    except RuntimeError as error:
        _faults.append(first_line(error))
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for op in ("nms", "qnms"):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
