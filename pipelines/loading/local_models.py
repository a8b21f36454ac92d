"""Looks for diffusers folders on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..modular.index import MODULAR_INDEX
from . import checkpoints


def find_local_pipelines(folders: Iterable[str | Path]) -> list[Path]:
    """Diffusers folders below the given folders, sorted; a pipeline's own subfolders are not searched."""
    found: set[Path] = set()
    for folder in folders:
        found.update(_walk(Path(folder)))
    return sorted(found)


def _walk(folder: Path, depth: int = 5, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    try:
        if any((folder / index).is_file() for index in (checkpoints.INDEX, MODULAR_INDEX)):
            yield folder
        elif depth and not any(folder.samefile(other) for other in above):  # a link that leads back
            for child in sorted(folder.iterdir()):
                if child.is_dir():
                    yield from _walk(child, depth - 1, (*above, folder))
    except OSError:  # unreadable or vanished: there is no pipeline to offer
        return
