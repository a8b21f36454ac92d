"""Half precision on a processor without it: PyTorch's own convolutions take many times as long there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..optimizations.components import modules

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST_LEFT_UNSAID = 2
"""Convolutions of a model: a transformer has one or two, which cut a latent into its tokens and cost nothing."""


def slow_precision_note(pipeline: Any, device: torch.device, vae_only: bool = False) -> str:
    """That models convolve in a precision that this processor has not, and the cure; "" where none does.

    Args:
        device: where they compute.
        vae_only: whether nothing but the VAE runs.
    """
    if device.type != "cpu":
        return ""
    found = {name: half for name, model in modules(pipeline).items() if (half := _slow_in(model))}
    names = [name for name in found if name == "vae" or not vae_only]
    if not names:
        return ""
    dtype = found[names[0]]
    return (
        f"dtype: {dtype} is slow on this processor, which has no convolutions in it: PyTorch's own take many times as "
        f"long, in {' and '.join(names)}. Use float32 (--dtype float32)."
    )


def _slow_in(model: nn.Module) -> str:
    """The half precision that a model convolves in and that oneDNN does not take here, "" where there is none."""
    from ..vae.network.convolution import is_widened

    slow = [weight for weight in _kernels(model) if is_widened(weight)]
    return str(slow[0].dtype).removeprefix("torch.") if len(slow) > MOST_LEFT_UNSAID else ""


def _kernels(model: nn.Module) -> Iterator[torch.Tensor]:
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield module.weight
