"""A small video VAE of the full one's kind with two levels, trained on drawn pictures in two minutes on one thread.

Weights that were trained carry what random ones do not: a rounding of theirs shows as a difference in a picture.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ...vae import VaeConfig, VideoVAE
from ..plain_video_vae import PlainVideoVae, formula_weights

CONFIG = VaeConfig(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, temporal_scale_num=1)
SIDE = 32
RATE = 4e-3


def pictures(count: int, generator: torch.Generator) -> torch.Tensor:
    """Coloured slopes with rectangles and discs on them: [count, 3, 1, SIDE, SIDE] in -1..1."""
    down, across = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator) * 2 - 1

    slopes = random(3, 2, 1, 1)
    made = 0.5 * (slopes[:, :, 0] * down + slopes[:, :, 1] * across) + 0.4 * random(3, 1, 1)
    for shape in range(4):
        y, x, size = random(1, 1, 1), random(1, 1, 1), 0.15 + 0.2 * (random(1, 1, 1) + 1)
        distance = torch.maximum((down - y).abs(), (across - x).abs())
        if shape % 2:
            distance = torch.sqrt((down - y) ** 2 + (across - x) ** 2)
        inside = torch.sigmoid((size - distance) * 40)
        made = made * (1 - inside) + random(3, 1, 1) * inside
    return made.clamp(-1, 1)[:, :, None]


def trained(steps: int, batch: int = 4) -> dict[str, torch.Tensor]:
    """The weights after so many steps; more steps, finer pictures."""
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in VideoVAE(CONFIG).state_dict().items()}
    weights = {key: tensor.requires_grad_() for key, tensor in formula_weights(shapes).items()}
    network = PlainVideoVae(weights, CONFIG.norm_num_groups)
    optimizer = torch.optim.AdamW(weights.values(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        target = pictures(batch, generator)
        latent = network.encode(target)[:, : CONFIG.latent_channels]
        made = network.decode(latent)
        loss = F.l1_loss(made, target) + F.mse_loss(made, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
    return {key: tensor.detach() for key, tensor in weights.items()}
