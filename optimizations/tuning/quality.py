"""How far a result is from the plain one."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from ...fallback import all_finite

LOSSLESS_DB = 50.0
"""From this PSNR on a result counts as the same picture: 50 dB is a root mean square error of 0.8 of 255 levels."""
SAMPLED_FRAMES = 8
"""SSIM and LPIPS are slow: of a video they look at this many frames, evenly spread."""


@dataclass(frozen=True)
class Quality:
    """A result against the plain one, both in 0..1.

    Attributes:
        finite: False when the result holds NaN or infinity; the other fields are None then.
        identical: True when every value is equal.
        psnr_db: peak signal to noise ratio in dB; None when identical (it is infinite) or not comparable.
        max_difference: the largest absolute difference of one value.
        ssim: structural similarity, 1 = same; None for pictures below 11 pixels.
        lpips: perceptual distance, 0 = same; None where the package `lpips` or its weights are not installed.
        problem: why there is no comparison, or "".
    """

    finite: bool = True
    identical: bool = False
    psnr_db: float | None = None
    max_difference: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    problem: str = ""

    @property
    def lossless(self) -> bool:
        """Whether the result can stand in for the plain one without anybody seeing it."""
        return self.finite and (self.identical or (self.psnr_db is not None and self.psnr_db >= LOSSLESS_DB))


def quality(result: torch.Tensor, plain: torch.Tensor) -> Quality:
    """Compare two results of one shape.

    Args:
        result, plain: frames [..., H, W, 3] in 0..1, or any tensors of one shape (no SSIM and LPIPS then).
    """
    if not all_finite(result):
        return Quality(finite=False, problem="the result holds NaN or infinity")
    if result.shape != plain.shape:
        return Quality(problem=f"the shape is {tuple(result.shape)}, plain gives {tuple(plain.shape)}")
    if not all_finite(plain):
        return Quality(problem="the plain result holds NaN or infinity")
    if torch.equal(result, plain):
        return Quality(identical=True, max_difference=0.0, ssim=1.0, lpips=0.0)
    squared, largest, count = 0.0, 0.0, 0
    for one, other in zip(_pictures(result), _pictures(plain), strict=True):  # one frame at a time: video is large
        difference = one.double() - other.double()
        squared += float(difference.square().sum())
        largest = max(largest, float(difference.abs().max()))
        count += difference.numel()
    return Quality(
        psnr_db=psnr(squared / count),
        max_difference=largest,
        ssim=_mean(result, plain, ssim),
        lpips=_mean(result, plain, lpips),
    )


def psnr(mean_squared_error: float) -> float | None:
    """Peak signal to noise ratio in dB for a peak of 1; None (infinite) for no error."""
    return None if mean_squared_error == 0 else -10 * math.log10(mean_squared_error)


def _pictures(frames: torch.Tensor) -> list[torch.Tensor]:
    is_pictures = frames.dim() >= 3 and frames.shape[-1] == 3
    return list(frames.reshape(-1, *frames.shape[-3:])) if is_pictures else [frames]


def _mean(
    result: torch.Tensor, plain: torch.Tensor, measure: Callable[[torch.Tensor, torch.Tensor], float | None]
) -> float | None:
    """The mean over at most `SAMPLED_FRAMES` frames, evenly spread; None where one of them has no value."""
    if result.dim() < 3 or result.shape[-1] != 3:
        return None
    pairs = list(zip(_pictures(result), _pictures(plain), strict=True))
    step = math.ceil(len(pairs) / SAMPLED_FRAMES)
    known = [value for value in (measure(*pair) for pair in pairs[::step]) if value is not None]
    return sum(known) / len(known) if known else None


def ssim(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Structural similarity of two pictures [H, W, 3] in 0..1 (Wang et al. 2004, Gaussian window of 11, sigma 1.5)."""
    if min(one.shape[:2]) < 11:
        return None
    x, y = (picture.double().permute(2, 0, 1).unsqueeze(1) for picture in (one, other))
    offsets = torch.arange(11, dtype=torch.float64, device=x.device) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line = line / line.sum()
    window = (line[:, None] * line[None, :])[None, None]

    def local(picture: torch.Tensor) -> torch.Tensor:
        return F.conv2d(picture, window)

    mean_x, mean_y = local(x), local(y)
    variance_x = local(x * x) - mean_x.square()
    variance_y = local(y * y) - mean_y.square()
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)
    )
    return float(similarity.mean())


def lpips(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Perceptual distance of two pictures [H, W, 3] in 0..1, or None: nothing is downloaded for it."""
    backbone = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if importlib.util.find_spec("lpips") is None or not backbone.is_file():
        return None
    with torch.no_grad():
        x, y = (picture.float().cpu().permute(2, 0, 1)[None] * 2 - 1 for picture in (one, other))
        return float(_lpips_network()(x, y))


@lru_cache(maxsize=1)
def _lpips_network() -> torch.nn.Module:
    import lpips as package

    return package.LPIPS(net="alex", verbose=False)
