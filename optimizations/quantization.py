"""Quantize while loading: the schemes to choose from, what each needs, and what a checkpoint already holds.

Quantized weights take less memory, and with some schemes the matrix products get faster; every scheme loses a little
quality. Each lives in a package of its own that is optional, except layerwise fp8 casting, which diffusers does itself.
Only denoisers and large text encoders are quantized: VAEs and CLIP encoders are small, and they suffer most.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MissingDependencyError
from .sdnq_support import import_sdnq_safely

if TYPE_CHECKING:
    import torch
    from diffusers import PipelineQuantizationConfig

    Components = Mapping[str, tuple[str, str] | list[str]]


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


def checkpoint_quantization(folder: Path) -> dict[str, str]:
    """Which components of a diffusers folder are quantized already, and how: {"transformer": "sdnq"}.

    Reads the components' `config.json` and `quantization_config.json`; unreadable ones count as not quantized here,
    because it is for the loader to complain about them.
    """
    found = {}
    for path in sorted(folder.glob("*/config.json")):
        config = _read_json(path).get("quantization_config") or _read_json(path.with_name("quantization_config.json"))
        if isinstance(config, dict) and config.get("quant_method"):
            found[path.parent.name] = str(config["quant_method"])
    return found


def check_checkpoint(folder: Path, quantization: str = NONE) -> dict[str, str]:
    """Check that what a folder holds can be loaded, and return `checkpoint_quantization(folder)`.

    Raises:
        MissingDependencyError: a component is quantized with a package that is not installed. (Without SDNQ a
            quantized text encoder would load without any complaint and give wrong results.)
        InputError: a quantization was asked for on top of the one that the checkpoint has.
    """
    found = checkpoint_quantization(folder)
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


def pipeline_quantization_config(
    name: str,
    components: Components,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    minimum_numel: int | None = None,
) -> PipelineQuantizationConfig | None:
    """What to hand to `DiffusionPipeline.from_pretrained(quantization_config=...)`.

    Args:
        name: one of `quantization_choices()`.
        components: a model index, as `quantizable` takes it.
        dtype: the dtype to compute in; bfloat16 when None.
        device: where SDNQ does the quantizing; the weights return to the CPU afterwards.
        minimum_numel: smallest weight that SDNQ quantizes, in elements; None leaves its default.

    Returns:
        None for "none" and for schemes that convert after the load (call `quantize_loaded` for these).

    Raises:
        InputError, MissingDependencyError: as `check_quantization`.
    """
    check_quantization(name, device)
    chosen = {} if name == NONE or SCHEMES[name].after_load else quantizable(components, name)
    if not chosen:
        return None
    from diffusers import PipelineQuantizationConfig

    with ExitStack() as stack:
        if SCHEMES[name].package == "sdnq":
            stack.enter_context(import_sdnq_safely(f"quantization = {name!r}"))
        configs = {
            component: _component_config(name, library, dtype, str(device), minimum_numel)
            for component, library in chosen.items()
        }
        return PipelineQuantizationConfig(quant_mapping=configs)


def quantize_loaded(
    pipeline: Any,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    minimum_numel: int | None = None,
) -> dict[str, str]:
    """Quantize a pipeline that is already in memory, in place and for good; only a reload brings the weights back.

    For layerwise fp8 after every load, and for the other schemes where a pipeline was not read from a folder of
    components (single files, the embedded tiny pipelines). Components that are quantized already are left alone.

    Args:
        pipeline: a diffusers pipeline on the CPU or on one device.
        name, dtype, device, minimum_numel: as for `pipeline_quantization_config`.

    Returns:
        `describe_quantization(pipeline)`.

    Raises:
        InputError: the scheme can only quantize while reading a folder (bitsandbytes).
        MissingDependencyError: its package is not installed.
    """
    check_quantization(name, device)
    if name == NONE:
        return describe_quantization(pipeline)
    index = {
        part: (_library(model), type(model).__name__)
        for part, model in pipeline.components.items()
        if hasattr(model, "named_modules") and not describe_model(model)
    }
    for component in quantizable(index, name):
        _quantize_model(getattr(pipeline, component), name, dtype, str(device), minimum_numel)
    return describe_quantization(pipeline)


def describe_quantization(pipeline: Any) -> dict[str, str]:
    """What is quantized in a loaded pipeline: {"transformer": "uint4 in 57 of 60 layers"}; {} when nothing is."""
    parts = {name: part for name, part in pipeline.components.items() if hasattr(part, "named_modules")}
    return {name: text for name, part in parts.items() if (text := describe_model(part))}


def describe_model(model: Any) -> str:
    """How the linear and convolution layers of a model are stored: "uint4 in 57 of 60 layers", "" when plainly."""
    kinds: Counter[str] = Counter()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and getattr(weight, "ndim", 0) >= 1 and _is_layer(module):
            kinds[_storage(module, weight)] += 1
    total = sum(kinds.values())
    return ", ".join(f"{kind} in {count} of {total} layers" for kind, count in sorted(kinds.items()) if kind)


def _component_config(
    name: str, library: str, dtype: torch.dtype | None, device: str, minimum_numel: int | None
) -> Any:
    """The quantization config that `library` (diffusers or transformers) wants for a scheme."""
    import torch

    if name.startswith("sdnq-"):
        return sdnq_config(name.removeprefix("sdnq-"), device=device, minimum_numel=minimum_numel)
    if name.startswith("torchao-"):
        if library == "transformers":
            from transformers import TorchAoConfig
        else:
            from diffusers import TorchAoConfig  # type: ignore[assignment]
        return TorchAoConfig(_torchao_config(name))
    if library == "transformers":
        from transformers import BitsAndBytesConfig
    else:
        from diffusers import BitsAndBytesConfig  # type: ignore[assignment]
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or torch.bfloat16
    )


def sdnq_config(
    weights_dtype: str,
    *,
    device: str | torch.device = "cpu",
    minimum_numel: int | None = None,
    svd_rank: int = 0,
    quantized_matmul: bool = False,
) -> Any:
    """An `SDNQConfig`. Call it inside `import_sdnq_safely()`.

    Args:
        weights_dtype: any type that SDNQ knows: "int8", "uint4", "float8_e4m3fn", ...
        device: where the quantizing is computed; the result returns to the CPU.
        minimum_numel: smallest weight that is quantized, in elements; None leaves SDNQ's default.
        svd_rank: rank of a high-precision correction beside the quantized weights; 0 for none.
        quantized_matmul: whether the model multiplies in the quantized type from the start.

    Raises:
        InputError: SDNQ has no such type.
    """
    from sdnq import SDNQConfig
    from sdnq.common import accepted_weight_dtypes

    if weights_dtype not in accepted_weight_dtypes:
        cure = "use int8, uint4, or another type from SDNQ's documentation"
        raise InputError("weights_dtype", weights_dtype, "SDNQ has no such type", cure)
    options: dict[str, Any] = {"use_quantized_matmul": quantized_matmul}
    if minimum_numel is not None:
        options["minimum_allowed_numel"] = minimum_numel
    if svd_rank:
        options |= {"use_svd": True, "svd_rank": svd_rank}
    if not str(device).startswith(("cpu", "auto")):
        options |= {"quantization_device": str(device), "return_device": "cpu"}
    return SDNQConfig(weights_dtype=weights_dtype, **options)


def _torchao_config(name: str) -> Any:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )

    if name == "torchao-int8":
        return Int8WeightOnlyConfig()
    if name == "torchao-fp8":
        return Float8WeightOnlyConfig()
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def _quantize_model(model: Any, name: str, dtype: torch.dtype | None, device: str, minimum_numel: int | None) -> None:
    import torch

    if name == "layerwise-fp8":
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype or model.dtype)
    elif name.startswith("sdnq-"):
        with import_sdnq_safely(f"quantization = {name!r}") as sdnq:
            config = sdnq_config(name.removeprefix("sdnq-"), device=device, minimum_numel=minimum_numel)
            config.return_device = None  # the model is where it belongs already
            sdnq.sdnq_post_load_quant(model, torch_dtype=model.dtype, quantization_config=config)
    elif name.startswith("torchao-"):
        from torchao.quantization import quantize_

        quantize_(model, _torchao_config(name))
    else:
        reason = "bitsandbytes quantizes only while it reads a folder of components"
        raise InputError("quantization", name, reason, "use a diffusers folder, or an sdnq or torchao quantization")


def _is_layer(module: torch.nn.Module) -> bool:
    """Linear and convolution layers, also those that a quantizer has replaced by a class of its own."""
    return hasattr(module, "sdnq_dequantizer") or any(
        kind in type(module).__name__ for kind in ("Linear", "Conv1d", "Conv2d", "Conv3d")
    )


def _storage(module: torch.nn.Module, weight: torch.Tensor) -> str:
    """The name of a layer's quantized storage, "" for a plain weight."""
    import torch

    if hasattr(module, "sdnq_dequantizer"):
        return str(module.sdnq_dequantizer.weights_dtype)  # type: ignore[union-attr]
    owner = type(weight)
    if owner.__module__.startswith("torchao"):
        return f"torchao {owner.__name__.removesuffix('Tensor').lower()}"
    if type(module).__module__.startswith("bitsandbytes"):
        return str(getattr(weight, "quant_type", "int8"))
    return "fp8" if weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) else ""


def _check_fp8_matmul(device: str) -> None:
    import torch

    capability = torch.cuda.get_device_capability(device) if device.startswith("cuda") else (0, 0)
    if capability < (8, 9) and not device.startswith("xpu"):
        reason = f"{device} has no fp8 matrix products"
        raise InputError("quantization", "torchao-fp8-dynamic", reason, "choose torchao-fp8 or sdnq-int8")


def _library(model: Any) -> str:
    return type(model).__module__.split(".")[0]


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
