"""The ways to quantize while loading, what each needs, and what a checkpoint holds already. Reads no weights.

Quantized weights take less memory, and with some schemes the matrix products get faster; every scheme loses a little
quality. Each lives in a package of its own that is optional, except layerwise fp8 casting, which diffusers does itself.
Only denoisers and large text encoders are quantized: VAEs and CLIP encoders are small, and they suffer most.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import torch

Components = Mapping[str, tuple[str, str] | list[str]]
"""A model index: {"transformer": ("diffusers", "FluxTransformer2DModel"), ...}."""


@dataclass(frozen=True)
class Scheme:
    """One way to quantize while loading.

    Attributes:
        name: as the user chooses it.
        package: what has to be importable, "" when nothing is.
        install: how to get it.
        help: one line: what is stored, and what it is good for.
        after_load: True when a loaded model is converted in place; the others convert while the weights stream in.
        text_encoders: False when only the denoisers are quantized.
    """

    name: str
    package: str
    install: str
    help: str
    after_load: bool = False
    text_encoders: bool = True


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("sdnq-int8", "sdnq", "pip install sdnq", "8-bit integers; the safest choice, on every kind of device"),
        Scheme("sdnq-uint4", "sdnq", "pip install sdnq", "4-bit integers with a scale per group of weights"),
        Scheme("torchao-int8", "torchao", "pip install torchao", "8-bit integers; meant to be compiled"),
        Scheme("torchao-fp8", "torchao", "pip install torchao", "8-bit floats; meant to be compiled"),
        Scheme(
            "torchao-fp8-dynamic",
            "torchao",
            "pip install torchao",
            "8-bit floats, activations too: the products themselves run in fp8; NVIDIA Ada, Hopper or newer",
            text_encoders=False,
        ),
        Scheme("bnb-nf4", "bitsandbytes", "pip install bitsandbytes", "4-bit normal floats; needs an accelerator"),
        Scheme(
            "layerwise-fp8",
            "",
            "",
            "denoiser stored in 8-bit floats and cast layer by layer; needs no package",
            after_load=True,
            text_encoders=False,
        ),
    )
}

NONE = "none"
LAYERWISE = "layerwise-fp8"

METHOD_PACKAGES = {
    "sdnq": ("sdnq", "sdnq"),
    "sdnq_training": ("sdnq", "sdnq"),
    "torchao": ("torchao", "torchao"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "bitsandbytes_4bit": ("bitsandbytes", "bitsandbytes"),
    "bitsandbytes_8bit": ("bitsandbytes", "bitsandbytes"),
    "gguf": ("gguf", "gguf"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "auto-round": ("auto_round", "auto-round"),
    "modelopt": ("modelopt", "nvidia-modelopt"),
}
"""`quant_method` of a component's config -> (module to find, package to install)."""


def quantization_choices() -> tuple[str, ...]:
    """What `quantization` can be, installed or not: "none" loads the weights as the checkpoint holds them."""
    return (NONE, *SCHEMES)


def check_quantization(name: str, device: str | torch.device = "auto") -> None:
    """Check a choice before anything is read.

    Args:
        name: one of `quantization_choices()`.
        device: where the model will run; "auto" and "" check nothing about the device.

    Raises:
        InputError: no such choice, or the device cannot run it.
        MissingDependencyError: its package is not installed.
    """
    if name == NONE:
        return
    if name not in SCHEMES:
        choices = ", ".join(quantization_choices())
        raise InputError("quantization", name, "it is not one of the choices", f"choose one of: {choices}")
    scheme = SCHEMES[name]
    if scheme.package and not _installed(scheme.package):
        raise MissingDependencyError(scheme.package, f"quantization = {name!r}", scheme.install)
    if name == "torchao-fp8-dynamic" and str(device) not in ("auto", ""):
        _check_fp8_matmul(str(device))
    if name == "bnb-nf4" and str(device) == "cpu":
        reason = "diffusers lets bitsandbytes quantize on an accelerator only"
        raise InputError("quantization", name, reason, "choose sdnq-uint4")


def checkpoint_quantization(
    folder: Path, components: Iterable[str], elsewhere: Mapping[str, Path] = MappingProxyType({})
) -> dict[str, str]:
    """Which components of a diffusers folder are quantized already, and how: {"transformer": "sdnq"}.

    Args:
        elsewhere: folders of components that are not in a subfolder of their name.

    Reads the components' `config.json` and `quantization_config.json`; unreadable ones count as not quantized here,
    because it is for the loader to complain about them.
    """
    found = {}
    for name in components:
        path = elsewhere.get(name, folder / name) / "config.json"
        config = _read_json(path).get("quantization_config") or _read_json(path.with_name("quantization_config.json"))
        if isinstance(config, dict) and config.get("quant_method"):
            found[name] = str(config["quant_method"])
    return found


def check_checkpoint(
    folder: Path,
    components: Iterable[str],
    quantization: str = NONE,
    elsewhere: Mapping[str, Path] = MappingProxyType({}),
) -> dict[str, str]:
    """Check that what a folder holds can be loaded, and return `checkpoint_quantization` of it.

    Raises:
        MissingDependencyError: a component is quantized with a package that is not installed. (Without SDNQ a
            quantized text encoder would load without any complaint and give wrong results.)
        InputError: a quantization was asked for on top of the one that the checkpoint has.
    """
    found = checkpoint_quantization(folder, components, elsewhere)
    for component, method in found.items():
        module, package = METHOD_PACKAGES.get(method, ("", ""))
        if module and not _installed(module):
            raise MissingDependencyError(
                package, f"{folder.name}: its {component} is quantized with {method}; loading it"
            )
    if quantization != NONE and found:
        held = ", ".join(f"{component} with {method}" for component, method in found.items())
        cure = f"choose {NONE}, which loads it as it is"
        raise InputError("quantization", quantization, f"{folder.name} is quantized already ({held})", cure)
    return found


def quantizable(components: Components, name: str = NONE) -> dict[str, str]:
    """The components that a scheme quantizes, each with its library.

    Args:
        components: a model index: {"transformer": ["diffusers", "FluxTransformer2DModel"], ...}; entries of any other
            form, and absent components ([None, None]), are passed over.
        name: a scheme; "none" lists what any scheme may touch.
    """
    text_encoders = name == NONE or SCHEMES[name].text_encoders
    chosen = {}
    for component, entry in components.items():
        if component.startswith("_") or not isinstance(entry, (tuple, list)) or len(entry) != 2 or not entry[0]:
            continue
        library, class_name = entry
        denoiser = component.startswith(("transformer", "unet", "prior"))
        large_text = (
            component.startswith("text_encoder") and library == "transformers" and "CLIP" not in str(class_name)
        )
        if denoiser or (large_text and text_encoders):
            chosen[component] = str(library)
    return chosen


def _check_fp8_matmul(device: str) -> None:
    import torch

    capability = torch.cuda.get_device_capability(device) if device.startswith("cuda") else (0, 0)
    if capability < (8, 9) and not device.startswith("xpu"):
        reason = f"{device} has no fp8 matrix products"
        raise InputError("quantization", "torchao-fp8-dynamic", reason, "choose torchao-fp8 or sdnq-int8")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
