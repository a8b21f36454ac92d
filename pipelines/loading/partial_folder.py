"""A folder that appears under its name when it is complete, and what is left of one whose writer was killed.

A folder that is being filled lies beside its target and holds a locked file. The lock goes with the process, however
that ends: what can be locked belongs to nobody any more, and the next writer removes it.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import DISK_FULL, InputError
from ...links import link_target
from ...optimizations.tuning.file_lock import try_lock

log = logging.getLogger(__name__)

MARK = ".fastdiffusers_partial"
"""The locked file in a folder that is being filled."""
_KEPT_NAME = 100
"""Characters of the target's name in that of the partial folder; file systems allow 255 bytes."""


@contextmanager
def complete_or_absent(output: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `output`, or of what that links to, when the block succeeds, and is
    removed when it does not.

    Raises:
        InputError: it cannot be written.
    """
    from safetensors import SafetensorError

    partial, target, handle = None, link_target(output), -1
    try:
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{output.name[:_KEPT_NAME]}."))
        handle = os.open(partial / MARK, os.O_RDWR | os.O_CREAT, 0o666)
        try_lock(handle)
        os.write(handle, b"locked")
        yield partial
        os.close(handle)
        handle = -1
        (partial / MARK).unlink()
        partial.chmod(0o755)
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in DISK_FULL or "space left" in str(error)
        cure = "free some space" if full else "choose a folder that you may write to"
        raise InputError("output", str(output), f"it cannot be written ({error})", cure) from error
    finally:
        if handle >= 0:
            os.close(handle)
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def sweep(parent: Path) -> list[Path]:
    """Remove what killed writers have left in `parent`, and return it. What another process is writing stays."""
    removed = []
    for mark in parent.glob(f".*/{MARK}"):
        try:
            handle = os.open(mark, os.O_RDWR)
        except OSError:  # not ours to touch, or gone already
            continue
        try:
            abandoned = try_lock(handle) and os.fstat(handle).st_size > 0  # an empty one is about to be locked
        finally:
            os.close(handle)
        if abandoned:
            shutil.rmtree(mark.parent, ignore_errors=True)
            log.warning("removed %s, which a run that was ended had left behind", mark.parent)
            removed.append(mark.parent)
    return removed
