"""Getting the heavy libraries ready for a command: a torchvision that does not match, and chatter on the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings

from ..torchvision_ops import declare_torchvision_ops, torchvision_command, torchvision_fault

__all__ = ["declare_torchvision_ops", "hush_libraries", "prepare_libraries", "torchvision_command", "torchvision_fault"]


def prepare_libraries(verbose: bool) -> None:
    """To be called once, before diffusers or transformers is imported."""
    declare_torchvision_ops()
    if not verbose:
        hush_libraries()


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
