"""The kernels of the package comfy-kitchen, which ComfyUI brings along, behind the signatures of `Kernels`.

Only its compiled backends are of use: its own eager fallback is no better than ours, so it counts as missing. It reads
and writes channels-last memory; into the inside of a padded buffer it goes by way of a copy, which is why
`triton_group_norm` comes first.
"""

from __future__ import annotations

import torch

from .eager import Statistics, biased

__all__ = ["NAME", "CannotServeError", "fp16_conv3d", "group_norm_silu", "unavailable"]

NAME = "comfy_kitchen"
BACKENDS = {"cuda": ("hip" if torch.version.hip else "cuda",)}
"""Compiled backends of the package, by kind of device."""


class CannotServeError(RuntimeError):
    """This input is not one the package has a compiled kernel for."""


def unavailable(device: torch.device | str) -> str:
    """Return why the package has nothing for tensors of `device`, or ""."""
    kind = torch.device(device).type
    if kind not in BACKENDS:
        return f"it has no compiled kernels for {kind} tensors"
    try:
        from comfy_kitchen.registry import registry
    except ImportError as error:
        return f"comfy-kitchen cannot be imported: {error}"
    if any(registry.is_available(backend) for backend in BACKENDS[kind]):
        return ""
    reasons = [str(registry.list_backends().get(name, {}).get("unavailable_reason")) for name in BACKENDS[kind]]
    return f"comfy-kitchen: {'; '.join(reasons)}"


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
    *,
    input_bias: torch.Tensor | None = None,
    statistics: Statistics | None = None,
    activation: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `Kernels.group_norm_silu`.

    Raises:
        CannotServeError: the package would fall back to a slower way, or round more often than we do.
    """
    if x.stride(1) != 1:
        raise CannotServeError("it needs channels-last memory")
    if x.shape[1] % 8 or x.shape[1] > 2048:
        raise CannotServeError(f"it needs a multiple of 8 channels, at most 2048, not {x.shape[1]}")
    if weight.dtype != x.dtype:
        raise CannotServeError(f"it would round the {weight.dtype} weights to {x.dtype}")
    _require("group_norm_silu_pad3d", {"x": x, "weight": weight, "bias": bias})
    from comfy_kitchen import group_norm_silu_pad3d

    x = biased(x, input_bias)
    given = None
    if statistics is not None:
        given = torch.stack(statistics, dim=-1).flatten(0, 1).contiguous()
    return group_norm_silu_pad3d(
        x, weight, bias, groups, eps, (0, 0, 0, 0, 0), activation, zero_pad=True, out=out, stats=given
    )


def fp16_conv3d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, ...]
) -> torch.Tensor:
    """Convolution [B, I, T, H, W] -> [B, O, T', H', W'] without padding that also *sums* in float16.

    Faster on cards that halve their rate for float32 sums, at a price in digits: never used unless asked for.

    Raises:
        CannotServeError: the package would run PyTorch's convolution instead.
    """
    if x.dtype != torch.float16 or weight.dtype != torch.float16:
        raise CannotServeError("it needs float16")
    if weight.shape[0] % 8 or (weight.shape[1] % 8 and weight.shape[1] >= 8):
        raise CannotServeError(f"it needs multiples of 8 channels, not {weight.shape[1]} to {weight.shape[0]}")
    _require("fp16_conv3d", {"x": x, "weight": weight, "bias": bias})
    import comfy_kitchen

    return comfy_kitchen.fp16_conv3d(x, weight, bias, stride=stride)


def _require(operation: str, arguments: dict[str, torch.Tensor | None]) -> None:
    """Raise unless a compiled backend takes these arguments."""
    device = next(value.device.type for value in arguments.values() if value is not None)
    from comfy_kitchen.exceptions import NoCapableBackendError
    from comfy_kitchen.registry import registry

    try:
        backend = registry.get_capable_backend(operation, arguments)
    except NoCapableBackendError as error:
        raise CannotServeError(str(error)) from error
    if backend not in BACKENDS.get(device, ()):
        raise CannotServeError(f"its {operation} would run on the {backend} backend")
