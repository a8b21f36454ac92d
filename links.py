"""Where a path that is written to leads: results go through a link, and do not take its place."""

from __future__ import annotations

import os
from pathlib import Path


def link_target(path: Path) -> Path:
    """The path itself; of a link, what it leads to in the end, whether that is there or not yet.

    A file that is complete or not there at all is written beside that, under another name first, and then renamed: both
    have to be on one disk.
    """
    return Path(os.path.realpath(path)) if path.is_symlink() else path
