"""The embedded video VAEs: the real architecture with few channels, so that a graph runs at once.

One was trained on drawn scenes that move and gives back what goes in; its file is beside this module. The other has
random weights and gives patterns.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..errors import InputError, ModelFileError
from .config import VaeConfig

PREFIX = "tiny:"
TRAINED, RANDOM = "tiny:video-vae", "tiny:video-vae-random"
"""What stands for a path."""
TRAINED_FILE = Path(__file__).with_name("trained") / "video_vae.safetensors"
CLIP_FILE = TRAINED_FILE.with_name("clip.mp4")
"""Two seconds of such a scene, to try it with."""
RANDOM_CONFIG = VaeConfig(block_out_channels=(32, 32, 64, 64))
SEED = 0


def embedded_video_vae(name: str, folder: Path) -> Path:
    """Return the file of an embedded video VAE.

    Args:
        name: `TRAINED` or `RANDOM`.
        folder: where the random one is written: a few MB, always the same.

    Raises:
        InputError: there is none of that name.
        ModelFileError: the trained one's file is missing.
        OSError: the folder cannot be written.
    """
    if name == RANDOM:
        return _random_video_vae(folder)
    if name != TRAINED:
        raise InputError("vae", name, "there is no embedded video VAE of that name", f"use {TRAINED} or {RANDOM}")
    if not TRAINED_FILE.is_file():
        cure = "install the pack again, with the files of vae/trained"
        raise ModelFileError("vae", str(TRAINED_FILE), "there is no such file", cure)
    return TRAINED_FILE


def _random_video_vae(folder: Path) -> Path:
    """The random one's file in `folder`. The first call on a folder writes it."""
    file = folder / "embedded_video_vae_{}.safetensors".format("_".join(map(str, RANDOM_CONFIG.block_out_channels)))
    if file.is_file():
        return file
    import torch
    from safetensors.torch import save_file

    from .network.model import VideoVAE

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        weights = VideoVAE(RANDOM_CONFIG).state_dict()
    with tempfile.TemporaryDirectory(dir=folder) as beside:  # another process may do the same
        save_file(weights, Path(beside, file.name))
        os.replace(Path(beside, file.name), file)
    return file
