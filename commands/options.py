"""Options that several subcommands share, and what becomes of them: a pipeline handle, optimization settings."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..callbacks import Callbacks
from ..errors import InputError
from ..optimizations.quantization.schemes import quantization_choices
from ..optimizations.settings import (
    ATTENTION_CHOICES,
    COMPILE_CHOICES,
    MEMORY_MODES,
    STEP_CACHE_CHOICES,
    TRISTATE,
    CompileSettings,
    OptimizationSettings,
    TilingSettings,
)
from ..pipelines.loading.devices import dtype_name
from ..pipelines.loading.small_files import plain_path
from ..pipelines.tiny import TINY_LORAS
from .declared import (
    add_compiler_options,
    add_tiling_options,
    check_switched_off,
    declared_by,
    path_argument,
    refuse_given,
)
from .paths import find_comfyui

if TYPE_CHECKING:
    from ..pipelines.types import LoraSpec, PipelineHandle


def written_text(name: str, text: str) -> str:
    """A text from the command line as a person wrote it, whatever the locale is.

    Where Python reads the command line in another encoding (`LC_ALL=C`), it keeps bytes that it cannot read as halves
    of surrogate pairs. They are UTF-8, as a rule.

    Raises:
        InputError: it is no text.
    """
    try:
        text = os.fsencode(text).decode("utf-8") if any("\ud800" <= sign <= "\udfff" for sign in text) else text
    except UnicodeError:
        raise InputError(name, text, "it holds bytes that are no text", "type it again, in UTF-8") from None
    if "\0" in text:
        raise InputError(name, text, "it holds a NUL character", "leave it out")
    return text


_LORA = re.compile(
    r"(?P<file>.*\.safetensors|tiny:[\w-]+)(?::(?P<strength>[^:@/\\]*))?(?:@(?P<expert>[^:@/\\]*))?", re.DOTALL
)
"""A LoRA on the command line. No suffix but .safetensors is read, so that a colon of Windows' drives is no strength."""
DTYPES = ("auto", "bfloat16", "float16", "float32")
MODEL_HELP = "diffusers folder, Hub id (owner/name), .safetensors file, or tiny:FAMILY for an embedded tiny pipeline"

