"""Small models with random weights that diffusers has in modular form alone, or first: saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from modular_twins import save

from fastdiffusers.benchmarks.coverage.sources.modular_parts import PREPARED, prepared
from fastdiffusers.pipelines import tiny

EMBEDDED = ("flux3", "minimax-h3")
"""Those that are embedded in the pack."""
ANIMATED = "wananimate2"
"""It makes nothing without a picture and a clip."""
NAMES = (*(name for name in PREPARED if name != ANIMATED), *EMBEDDED)


def save_model(name: str, folder: Path) -> Path:
    """Build and save one of `NAMES`."""
    if name in EMBEDDED:
        return tiny.save(name, folder)
    class_name, parts = prepared(name)
    return save(getattr(diffusers, class_name)(), parts, folder)


def ernie() -> dict[str, Any]:
    """ERNIE-Image around the text encoder of Z-Image: both give a list of tokens for each text."""
    from fastdiffusers.pipelines.tiny.components import flow_euler, flux2_vae

    whole: Any = tiny.build("zimage")
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 64}
    transformer = diffusers.ErnieImageTransformer2DModel(
        **sizes, text_in_dim=whole.text_encoder.config.hidden_size, rope_axes_dim=(4, 6, 6)
    )
    for parameter in transformer.parameters():  # what is left at zero would switch the text off
        if not parameter.data.any():
            parameter.data.normal_(std=0.2)
    kept = {name: getattr(whole, name) for name in ("text_encoder", "tokenizer")}
    return {**kept, "transformer": transformer, "vae": flux2_vae(), "scheduler": flow_euler(shift=3.0)}
