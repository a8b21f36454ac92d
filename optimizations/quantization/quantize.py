"""Quantizing: the configuration that a library wants for a scheme, and conversion of a model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .layers import describe_model, describe_quantization
from .schemes import NONE, SCHEMES, Components, check_quantization, quantizable
from .sdnq import import_sdnq_safely

if TYPE_CHECKING:
    import torch
    from diffusers import PipelineQuantizationConfig

NOTHING = "nothing"
"""In place of a component, where a quantization that was asked for has changed none."""


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
    for component in _plain_components(pipeline, name):
        _quantize_model(getattr(pipeline, component), name, dtype, str(device), minimum_numel)
    return describe_quantization(pipeline)


def outcome(pipeline: Any, name: str) -> dict[str, str]:
    """What a load has quantized, as `describe_quantization`; {"nothing": why} where it was asked to and has not."""
    described = describe_quantization(pipeline)
    return described if described or name == NONE else {NOTHING: _why_nothing(pipeline, name)}


def nothing_quantized_note(name: str, found: dict[str, str]) -> str:
    """That a quantization left every layer as it was, and why; "" where it did not. Args: found, from `outcome`."""
    if NOTHING not in found:
        return ""
    return f"quantization: {name} quantized nothing: {found[NOTHING]}. Use none, or a kind that takes such layers."


def _why_nothing(pipeline: Any, name: str) -> str:
    parts = [getattr(pipeline, component) for component in _plain_components(pipeline, name)]
    if not parts:
        kinds = "denoisers and large text encoders" if SCHEMES[name].text_encoders else "denoisers"
        return f"it is for {kinds}, and this model has none that could be"
    names = " and ".join(_plain_components(pipeline, name))
    config = getattr(parts[0], "quantization_config", None)
    least = getattr(config, "minimum_allowed_numel", None)
    largest = max((weight.numel() for part in parts for weight in _matrices(part)), default=0)
    if least is None or largest >= least:
        return f"no layer of {names} is of a kind that it takes"
    return f"SDNQ leaves layers of fewer than {least} weights as they are, and the largest of {names} has {largest}"


def _matrices(model: Any) -> Iterator[torch.Tensor]:
    """The weights of a model's linear layers."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield module.weight


def _plain_components(pipeline: Any, name: str) -> list[str]:
    """The components that a scheme is for, as far as nothing in them is quantized."""
    index = {
        part: (_library(model), type(model).__name__)
        for part, model in pipeline.components.items()
        if hasattr(model, "named_modules") and not describe_model(model)
    }
    return list(quantizable(index, name))


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
    """torchao's config of a scheme.

    Left to itself torchao changes inductor's settings for the whole process: whatever is compiled from then on is tuned
    kernel by kernel, which takes minutes.
    """
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )

    if name == "torchao-int8":
        config: Any = Int8WeightOnlyConfig()
    elif name == "torchao-fp8":
        config = Float8WeightOnlyConfig()
    else:
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    if hasattr(config, "set_inductor_config"):
        config.set_inductor_config = False
    return config


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


def _library(model: Any) -> str:
    return type(model).__module__.split(".")[0]
