"""The attention backends a user can choose, what each of them needs, and a probe that makes one real call of it.

That a package imports says little: a backend is taken for usable on a device when it gives the right result there, for
the data type, head size and kind of mask that the model uses. Calls go through diffusers' own dispatcher; the names
here are the user's, and none of them downloads code.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..fallback import describe, is_out_of_memory, largest_difference

_TOLERANCE = 0.1
"""Largest difference from exact attention over normal noise that a probe lets pass; outputs there are about 0.3. The
coarsest backend (int8 and fp8 matmuls) stays far below it, a wrong mask or layout far above."""


@dataclass(frozen=True)
class Case:
    """One kind of attention call.

    Attributes: device; dtype of query, key and value; head_dim in channels; mask: "none", "bool" or "additive".
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    mask: str = "none"


Check = Callable[[Case], str]
"""Says why a backend cannot serve a case, or ""."""


@dataclass(frozen=True)
class Backend:
    """One choice of attention.

    Attributes:
        dispatch: the name that diffusers' dispatcher knows it by.
        checks: what can be told without a call, cheapest first.
        usually: why a trial call that failed most likely did: what the package is made for. It refuses nothing by
            itself, because there are builds for other devices.
        masks: "any" takes boolean and additive masks; "additive" only the latter, so others are converted; "none"
            takes no mask: calls with one go to SDPA.
        package: what has to be installed, or "".
        lossy: computes in fewer bits than the model, so its first results are checked for NaN and infinity.
        advice: what to know when it is in use, as one phrase, or "".
    """

    dispatch: str
    checks: tuple[Check, ...] = ()
    usually: Check | None = None
    masks: str = "any"
    package: str = ""
    lossy: bool = False
    advice: str = ""


def on_cuda(case: Case) -> str:
    return "" if case.device.type == "cuda" else f"it runs on NVIDIA cards, and this is {case.device.type}"


def on_accelerator(case: Case) -> str:
    return "" if case.device.type != "cpu" else "it runs on graphics cards, and this is cpu"


def half_precision(case: Case) -> str:
    half = case.dtype in (torch.float16, torch.bfloat16)
    return "" if half else f"it takes float16 and bfloat16, and the model computes in {_name(case.dtype)}"


def _half_on_accelerator(case: Case) -> str:
    return on_accelerator(case) or half_precision(case)


def _half_on_cuda(case: Case) -> str:
    return on_cuda(case) or half_precision(case)


def heads_up_to_256(case: Case) -> str:
    return "" if case.head_dim <= 256 else f"it takes heads of at most 256 channels, and these have {case.head_dim}"


def hopper(case: Case) -> str:
    if case.device.type != "cuda":
        return on_cuda(case)
    return "" if torch.cuda.get_device_capability(case.device)[0] == 9 else "it needs a Hopper card (H100, H200)"


BACKENDS: dict[str, Backend] = {
    "sdpa": Backend("native"),
    "xformers": Backend("xformers", usually=on_accelerator, masks="additive", package="xformers"),
    "flash": Backend("flash", (heads_up_to_256,), _half_on_accelerator, "none", "flash_attn"),
    "flash3": Backend("_flash_3", (hopper, half_precision, heads_up_to_256), None, "none", "flash_attn_interface"),
    "sage": Backend("sage", (), _half_on_cuda, "none", "sageattention", lossy=True),
    "cudnn": Backend("_native_cudnn", (on_cuda, half_precision)),
    "efficient": Backend("_native_efficient", (on_accelerator,)),
    "math": Backend("_native_math"),
    "flex": Backend(
        "flex", (on_accelerator,), masks="none", advice="it is fused only inside compiled code: turn torch_compile on"
    ),
}
"""By the name in `settings.ATTENTION_CHOICES`. `flex` builds a block mask per call where it is given one, which costs
more than it saves, so masked calls stay with SDPA."""

INSTALL = {
    "xformers": "pip install xformers",
    "flash_attn": "pip install flash-attn",
    "flash_attn_interface": "built from the hopper folder of Dao-AILab/flash-attention",
    "sageattention": "pip install sageattention",
}
"""By package: how to get it."""

