"""Weights of the video VAE in 16 and 8 bits, computed with in float32: what is lost, what is saved, what it costs.

Three VAEs: the full-size one and the image VAE of FLUX.1, both with random weights, and a small one that is trained
here on drawn pictures. Only weights are rounded; the products run in float32, as they would with weights that are
turned back before use. Turning them back is timed on the full-size decoder, once for each slice that is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from ...comparison.architectures import flux_vae
from ...errors import first_line
from ...vae import VaeConfig, VaeSettings, decode_raw, from_state_dict
from ..plain_video_vae import PlainVideoVae, formula_weights
from ..vae_decode import full_size_shapes
from .small_vae import CONFIG, pictures, trained

FP8 = torch.float8_e4m3fn
Round = Callable[[torch.Tensor], torch.Tensor]
"""Weights [O, ...] to what is left of them after they were stored in fewer bits."""


def run(rounds: int, small: bool) -> dict[str, Any]:
    """Rows for each VAE, and the cost of turning weights back."""
    shapes = {key: shape for key, shape in full_size_shapes().items() if not small}
    random = formula_weights(shapes)
    learned = trained(5 if small else 1000)
    seen = pictures(8, torch.Generator().manual_seed(1))
    latent = PlainVideoVae(learned, CONFIG.norm_num_groups).encode(seen)[:, : CONFIG.latent_channels]
    noise = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "size": "full size: 2 x 8 x 8 latent, random weights; small: 8 pictures of 32x32, trained weights",
        "random": [] if small else [error(name, random, noise, VaeConfig()) for name in FORMATS],
        "trained": [error(f"{name}, trained", learned, latent, CONFIG, seen) for name in FORMATS],
        "image": image_errors(small),
        "cost": [] if small else [turning_back(random, noise, rounds)],
        "products": [products(dtype) for dtype in (FP8, torch.int8)],
    }


def by_channel(largest: float, store: Callable[[torch.Tensor], torch.Tensor]) -> Round:
    """With a scale per output channel."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().flatten(1).amax(1).clamp(min=1e-12).view(-1, *(1,) * (weight.ndim - 1)) / largest
        return store(weight / scale) * scale

    return rounded


def by_tensor(largest: float, store: Callable[[torch.Tensor], torch.Tensor]) -> Round:
    """With one scale for all."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().amax().clamp(min=1e-12) / largest
        return store(weight / scale) * scale

    return rounded


def as_fp8(values: torch.Tensor) -> torch.Tensor:
    return values.to(FP8).float()


FORMATS: Mapping[str, tuple[int, Round]] = {
    "float32": (32, lambda weight: weight),
    "float16": (16, lambda weight: weight.half().float()),
    "bfloat16": (16, lambda weight: weight.bfloat16().float()),
    "int8 by channel": (8, by_channel(127, torch.round)),
    "int8 by tensor": (8, by_tensor(127, torch.round)),
    "fp8 by channel": (8, by_channel(448, as_fp8)),
    "fp8, cast alone": (8, as_fp8),
}
"""Bits of a weight, and what storing it so leaves of it. Norms and biases stay as they are."""


def stored(weights: Mapping[str, torch.Tensor], name: str) -> tuple[dict[str, torch.Tensor], int]:
    """The weights after they were stored in a format, and the bytes that they took."""
    bits, rounded = FORMATS[name]
    size, made = 0, {}
    for key, weight in weights.items():
        matrix = weight.ndim > 1
        made[key] = rounded(weight) if matrix else weight
        size += weight.numel() * (bits if matrix else min(32, max(bits, 16))) // 8
    return made, size


def error(
    name: str,
    weights: Mapping[str, torch.Tensor],
    latent: torch.Tensor,
    config: VaeConfig,
    pictures: torch.Tensor | None = None,
) -> dict[str, Any]:
    """What a decode with stored weights differs from one with float32 weights, and how close it is to the pictures."""
    lossy, size = stored(weights, name.removesuffix(", trained"))
    made = decoded(lossy, latent, config)
    del lossy
    exact = decoded(weights, latent, config)
    row: dict[str, Any] = {"row": name, "weights_mib": round(size / 2**20, 2), **distances(made, exact)}
    if pictures is not None:
        row["levels"] = round(float((made - exact).abs().max()) * 127.5, 2)
        row["psnr_to_picture"] = round(psnr(made, pictures), 2)
    return row


def image_errors(small: bool) -> list[dict[str, Any]]:
    """The same for a pipeline's VAE: that of FLUX.1, which is every pipeline's of its kind but for the weights."""
    torch.manual_seed(0)
    vae = flux_vae(not small).eval()
    weights = {key: tensor.clone() for key, tensor in vae.state_dict().items()}
    z = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    exact, found = torch.empty(0), []
    with torch.no_grad():
        for name in FORMATS:
            lossy, size = stored(weights, name)
            vae.load_state_dict(lossy)
            made = vae.decode(z, return_dict=False)[0]
            exact = made if name == "float32" else exact
            found.append({"row": f"{name}, image", "weights_mib": round(size / 2**20, 2), **distances(made, exact)})
    return found


def distances(made: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    """The largest difference and the root of its mean square, in standard deviations of the exact result."""
    difference = made - exact
    largest, rms = difference.abs().max() / exact.std(), difference.square().mean().sqrt() / exact.std()
    return {"largest": float(f"{float(largest):.2g}"), "rms": float(f"{float(rms):.2g}")}


def decoded(weights: Mapping[str, torch.Tensor], latent: torch.Tensor, config: VaeConfig) -> torch.Tensor:
    with torch.no_grad():
        return decode_raw(from_state_dict(weights, config=config), latent, VaeSettings(mode="whole"))[0]


def psnr(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Decibels, of pictures in -1..1."""
    return float(10 * torch.log10(4 / (made.clamp(-1, 1) - wanted).square().mean()))


def turning_back(weights: Mapping[str, torch.Tensor], latent: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Seconds of turning the decoder's int8 weights back into float32, against the decode that needs them."""
    vae = from_state_dict(weights)
    settings = VaeSettings(mode="whole")
    parts = {key: tensor for key, tensor in weights.items() if key.startswith("decoder.") and tensor.ndim > 1}
    held = {key: ((tensor * 20).round().to(torch.int8), torch.tensor(0.05)) for key, tensor in parts.items()}
    turned, decoded = [], []
    with torch.no_grad():
        decode_raw(vae, latent, settings)
        for _ in range(rounds):
            before = time.process_time()
            for values, scale in held.values():
                values.float().mul_(scale)
            between = time.process_time()
            decode_raw(vae, latent, settings)
            turned.append(between - before)
            decoded.append(time.process_time() - between)
    shares = [100 * a / b for a, b in zip(turned, decoded, strict=True)]
    return {
        "row": "turning int8 weights back",
        "milliseconds": round(1000 * median(turned), 1),
        "decode_milliseconds": round(1000 * median(decoded), 1),
        "percent": round(median(shares), 1),
        "least_percent": round(min(shares), 1),
        "most_percent": round(max(shares), 1),
    }


def products(dtype: torch.dtype) -> dict[str, Any]:
    """Whether torch convolves in that type here, or what it says instead."""
    name = f"conv3d in {str(dtype).removeprefix('torch.')}"
    x, weight = torch.ones(1, 16, 3, 8, 8).to(dtype), torch.ones(16, 16, 3, 3, 3).to(dtype)
    try:
        F.conv3d(x, weight)
    except (RuntimeError, NotImplementedError) as refusal:
        return {"row": name, "works": False, "said": first_line(refusal)}
    return {"row": name, "works": True, "said": ""}
