"""Which device and which dtype "auto" means here, and whether a named device exists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import InputError

if TYPE_CHECKING:
    import torch

_SHORT = {
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3fn": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
"""What people type -> torch's name."""


def dtype_name(text: str) -> str:
    """Torch's name for a dtype that may be named shortly; any other text unchanged.

    >>> [dtype_name(text) for text in ("bf16", "FP16", "torch.float32", "auto")]
    ['bfloat16', 'float16', 'float32', 'auto']
    """
    plain = text.strip().lower().removeprefix("torch.")
    return _SHORT.get(plain, plain)


def resolve_device(device: str) -> str:
    """The device to use: "auto" is the first accelerator that works here, else "cpu".

    Raises:
        InputError: the named device does not exist here.
    """
    import torch

    if device == "auto":
        return next((f"{kind}:0" for kind in ("cuda", "xpu") if _count(kind)), "mps" if _count("mps") else "cpu")
    kind, _, number = device.partition(":")
    available = _count(kind) if kind in ("cuda", "xpu", "mps") else 1
    if kind not in ("cpu", "cuda", "xpu", "mps") or (number and not number.isdigit()):
        raise InputError("device", device, "there is no such kind of device", "use auto, cpu, cuda, cuda:1, mps or xpu")
    if int(number or 0) >= available:
        found = f"{available} {kind} device(s)" if available else f"no {kind} device"
        raise InputError("device", device, f"torch {torch.__version__} finds {found} here", "use auto or cpu")
    return f"{kind}:{int(number or 0)}" if kind in ("cuda", "xpu") else kind


def _count(kind: str) -> int:
    """How many devices of a kind torch can use here."""
    import torch

    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return int(module.device_count()) if module is not None and module.is_available() else 0


def resolve_dtype(dtype: str, device: str) -> str:
    """The name of the dtype that "auto" means on a resolved device; any other name unchanged."""
    import torch

    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "float32"
    if device.startswith("cuda"):
        # Cards before Ampere emulate bfloat16, slowly: they count as not able to.
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip else "float16"
    return "bfloat16" if device.startswith("xpu") else "float16"


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """While the block runs, new floating-point tensors have this dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
