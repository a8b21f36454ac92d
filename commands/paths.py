"""Where things are on this machine: ComfyUI, its model folders, this pack's caches. Looks only; creates nothing.

The Makefile runs this file by itself, so it imports nothing of the pack.
"""

from __future__ import annotations

import os
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent


def is_comfyui(folder: Path) -> bool:
    """Whether `folder` is a ComfyUI checkout: its start script and its node loader lie side by side."""
    return (folder / "main.py").is_file() and (folder / "folder_paths.py").is_file()


def find_comfyuis() -> list[Path]:
    """Return every ComfyUI at hand, each once, the one that this pack belongs to first.

    The environment variable COMFYUI_PATH names one, or several between `os.pathsep`. Without it: the ComfyUI whose
    `custom_nodes` holds this pack; the folders that comfy-cli and the manual installation use (`~/comfy/ComfyUI`,
    `~/ComfyUI`); and the checkouts beside them (`~/comfy/ComfyUI-*`, `~/ComfyUI-*`).
    """
    named = os.environ.get("COMFYUI_PATH")
    if named is not None:  # an explicit answer is final: COMFYUI_PATH= (empty) says "none"
        folders = [Path(os.path.expanduser(folder)) for folder in named.split(os.pathsep) if folder]
    else:
        around = Path(os.path.abspath(__file__)).parents[3]  # not resolved: the pack is often a link in custom_nodes
        home = Path(os.path.expanduser("~"))  # pathlib's own raises where there is none
        homes = (home / "comfy", home)
        beside = (folder for home in homes for folder in sorted(home.glob("ComfyUI-*")))
        folders = [around, *(home / "ComfyUI" for home in homes), *beside]
    return list(dict.fromkeys(folder.resolve() for folder in folders if is_comfyui(folder)))


def find_comfyui() -> Path | None:
    """Return the ComfyUI that this pack belongs to, the first of `find_comfyuis`, or None."""
    return next(iter(find_comfyuis()), None)


def model_folders(comfyui: Path | None) -> dict[str, list[Path]]:
    """Folders with diffusers pipelines and with VAE files, those that exist: {"diffusers": [...], "vae": [...]}."""
    if comfyui is None:
        return {"diffusers": [], "vae": []}
    names = {"diffusers": ("diffusers",), "vae": ("vae", "SEEDVR2")}
    return {
        kind: [comfyui / "models" / folder for folder in folders if (comfyui / "models" / folder).is_dir()]
        for kind, folders in names.items()
    }
