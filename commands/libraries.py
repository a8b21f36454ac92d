"""Getting the heavy libraries ready for a command: a torchvision that does not match, and chatter on the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings

from ..errors import first_line

_declared: list[object] = []
"""Keeps the declarations alive: a torch Library undoes its own when it is collected."""


_faults: list[str] = []
"""Why torchvision could not be imported as it is."""


def torchvision_fault() -> str:
    """Why programs that declare nothing, ComfyUI among them, cannot import torchvision here; "" where they can."""
    return _faults[0] if _faults else ""


def prepare_libraries(verbose: bool) -> None:
    """To be called once, before diffusers or transformers is imported."""
    declare_torchvision_ops()
    if not verbose:
        hush_libraries()


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


def hush_libraries() -> None:
    """Keep the libraries' own bars and warnings off the terminal: the report says what a user has to know."""
    warnings.simplefilter("ignore")
    for variable in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("torch").setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):  # whoever needs a missing library will say so itself
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
