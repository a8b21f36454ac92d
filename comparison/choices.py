"""The names of the settings that can be compared, and what each stands for. Lists choices: imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..optimizations.settings import OptimizationSettings

Change = Callable[[OptimizationSettings], OptimizationSettings]
PLAIN = "plain"
ALL = "all"


@dataclass(frozen=True)
class Setting:
    """One setting that can be compared with plain.

    Attributes:
        name: as written on the command line; joined with "+" it combines: "compile+xformers".
        help: what it is, in a few words.
        field: what it changes; two choices of one field cannot be combined.
        change: turns plain settings into these.
        lossless: whether it is meant to leave the result as it is; those alone are among "all".
    """

    name: str
    help: str
    field: str
    change: Change
    lossless: bool = True


def _attention(name: str) -> Change:
    return lambda settings: replace(settings, attention=name)


def _compile(**how: Any) -> Change:
    return lambda settings: replace(settings, torch_compile="on", compile=replace(settings.compile, **how))


def _precision(name: str) -> Change:
    return lambda settings: replace(settings, precision=replace(settings.precision, **{name: "on"}))


def _cache(name: str) -> Change:
    return lambda settings: replace(settings, step_cache=name)


def _fused(settings: OptimizationSettings) -> OptimizationSettings:
    return replace(settings, fused_projections="on")


def _tiled(settings: OptimizationSettings) -> OptimizationSettings:
    return replace(settings, vae_tiling=replace(settings.vae_tiling, mode="on"))


CHOICES = {
    choice.name: choice
    for choice in (
        Setting(PLAIN, "every optimization off", "", lambda settings: settings),
        Setting("compile", "torch.compile, the repeated blocks", "torch_compile", _compile(scope="blocks")),
        Setting("compile-model", "torch.compile, the whole denoiser", "torch_compile", _compile(scope="model")),
        Setting(
            "compile-graphs", "the blocks, replayed as CUDA graphs", "torch_compile", _compile(mode="reduce-overhead")
        ),
        Setting(
            "compile-max",
            "the blocks, kernels chosen by trying",
            "torch_compile",
            _compile(mode="max-autotune-no-cudagraphs"),
        ),
        Setting("xformers", "xFormers attention", "attention", _attention("xformers")),
        Setting("flash", "FlashAttention 2", "attention", _attention("flash")),
        Setting("flash3", "FlashAttention 3", "attention", _attention("flash3")),
        Setting("cudnn", "cuDNN's attention", "attention", _attention("cudnn")),
        Setting("efficient", "torch's memory-efficient attention", "attention", _attention("efficient")),
        Setting("math", "torch's plain attention", "attention", _attention("math")),
        Setting("flex", "torch's flex attention", "attention", _attention("flex")),
        Setting("sage", "SageAttention, quantized", "attention", _attention("sage"), lossless=False),
        Setting("tiling", "the VAE decodes in tiles", "vae_tiling", _tiled, lossless=False),
        Setting("channels-last", "channels-last weights", "channels_last", _precision("channels_last")),
        Setting("cudnn-benchmark", "cuDNN tries its convolutions", "cudnn_benchmark", _precision("cudnn_benchmark")),
        Setting("fused", "query, key and value as one product", "fused_projections", _fused),
        Setting("tf32", "TF32 for float32 parts", "tf32", _precision("tf32"), lossless=False),
        Setting("cache-balanced", "step cache, balanced", "step_cache", _cache("balanced"), lossless=False),
        Setting("cache-fast", "step cache, fast", "step_cache", _cache("fast"), lossless=False),
    )
}

TRIED_BY_ALL = ("compile", "xformers", "flash", "flash3", "cudnn", "channels-last")
"""What "all" compares with plain, as far as it works here: the lossless choices that are worth a try."""


def settings_of(name: str, base: OptimizationSettings) -> OptimizationSettings:
    """The settings that a name stands for.

    Args:
        name: "plain", one choice, or several joined with "+".
        base: plain settings with whatever shall hold for all (memory mode, compile details, tile size).

    Raises:
        InputError: an unknown name, or two choices that exclude each other.
    """
    fields: dict[str, str] = {}
    settings = base
    for part in name.split("+"):
        choice = CHOICES.get(part)
        if choice is None:
            raise InputError("compare", part, "there is no such setting", f"choose from: {', '.join(CHOICES)}, {ALL}")
        if choice.field in fields:
            reason = f"{fields[choice.field]!r} and {part!r} exclude each other"
            raise InputError("compare", name, reason, "name one of them")
        fields[choice.field] = part
        settings = choice.change(settings)
    return settings


def parse(text: str, works: Callable[[Iterable[str]], list[str]] = list) -> list[str]:
    """The names in a comma-separated list, plain first whether named or not; "all" stands for all that works here.

    Args:
        text: "compile,xformers", "all", "all,compile+xformers".
        works: keeps those of some names that work on this machine; asked for "all" only.

    Raises:
        InputError: nothing beside plain, an unknown name, choices that exclude each other.
    """
    names: list[str] = []
    for part in (part.strip().lower() for part in text.split(",")):
        names += works(TRIED_BY_ALL) if part == ALL else [part] if part else []
    chosen = list(dict.fromkeys(name for name in names if name != PLAIN))
    for name in chosen:
        settings_of(name, OptimizationSettings.plain())
    if not chosen:
        reason = "there is nothing to compare with plain"
        raise InputError("compare", text, reason, f"name one or more of: {', '.join(list(CHOICES)[1:])}, {ALL}")
    return [PLAIN, *chosen]


def combine(winners: Iterable[str]) -> str | None:
    """The best of each field joined into one name; None when there are not at least two fields.

    Args:
        winners: names of single choices, best first.
    """
    best: dict[str, str] = {}
    for name in winners:
        if name in CHOICES:
            best.setdefault(CHOICES[name].field, name)
    order = list(CHOICES)
    return "+".join(sorted(best.values(), key=order.index)) if len(best) >= 2 else None
