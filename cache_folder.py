"""Where anything is remembered on disk, and the fingerprint of machine and versions for which it holds.

A leaf: the measurements behind "auto", the choices of kernels and compiled code all ask here.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch

from .processor_threads import given_threads

ENVIRONMENT_VARIABLE = "FASTDIFFUSERS_CACHE"
ATTENTION_LIBRARIES = ("xformers", "flash-attn", "flash-attn-3", "sageattention")
PACKAGES = ("diffusers", *ATTENTION_LIBRARIES, "triton", "triton-windows", "comfy-kitchen", "fastdiffusers")

_given_folder: Path | None = None


def use_folder(folder: Path) -> None:
    """Keep measurements in `folder` from now on: ComfyUI's user folder, say. The environment variable goes first."""
    global _given_folder
    _given_folder = folder


def default_folder() -> Path:
    """Where measurements are: `FASTDIFFUSERS_CACHE` if it is set, else the folder handed to `use_folder`, else
    `cache_folder()`."""
    if os.environ.get(ENVIRONMENT_VARIABLE) or _given_folder is None:
        return cache_folder()
    return _given_folder


def cache_folder() -> Path:
    """Where things are kept that can be made again, compiled code say: `FASTDIFFUSERS_CACHE`, else the user's cache."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(os.path.expanduser(named))  # pathlib's raises for a user that is not there
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "fastdiffusers"


@contextmanager
def filled(place: Path, *names: str) -> Iterator[Path]:
    """A folder to fill, which takes its place when the block succeeds. Where another process was faster, that one's
    stays, and nobody reads half of either.

    Args:
        names: of the files without which a folder that is there already is not whole.

    Raises:
        OSError: it cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as beside:
        made = Path(beside, "made")
        made.mkdir()
        yield made
        if place.is_dir() and not _holds(place, names):  # somebody has removed a file
            os.replace(place, Path(beside, "broken"))
        try:
            os.replace(made, place)
        except OSError:
            if not _holds(place, names):
                raise


def _holds(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in names)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of torch, packages, driver and cuDNN, and the C compiler: what decides what works and what is fastest.

    Read once per process. What is not installed is not in it.
    """
    found = {"torch": str(torch.__version__)}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        **found,
        **_driver(),
        "cudnn": str(torch.backends.cudnn.version()),
        "compiler": os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "",  # Triton needs one
    }


def software() -> str:
    """Those of the `versions` that decide the speed of a pipeline, as one line for a person."""
    silent = ("comfy-kitchen", "fastdiffusers", "cudnn", "compiler")
    return ", ".join(f"{name} {version}" for name, version in versions().items() if name not in silent)


def _driver() -> dict[str, str]:
    """The kernel driver on Linux; elsewhere the CUDA version that the driver offers."""
    if kernel_driver():
        return {"driver": kernel_driver()}
    if torch.version.cuda and torch.cuda.is_available():
        offered = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
        return {"driver for CUDA": str(offered)}
    return {}


def kernel_driver() -> str:
    """Version of NVIDIA's kernel driver as Linux tells it, or ""."""
    version = Path("/proc/driver/nvidia/version")
    words = version.read_text(errors="replace").splitlines()[0].split() if version.is_file() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def device_name(device: torch.device) -> str:
    """Name and size of `device`, the same in every process on one machine."""
    if device.type in ("cuda", "xpu"):
        properties = getattr(torch, device.type).get_device_properties(device)
        return f"{properties.name}, {round(properties.total_memory / 2**30)} GiB"
    if device.type == "cpu":
        return f"{processor_name()}, {given_threads()} threads"
    return f"{device.type}, {platform.machine()}"


@lru_cache(maxsize=1)
def processor_name() -> str:
    """The CPU's name as its maker writes it, where the system tells."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
