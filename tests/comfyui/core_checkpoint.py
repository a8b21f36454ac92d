"""A checkpoint for ComfyUI's own loader: Stable Diffusion 3's architecture and a small autoencoder, tiny and random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CONTEXT, POOLED = 32, 24
"""Widths of the conditioning that the denoiser takes."""


def save(path: Path) -> None:
    """Write it. ComfyUI's modules have to be importable (the `core` fixture)."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file

    depth, patches = 2, 8 * 8
    denoiser = OpenAISignatureMMDITWrapper(
        input_size=None,
        in_channels=16,
        depth=depth,
        adm_in_channels=POOLED,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": CONTEXT, "out_features": 64 * depth},
        },
        num_patches=patches,
        pos_embed_max_size=8,
        qk_norm="rms",
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Any] = {}
    for prefix, model in (("model.diffusion_model.", denoiser), ("first_stage_model.", TAESD(latent_channels=16))):
        for name, value in model.state_dict().items():  # ComfyUI leaves the weights of a new network unset
            spread = max(1, value[0].numel()) ** -0.5 if value.ndim > 1 else 0.1
            weights[prefix + name] = torch.randn(value.shape, generator=generator) * spread
    weights["first_stage_model.vae_scale"] = torch.tensor(1.0)
    weights["first_stage_model.vae_shift"] = torch.tensor(0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
