"""The embedded video VAE: the real architecture with few channels and random weights, so that a graph runs at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .config import VaeConfig

CONFIG = VaeConfig(block_out_channels=(32, 32, 64, 64))
SEED = 0


def embedded_video_vae(folder: Path) -> Path:
    """Return the embedded VAE's file in `folder`. The first call on a folder writes it: a few MB, always the same.

    Raises:
        OSError: the folder cannot be written.
    """
    file = folder / "embedded_video_vae_{}.safetensors".format("_".join(map(str, CONFIG.block_out_channels)))
    if file.is_file():
        return file
    import torch
    from safetensors.torch import save_file

    from .network.model import VideoVAE

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        weights = VideoVAE(CONFIG).state_dict()
    with tempfile.TemporaryDirectory(dir=folder) as beside:  # another process may do the same
        save_file(weights, Path(beside, file.name))
        os.replace(Path(beside, file.name), file)
    return file