_verdicts: dict[tuple[str, Case], str] = {}
_guard = threading.Lock()


def attend(
    backend: Backend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Attention through `backend`, with whatever mask, right.

    Args:
        query: [B, S, H, D].
        key, value: [B, T, H, D].
        mask: boolean (True attends) or additive, [B, T] or broadcastable to [B, H, S, T].
        options: dropout_p, is_causal, scale, enable_gqa, as for SDPA.

    Returns:
        [B, S, H, D].
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    if mask is not None:
        if backend.masks == "none":
            backend = BACKENDS["sdpa"]
        elif backend.masks == "additive":
            mask = additive_mask(mask, query.dtype)
    name = AttentionBackendName(backend.dispatch)
    return dispatch_attention_fn(query, key, value, attn_mask=mask, backend=name, **options)


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask to be added to the scores: 0 attends, -inf does not. Boolean masks are converted, others only cast.

    xFormers adds whatever it is given, so that a boolean mask would become a bias of 1 and 0. Its kernels also want
    rows that begin at multiples of 16 bytes, hence the padding, which is sliced off again.
    """
    boolean = mask.dtype == torch.bool
    multiple = 16 // dtype.itemsize
    if not boolean and all(stride % multiple == 0 for stride in mask.stride()[:-1]):
        return mask.to(dtype)
    length = mask.shape[-1]
    padded = mask.new_zeros((*mask.shape[:-1], -(-length // multiple) * multiple), dtype=dtype)
    additive = padded[..., :length]
    return additive.masked_fill_(~mask, float("-inf")) if boolean else additive.copy_(mask)


def refuse(name: str, case: Case) -> str:
    """Why a backend cannot be used for a case, as one phrase; "" when it gave the right result there. Remembered.

    Raises:
        torch.OutOfMemoryError: the device has no room even for the probe.
    """
    with _guard:
        if (name, case) not in _verdicts:
            _verdicts[name, case] = _probe(BACKENDS[name], case)
        return _verdicts[name, case]


def forget_probes() -> None:
    """Probe anew from now on: a package was installed, or a test has put a fake in its place."""
    with _guard:
        _verdicts.clear()


def available(device: torch.device | str, dtype: torch.dtype, head_dim: int = 64, mask: str = "none") -> dict[str, str]:
    """Every backend with "" where it works in this case, or the reason why not."""
    case = Case(torch.device(device), dtype, head_dim, mask)
    return {name: refuse(name, case) for name in BACKENDS}


def _probe(backend: Backend, case: Case) -> str:
    if backend.package and not _installed(backend.package):
        return f"the package {backend.package} is not installed ({INSTALL[backend.package]})"
    for check in backend.checks:
        reason = check(case)
        if reason:
            return reason
    try:
        difference = _difference_from_exact(backend, case)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return (backend.usually(case) if backend.usually else "") or f"a trial call failed: {describe(error)}"
    if not difference <= _TOLERANCE:  # NaN is refused too
        return f"a trial call gave a wrong result (difference {difference:.2g} where {_TOLERANCE} is allowed)"
    return ""


def _installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _difference_from_exact(backend: Backend, case: Case) -> float:
    """Of one call over normal noise from exact attention in float32. The process's random state is left alone."""
    from diffusers.models import attention_dispatch

    requirements = getattr(attention_dispatch, "_check_attention_backend_requirements", None)
    if requirements is not None:
        requirements(attention_dispatch.AttentionBackendName(backend.dispatch))
    batch, heads, length = 2, 2, 128
    generator = torch.Generator().manual_seed(0)
    shape = (batch, length, heads, case.head_dim)
    q, k, v = (torch.randn(shape, generator=generator).to(case.device, case.dtype) for _ in range(3))
    mask = None
    if case.mask != "none":
        kept = torch.arange(length, device=case.device) < length * 3 // 4
        mask = kept.expand(batch, 1, 1, length)
        mask = additive_mask(mask, case.dtype) if case.mask == "additive" else mask
    with torch.no_grad():
        found = attend(backend, q, k, v, mask)
        q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    return largest_difference(found, exact)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