FLOW_SHIFT_HELP = "how far the steps lean to the noisy end; LoRAs for few steps want the one they were made with"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How a pipeline is loaded. `--model` itself is declared by the subcommand."""
    group = parser.add_argument_group("loading")
    group.add_argument("--revision", default="", help="Hub commit or branch (default: the newest)")
    group.add_argument(
        "--quantization",
        default="none",
        metavar="SCHEME",
        help=f"quantize while loading: {', '.join(quantization_choices())} (default: none)",
    )
    group.add_argument("--memory-mode", choices=MEMORY_MODES, default="auto", help="where the weights live")
    add_device_options(parser)


def add_parts_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Which model: one as a whole, or its parts."""
    model = parser.add_mutually_exclusive_group(required=required)
    model.add_argument("--model", metavar="PATH_OR_ID", help=MODEL_HELP)
    model.add_argument(
        "--diffusion-model",
        type=path_argument,
        metavar="FILE",
        help="a model from the files that ComfyUI takes, with --text-encoder and --vae",
    )
    parser.add_argument(
        "--text-encoder",
        action="append",
        default=[],
        type=path_argument,
        metavar="FILE",
        help="with --diffusion-model: a text encoder; repeat for several, in any order",
    )
    parser.add_argument("--vae", type=path_argument, metavar="FILE", help="with --diffusion-model: its VAE")
    parser.add_argument(
        "--second-expert",
        type=path_argument,
        metavar="FILE",
        help="with --diffusion-model, where it is Wan 2.2's expert for much noise: that for little noise",
    )
    parser.add_argument(
        "--audio-vae",
        type=path_argument,
        metavar="FILE",
        help="with --diffusion-model, of a model that makes sound: its VAE for sound; none makes no sound",
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device")
    add_dtype_option(group, default="auto", help="auto: bfloat16 where the device can; bf16, fp16, fp32 for short")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, xpu")


def add_dtype_option(parser: argparse._ActionsContainer, default: str, help: str | None = None) -> None:
    parser.add_argument("--dtype", type=dtype_name, choices=DTYPES, default=default, help=help)


def add_optimization_options(parser: argparse.ArgumentParser) -> None:
    """Everything that can be switched on a loaded pipeline. Whatever cannot be had falls back and is reported."""
    group = parser.add_argument_group("optimizations")
    group.add_argument(
        "--recommended",
        type=path_argument,
        metavar="FILE.json",
        help="use what this results.json of bench recommends, in place of the other options of this group",
    )
    _add_settings_options(group)


def _add_settings_options(group: argparse._ActionsContainer) -> None:
    group.add_argument("--attention", choices=ATTENTION_CHOICES, default="auto", help="attention kernel")
    group.add_argument("--torch-compile", choices=COMPILE_CHOICES, default="auto", help="compile the denoiser")
    add_compiler_options(group)
    group.add_argument("--step-cache", choices=STEP_CACHE_CHOICES, default="off", help="reuse work between steps")
    group.add_argument(
        "--quantized-matmul", choices=TRISTATE, default="auto", help="SDNQ models: multiply in the quantized type"
    )
    group.add_argument(
        "--fused-projections",
        choices=TRISTATE,
        default="off",
        help="query, key and value of an attention layer as one product (default: off)",
    )
    add_tiling_options(group)


def add_vae_compile_options(parser: argparse.ArgumentParser) -> None:
    """Compiling for the subcommands that run nothing but a VAE."""
    group = parser.add_argument_group("torch.compile")
    group.add_argument("--torch-compile", choices=("off", "on"), default="off", help="compile the VAE (default: off)")
    add_compiler_options(group)


def vae_compile_settings(args: argparse.Namespace) -> CompileSettings | None:
    """How the VAE is compiled, or None for plain code. Raises InputError for a way that nothing is compiled in."""
    check_switched_off(args)
    if args.torch_compile == "off":
        return None
    return replace(_compile_settings(args), compile_vae=True)


def _compile_settings(args: argparse.Namespace) -> CompileSettings:
    return CompileSettings(
        backend=args.compile_backend,
        mode=args.compile_mode,
        scope=args.compile_scope,
        memory_check=args.memory_check,
    )


def tiling_settings(args: argparse.Namespace) -> TilingSettings:
    return TilingSettings(mode=args.vae_tiling, tile_size=args.tile_size, overlap=args.tile_overlap)


def optimization_settings(args: argparse.Namespace) -> OptimizationSettings:
    """The settings that the options describe. Raises InputError for values out of range, or of what is off."""
    check_switched_off(args)
    if args.recommended is not None:
        others = declared_by(_add_settings_options)
        reason = "--recommended names a file that says it"
        refuse_given(args, others, reason, "leave it or --recommended out")
        from ..comparison.result import recommended_settings

        return replace(recommended_settings(args.recommended), memory_mode=args.memory_mode)
    return OptimizationSettings(
        attention=args.attention,
        torch_compile=args.torch_compile,
        compile=_compile_settings(args),
        vae_tiling=tiling_settings(args),
        memory_mode=args.memory_mode,
        step_cache=args.step_cache,
        quantized_matmul=args.quantized_matmul,
        fused_projections=args.fused_projections,
    )


def work_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those fields of `SampleRequest` that options of the same names describe, wherever a pipeline runs."""
    names = ("prompt", "steps", "guidance", "guidance_2", "width", "height", "num_frames", "batch", "seed")
    work = {name: getattr(args, name) for name in (*names, "flow_shift")}
    return work | {"prompt": written_text("prompt", args.prompt)}


def add_lora_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lora",
        nargs="+",
        action="append",
        default=[],
        metavar=("FILE[:STRENGTH][@high|low]", "STRENGTH"),
        help="LoRA file, its strength (1.0) and, for Wan 2.2, its expert (both, high, low), behind it or as words of "
        f"their own; repeat for several, whose order counts where one is a DoRA. {' and '.join(TINY_LORAS)} are made "
        "on the spot for the tiny Wan",
    )


def lora_specs(args: argparse.Namespace) -> tuple[LoraSpec, ...]:
    """What the `--lora` options name, in their order. Raises InputError, as `lora_spec`."""
    return tuple(lora_spec(*words) for words in args.lora)


def lora_spec(file: str, *words: str) -> LoraSpec:
    """One `--lora` option: "FILE:0.8@high", or the words FILE 0.8 high.

    Raises:
        InputError: it has too many words, says something twice, or its strength is no number.
    """
    from ..pipelines.types import LoraSpec

    whole = " ".join((file, *words))
    found = _LORA.fullmatch(file)
    behind = () if found is None else (found["strength"], found["expert"])
    if len(words) > 2 or (words and any(behind)):
        reason = "it takes a file, a strength and an expert at most, each once"
        raise InputError("lora", whole, reason, "repeat --lora for several files")
    strength, expert = behind if any(behind) else (*words, None, None)[:2]
    try:
        value = float("1" if strength is None else strength)
    except ValueError:
        raise InputError("lora strength", strength, "it must be a number", "use 1.0") from None
    name = file if found is None else found["file"]
    if name.startswith("tiny:") and name not in TINY_LORAS:
        raise InputError("lora", name, "there is no such embedded LoRA", f"use {' or '.join(TINY_LORAS)}, or a file")
    path = name if name in TINY_LORAS else str(plain_path("lora", name).absolute())
    return LoraSpec(path, value, "both" if expert is None else expert)


def pipeline_handle(args: argparse.Namespace, callbacks: Callbacks) -> PipelineHandle:
    """Resolve `--model`, or `--diffusion-model` and its parts, without loading weights.

    Raises:
        InputError, ModelFileError: as `resolve`.
    """
    from ..pipelines.loading.loader import resolve
    from ..pipelines.types import PipelineHandle

    parts: dict[str, Any] = {"comfyui": find_comfyui()}
    diffusion_model = getattr(args, "diffusion_model", None)
    if diffusion_model is not None:
        if args.revision:
            raise InputError("--revision", args.revision, "a model in parts is not from the Hub", "leave it out")
        encoders, vae = [str(path) for path in args.text_encoder], "" if args.vae is None else str(args.vae)
        parts = {"in_parts": True, "text_encoders": encoders, "vae": vae, **parts}
        for name in ("second_expert", "audio_vae"):
            if getattr(args, name) is not None:
                parts[name] = str(getattr(args, name))
    elif any(getattr(args, name, None) for name in ("text_encoder", "vae", "second_expert", "audio_vae")):
        reason = "--text-encoder, --vae, --second-expert and --audio-vae go with a diffusion model"
        raise InputError("model", args.model, reason, "leave them out")
    key = resolve(
        str(diffusion_model if args.model is None else args.model),
        revision=args.revision,
        dtype=args.dtype,
        device=args.device,
        quantization=args.quantization,
        callbacks=callbacks,
        **parts,
    )
    return PipelineHandle(key, memory_mode=args.memory_mode)
