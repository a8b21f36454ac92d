"""Switches that are advised for speed: what each of them does in this torch, by trying it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SHAPES = 12


def run(rounds: int, small: bool) -> dict[str, Any]:
    """Findings; nothing here is timed."""
    return {
        "rows": [
            *(quantize_dynamically(dtype) for dtype in (torch.float8_e4m3fn, torch.qint8)),
            *(graphs(limit) for limit in (torch._dynamo.config.recompile_limit, 64)),
            *(failing(suppress) for suppress in (False, True)),
            *(tf32(value) for value in ("", "1")),
        ]
    }


def row(name: str, tried: int | str, done: int | str, said: str = "") -> dict[str, Any]:
    return {"row": name, "tried": tried, "done": done, "said": said}


def quantize_dynamically(dtype: torch.dtype) -> dict[str, Any]:
    """How many layers `quantize_dynamic(vae, {nn.Conv3d, nn.Linear})` quantizes, of a convolution and a linear one."""
    layers = nn.Sequential(nn.Conv3d(16, 16, 3), nn.Linear(16, 16))
    name = f"quantize_dynamic, {str(dtype).removeprefix('torch.')}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = torch.ao.quantization.quantize_dynamic(layers, {nn.Conv3d, nn.Linear}, dtype=dtype)
        except Exception as error:  # noqa: BLE001 - that it fails, and how, is what is reported
            return row(name, 2, 0, f"{type(error).__name__}: {error}")
    kept = {nn.Conv3d: "Conv3d", nn.Linear: "Linear"}
    left = [kept[type(layer)] for layer in made if type(layer) in kept]
    return row(name, 2, 2 - len(left), f"left as it is: {', '.join(left)}" if left else "")


def graphs(limit: int) -> dict[str, Any]:
    """How many of several shapes get compiled code when every shape needs its own."""
    compiled = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled.append(1)
        return graph.forward

    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=limit):
        function = torch.compile(lambda x: x * 2 + 1, backend=backend, dynamic=False)
        for size in range(2, 2 + SHAPES):
            function(torch.zeros(size))
    torch._dynamo.reset()
    return row(f"recompile_limit {limit}", SHAPES, len(compiled))


def failing(suppress: bool) -> dict[str, Any]:
    """What a backend that fails comes to."""

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        raise ValueError("no code")

    torch._dynamo.reset()
    name = f"suppress_errors {suppress}"
    with torch._dynamo.config.patch(suppress_errors=suppress):
        try:
            torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2))
        except Exception as error:  # noqa: BLE001 - that it is told, is what is reported
            return row(name, 1, 0, type(error).__name__)
        finally:
            torch._dynamo.reset()
    return row(name, 1, 1, "the caller learns nothing")


def tf32(value: str) -> dict[str, Any]:
    """torch's own switches in a process with NVIDIA_TF32_OVERRIDE."""
    environment = {key: text for key, text in os.environ.items() if key != "NVIDIA_TF32_OVERRIDE"}
    environment |= {"NVIDIA_TF32_OVERRIDE": value} if value else {}
    program = "import torch; print(torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    matmul, convolution = done.stdout.split()
    return row(f"NVIDIA_TF32_OVERRIDE={value}", "products", matmul, f"convolutions {convolution}")
