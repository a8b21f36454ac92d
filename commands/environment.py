"""Facts about this machine that decide what runs well: devices, versions, compilers, known defects.

Looks only: nothing is changed, downloaded or compiled to a file. Every value is JSON-compatible.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from .. import __version__

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "peft",
    "triton",
    "triton-windows",
    "xformers",
    "flash-attn",
    "sageattention",
    "sdnq",
    "cache-dit",
    "comfy-kitchen",
    "torchvision",
    "numpy",
    "av",
)

GIB = 2**30


def package_versions() -> dict[str, str]:
    """Installed version of each package that matters, "" where it is missing."""
    versions = {"fastdiffusers": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    if versions["torch"]:
        import torch

        versions["torch"] = str(torch.__version__)  # with its build, such as +cu130
    return versions


def devices() -> list[dict[str, Any]]:
    """Every device torch can use, best first, the CPU last: name, kind, memory in GiB, compute capability."""
    import torch

    from ..cache_folder import processor_name
    from ..memory import device_memory

    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "total_gib": round(total / GIB, 2),
                "free_gib": round(free / GIB, 2),
                "capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
            }
        )
    for index in range(torch.xpu.device_count()):
        intel = torch.xpu.get_device_properties(index)
        total = intel.total_memory
        found.append({"device": f"xpu:{index}", "name": intel.name, "total_gib": round(total / GIB, 2)})
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        found.append({"device": "mps", "name": platform.machine(), "total_gib": round(total / GIB, 2)})
    memory = device_memory(torch.device("cpu"))
    sizes = {"total_gib": round(memory.total / GIB, 2), "free_gib": round(memory.free / GIB, 2)}
    found.append({"device": "cpu", "name": processor_name(), "threads": torch.get_num_threads(), **sizes})
    return found


def driver() -> dict[str, str]:
    """What torch was built for and what the driver offers: CUDA or ROCm version, driver version, "" if none."""
    import torch

    from ..cache_folder import kernel_driver

    return {
        "platform": platform.platform(),
        "torch_cuda": torch.version.cuda or "",
        "torch_hip": torch.version.hip or "",
        "nvidia_driver": kernel_driver(),
    }


def cudnn() -> dict[str, Any]:
    """cuDNN's version and whether its convolutions over video take three times the memory they should.

    It depends on the cuDNN that is loaded, not on torch's version alone.
    """
    import torch

    from ..memory import conv3d_memory_defect

    number = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    if number is None:
        return {"version": "", "conv3d_memory_defect": False}
    text = f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number >= 90000 else str(number)
    return {"version": text, "conv3d_memory_defect": conv3d_memory_defect()}


def compiler(device: str) -> dict[str, Any]:
    """Whether torch.compile can make code here: {"works": bool, "reason": str, "needs": str}.

    On a GPU it needs Triton; on the CPU a C++ compiler. Looked up, not tried: a first compilation takes many seconds.
    """
    import torch

    from ..optimizations.compile import switched_off

    if not torch._dynamo.is_dynamo_supported():
        reason = f"torch {torch.__version__} has no dynamo for Python {platform.python_version()}"
        return {"works": False, "needs": "dynamo", "reason": reason}
    if off := switched_off():
        return {"works": False, "needs": "dynamo", "reason": off}
    if device.split(":")[0] in ("cuda", "xpu"):
        from torch.utils._triton import has_triton

        name = "triton-windows" if sys.platform == "win32" else "triton"
        works = bool(has_triton())
        reason = "" if works else f"Triton is missing or does not serve this card: pip install {name}"
        return {"works": works, "needs": "Triton", "reason": reason}
    found = cxx_compiler()
    return {
        "works": bool(found),
        "needs": "a C++ compiler",
        "reason": f"uses {found}" if found else "no C++ compiler found: install g++ or clang, or set CXX",
    }


def cxx_compiler() -> str:
    """Path of the C++ compiler that inductor would use, "" if there is none."""
    wanted = ("cl",) if sys.platform == "win32" else ("g++", "clang++", "c++")
    named = os.environ.get("CXX")
    return next((path for path in map(shutil.which, (named, *wanted) if named else wanted) if path), "")


def allocator() -> dict[str, Any]:
    """The settings of torch's CUDA allocator, as the environment gives them."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    settings = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return {"settings": settings, "expandable_segments": "expandable_segments:True" in settings}


def cache_folders() -> dict[str, str]:
    """Where downloads and compiled code are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from torch._inductor.runtime.runtime_utils import cache_dir

    return {"hub": str(HF_HUB_CACHE), "inductor": str(cache_dir())}


def missing_requirements(comfyui: Path) -> list[str]:
    """What ComfyUI's requirements.txt names and this Python does not have, without versions."""
    try:
        lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    names = [found[0] for line in lines if (found := re.match(r"[A-Za-z][\w.-]*", line.strip()))]
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
