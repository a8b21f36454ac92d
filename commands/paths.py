"""Where things are on this machine: ComfyUI, its model folders, this pack's caches. Looks only; creates nothing."""

from __future__ import annotations

import os
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent


def is_comfyui(folder: Path) -> bool:
    """Whether `folder` is a ComfyUI checkout: its start script and its node loader lie side by side."""
    return (folder / "main.py").is_file() and (folder / "folder_paths.py").is_file()


def find_comfyui() -> Path | None:
    """The ComfyUI that this pack belongs to, or None.

    Looked for in this order: the environment variable COMFYUI_PATH; the ComfyUI whose `custom_nodes` holds this pack;
    the folders that comfy-cli and the manual installation use (`~/comfy/ComfyUI`, `~/ComfyUI`).
    """
    named = os.environ.get("COMFYUI_PATH")
    if named is not None:  # an explicit answer is final: COMFYUI_PATH= (empty) says "none"
        folder = Path(os.path.expanduser(named))
        return folder.resolve() if named and is_comfyui(folder) else None
    around = Path(os.path.abspath(__file__)).parents[3]  # not resolved: the pack is often a link in custom_nodes
    home = Path(os.path.expanduser("~"))  # pathlib's own raises where there is none
    for folder in (around, home / "comfy" / "ComfyUI", home / "ComfyUI"):
        if is_comfyui(folder):
            return folder.resolve()
    return None


def model_folders(comfyui: Path | None) -> dict[str, list[Path]]:
    """Folders with diffusers pipelines and with VAE files, those that exist: {"diffusers": [...], "vae": [...]}."""
    if comfyui is None:
        return {"diffusers": [], "vae": []}
    names = {"diffusers": ("diffusers",), "vae": ("vae", "SEEDVR2")}
    return {
        kind: [comfyui / "models" / folder for folder in folders if (comfyui / "models" / folder).is_dir()]
        for kind, folders in names.items()
    }
