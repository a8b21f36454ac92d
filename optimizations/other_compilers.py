"""Who else has a say in torch.compile: whoever switched it off for the process, whoever compiled a model before.

Two compilers of one model fight: the outer one traces into what the inner one made. And where torch.compile is off, it
succeeds and compiles nothing. Both are found here, so that a report says so instead of claiming compiled code.

ComfyUI's own compilers are no case of this. Torch Compile Model swaps modules while ComfyUI runs one of its own MODELs;
the Comfy Compiler records memory and CUDA graphs within the forward of such a model and ends with it. A diffusers
pipeline is neither, and runs outside of both.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import nn


def switched_off() -> str:
    """Why torch.compile compiles nothing in this process, whatever it is asked, or ""."""
    import torch._dynamo.config
    import torch._dynamo.eval_frame as eval_frame

    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "torch.compile is off in this process: TORCHDYNAMO_DISABLE=1"
    if torch._dynamo.config.disable:
        return "torch.compile is off in this process: TORCH_COMPILE_DISABLE=1, or another extension turned it off"
    stance = getattr(getattr(eval_frame, "_stance", None), "stance", "default")
    return "torch.compile is off in this process: its stance is force_eager" if stance == "force_eager" else ""


def compiled_elsewhere(model: nn.Module, is_ours: Callable[[object], bool] = lambda _call: False) -> str:
    """Name within `model` of the first module that somebody else has compiled, "." for the model itself; or "".

    Args:
        is_ours: whether what stands in a module's `_compiled_call_impl` was put there by this pack.
    """
    from torch._dynamo.eval_frame import OptimizedModule

    for name, module in model.named_modules():
        call = module._compiled_call_impl
        if isinstance(module, OptimizedModule) or (call is not None and not is_ours(call)):
            return name or "."
    return ""
