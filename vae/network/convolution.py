"""The one place where a 3-D convolution is called: by the way that is fastest on a card, where that may be chosen,
and around bad choices of libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...memory import conv3d_memory_defect
from ..kernels.conv_choice import CANDIDATES, Candidate, ConvChoice
from ..kernels.saved_choices import SAVED


def conv3d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, ...] = (1, 1, 1)
) -> torch.Tensor:
    """Convolution of a buffer that already holds its padding: [B, I, T, H, W] to [B, O, T', H', W'].

    Compiled code calls PyTorch's, as inductor knows it: a choice by measuring cannot be traced.
    """
    if torch.compiler.is_compiling():
        return F.conv3d(x, weight, bias, stride)
    return CHOICE(x, weight, bias, stride) if on_card(x) else torch_conv3d(x, weight, bias, stride)


def on_card(x: torch.Tensor) -> bool:
    """Return whether cuDNN (or MIOpen) convolves x."""
    return x.is_cuda


def torch_conv3d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, ...]
) -> torch.Tensor:
    """PyTorch's own convolution, called so that a card takes no more memory, a processor no more time than needed."""
    if x.is_meta:
        return without_data(x, weight, stride)
    if is_widened(x):
        return in_float32(torch_conv3d, x, weight, bias, stride)
    if x.is_cuda and x.dtype != torch.float32 and conv3d_memory_defect():
        y = torch.cudnn_convolution(x, weight, (0, 0, 0), stride, (1, 1, 1), 1, False, False, True)
        return y if bias is None else y.add_(bias.view(-1, 1, 1, 1))
    if not x.is_cuda and unfolds(x):
        return torch.mkldnn_convolution(x, weight, bias, (0, 0, 0), stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride)


def without_data(x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """Return what a convolution makes in a dry run, laid out as oneDNN and cuDNN leave it.

    PyTorch's own answer for tensors without data is contiguous, and what follows would go other ways than it does.
    """
    sizes = [(size - taps) // step + 1 for size, taps, step in zip(x.shape[2:], weight.shape[2:], stride, strict=True)]
    last = any(part.stride(1) == 1 and part.shape[1] > 1 for part in (x, weight))
    layout = torch.channels_last_3d if last else torch.contiguous_format
    shape = (x.shape[0], weight.shape[0], *sizes)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


@lru_cache(maxsize=8)
def onednn_takes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN convolves in that precision on this processor: half of it not on every one."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def is_widened(x: torch.Tensor) -> bool:
    """Return whether x is convolved in float32 and rounded afterwards, although it is in half precision.

    PyTorch's own loops for half precision take twenty to a hundred times as long on a processor without it.
    """
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) and not onednn_takes(x.dtype)


def in_float32(
    convolve: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *rest: Any
) -> torch.Tensor:
    """Return what `convolve` makes of an input, weight and bias in float32, in the precision of x."""
    return convolve(x.float(), weight.float(), None if bias is None else bias.float(), *rest).to(x.dtype)


def padded_outputs(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, ...]
) -> torch.Tensor:
    """PyTorch's own convolution with output channels added up to a multiple of 8, and left out of what is returned.

    The matrix units of a card take no other number: three channels of a picture would go another way.
    """
    outputs = weight.shape[0]
    more = weight.new_zeros((-outputs % 8, *weight.shape[1:]))
    last = torch.channels_last_3d if weight.stride(1) == 1 else torch.contiguous_format
    wide = torch.cat([weight, more]).contiguous(memory_format=last)
    y = torch_conv3d(x, wide, None, stride)[:, :outputs]
    return y if bias is None else y.add_(bias.view(-1, 1, 1, 1))


OWN_CANDIDATES = {"padded_outputs": Candidate(padded_outputs, lambda key: key.channels_last and key.weight[0] % 8 > 0)}
CHOICE = ConvChoice(torch_conv3d, candidates={**CANDIDATES, **OWN_CANDIDATES}, saved=SAVED)
"""The convolutions chosen in this process, by shape."""


def bias_of(conv: nn.Conv3d) -> torch.Tensor:
    """Return the bias [O], zeros where there is none."""
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def bias_is_a_pass(x: torch.Tensor) -> bool:
    """Return whether PyTorch adds a bias to a convolution of x in a pass of its own, so that it is better added later.

    It does on cards, whatever convolves there; oneDNN adds it on the way.
    """
    return on_card(x)


def unfolds(x: torch.Tensor) -> bool:
    """Return whether PyTorch would take this CPU input for too small for oneDNN, and copy it once per kernel tap.

    Strips and single frames are that small. The copies cost memory, and several times the time.
    """
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
