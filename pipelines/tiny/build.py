"""Tiny real pipelines, built without a network or a download: with trained weights where they are here, else random.

Each has the classes, the components and the latent layout of its big model, in a few megabytes: the demo, the tests and
the embedded example workflow run through exactly the code that the big models run through. A trained one draws what its
prompt says; the pictures of the others are patterns.

Random weights depend on the family's name and the seed alone, so that two processes build the same pipeline.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from . import trained
from .images import flux, flux2_klein, qwenimage, sd3, sdxl, zimage
from .ltx2 import ltx2
from .modular import flux3, minimax_h3
from .wan import wan, wan_one_expert, wan_vace

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

PIPELINE_CLASSES = {
    "flux": "FluxPipeline",
    "flux-kontext": "FluxKontextPipeline",
    "flux2-klein": "Flux2KleinPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "qwenimage": "QwenImagePipeline",
    "qwenimage-edit": "QwenImageEditPipeline",
    "zimage": "ZImagePipeline",
    "wan21-t2v": "WanPipeline",
    "wan21-vace": "WanVACEPipeline",
    "wan22-t2v": "WanPipeline",
    "wan22-i2v": "WanImageToVideoPipeline",
    "ltx2-t2v": "LTX2Pipeline",
    "ltx2-i2v": "LTX2ImageToVideoPipeline",
    "flux3": "Flux3ModularPipeline",
    "minimax-h3": "MiniMaxH3ModularPipeline",
    "flux-random": "FluxPipeline",
}
"""Tiny family -> class in diffusers."""
RANDOM = "-random"
"""Ends the name of a family's random form, which is smaller than the trained one."""
TINY_SOUND_FAMILIES = ("ltx2-t2v", "ltx2-i2v")
"""Those that give video with sound; older releases of diffusers do not have them."""
TINY_FURTHER = ("wan21-t2v", "wan21-vace")
"""Those that stand for further uses of a family that is there already."""
TINY_MODULAR = ("flux3", "minimax-h3")
"""Those that are made of blocks; older releases of diffusers do not have them."""
ONE_EXPERT = ("wan21-t2v",)
"""Those of a class that may have two experts, with one."""
TINY_FAMILIES = tuple(
    name
    for name in PIPELINE_CLASSES
    if name not in (*TINY_SOUND_FAMILIES, *TINY_FURTHER, *TINY_MODULAR) and not name.endswith(RANDOM)
)


def build(name: str, seed: int = 0, dtype: torch.dtype | None = None) -> DiffusionPipeline:
    """Build one tiny pipeline on the CPU, in evaluation mode.

    Args:
        name: one of `PIPELINE_CLASSES`. "flux" is the trained one where its weights are here, "flux-random" never is.
        seed: chooses random weights; trained ones stay as they are. The global random state is left as it was.
        dtype: of all weights; float32 when None.

    Raises:
        InputError: `name` is not a tiny family, or the installed diffusers is too old for it.
        ModelFileError: trained weights are here, but not whole.
    """
    if name not in PIPELINE_CLASSES:
        known = ", ".join(PIPELINE_CLASSES)
        raise InputError("tiny pipeline", name, "there is none of that name", f"choose one of: {known}")
    import diffusers
    import torch

    if not hasattr(diffusers, PIPELINE_CLASSES[name]):
        reason = f"diffusers {diffusers.__version__} has no {PIPELINE_CLASSES[name]}"
        raise InputError("tiny pipeline", name, reason, "update diffusers")
    with torch.random.fork_rng(devices=[]):
        drawn, family = trained.trained_folder(name), name.removesuffix(RANDOM)
        torch.manual_seed(seed * 1_000_003 + zlib.crc32(family.encode()))
        pipeline = trained.load(name) if drawn else _BUILDERS[family]()
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                if not drawn:
                    spread_weights(component)
                component.eval().requires_grad_(False)
                if dtype not in (None, torch.float32):
                    component.to(dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def identity(name: str) -> str:
    """Return what tells the weights of `build(name)` from others of that name."""
    return f"trained {trained.digest(name)}" if trained.trained_folder(name) else "seed 0"


def save(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Build and save as a diffusers folder that `from_pretrained` reads back; returns the folder."""
    path = Path(folder)
    pipeline: Any = build(name, seed)
    pipeline.save_pretrained(str(path), **({"overwrite_modular_index": True} if name in TINY_MODULAR else {}))
    return path


def spread_weights(module: torch.nn.Module) -> None:
    """Fill the parameters that libraries leave at zero or unset, so that no part of a model is switched off.

    Zero is what training starts from, but a zeroed gate hides mistakes from a test, and `torch.empty` pad tokens
    would differ between two processes.
    """
    for name, parameter in module.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf.endswith("pad_token"):
            parameter.data.zero_()
        elif leaf != "bias" and not parameter.data.any():
            parameter.data.normal_(std=0.02)


# --- families ---------------------------------------------------------------------------------------------------------


_BUILDERS: dict[str, Callable[[], Any]] = {
    "flux": flux,
    "flux-kontext": lambda: flux("FluxKontextPipeline"),
    "flux2-klein": flux2_klein,
    "sdxl": sdxl,
    "sd3": sd3,
    "qwenimage": qwenimage,
    "qwenimage-edit": lambda: qwenimage(edit=True),
    "zimage": zimage,
    "wan21-t2v": wan_one_expert,
    "wan21-vace": wan_vace,
    "wan22-t2v": lambda: wan(image_to_video=False),
    "wan22-i2v": lambda: wan(image_to_video=True),
    "ltx2-t2v": lambda: ltx2("LTX2Pipeline"),
    "ltx2-i2v": lambda: ltx2("LTX2ImageToVideoPipeline"),
    "flux3": flux3,
    "minimax-h3": minimax_h3,
}
