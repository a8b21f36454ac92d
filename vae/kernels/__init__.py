"""The operations that have more than one implementation, behind one dispatcher.

An implementation is a module of this folder with a `NAME` and any of the operations of `Kernels`, with the same
signatures. `eager` and `plain` need nothing but PyTorch and have all of them. Fused ones are listed in `FUSED`, best
first, and imported when first asked for; their function `unavailable(device) -> str` says why they cannot run there, or
"". Those that say `WRITES_PADDING` fill a whole `Padded` buffer themselves; for the others it is done after them.

A fused operation is probed at its first use for each kind of input (`Key`): it runs once on a small input and must
agree with its eager twin. Whatever goes wrong there switches it off for that key, with the reason kept for the report,
and the next implementation takes over; so it does when the operation fails later, at a size it was not probed with.
What failed its probe is remembered for these versions of everything: the next process does not try again.
Inside torch.compile the eager twins are traced: the compiler fuses them.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ...fallback import describe
from . import eager, plain
from .eager import Moments, Statistics
from .padded import Border, Padded
from .probe import probe
from .saved_choices import SAVED
from .triton_support import INTERPRETED

__all__ = ["FUSED", "OPERATIONS", "Border", "Kernels", "Key", "Moments", "Padded", "Statistics"]

log = logging.getLogger(__name__)

OPERATIONS = ("group_norm_silu", "group_norm_statistics", "pixel_shuffle_3d", "put", "rms_norm_silu")
FOR_CARDS = ("triton_group_norm", "triton_pixel_shuffle", "triton_put", "triton_rms_norm", "comfy_kitchen")
FUSED: tuple[str, ...] = FOR_CARDS
"""Modules of this folder with fused implementations, best first. Those for cards are not asked elsewhere."""


class Key(NamedTuple):
    """The kind of input an implementation is probed for."""

    operation: str
    device: str
    dtype: torch.dtype
    channels: int
    channels_last: bool


class KernelChoice(NamedTuple):
    """An operation of one implementation. Attributes: pads: whether it writes what surrounds the inside itself."""

    function: Callable[..., Any]
    name: str
    pads: bool = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        out = options.get("out")
        if self.pads or not isinstance(out, Padded):
            return self.function(*arguments, **options)
        made = self.function(*arguments, **{**options, "out": out.inside})
        out.surround()
        return made


_choices: dict[tuple[Key, tuple[str, ...]], KernelChoice] = {}
_refusals: dict[tuple[Key, str], str] = {}
_lock = threading.Lock()


class Kernels:
    """The operations, each run by the best implementation that works on its input.

    Args:
        choice: "auto" (fused where they work, else eager), "eager" or "plain".
    """

    def __init__(self, choice: str = "auto") -> None:
        self.choice = choice
        self.used: dict[str, str] = {}
        """Name of the implementation that ran last, by operation."""

    def group_norm_silu(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        groups: int,
        eps: float,
        *,
        input_bias: torch.Tensor | None = None,
        statistics: Statistics | None = None,
        activation: bool = True,
        out: torch.Tensor | Padded | None = None,
    ) -> torch.Tensor:
        """GroupNorm of each frame by itself, then SiLU: `silu((x - mean) * rstd * weight + bias)`.

        Args:
            x: [B, C, T, H, W], any strides.
            weight, bias: [C].
            groups: groups of channels that share statistics; they are in float32 whatever the dtype.
            eps: added to the variance.
            input_bias: [C], added to x first: that of the convolution that made it, which spares a pass of its own.
            statistics: given ones, when `x` is only a part of its frames; None computes them from `x`.
            activation: False leaves the SiLU out.
            out: where to write, of x's shape, with or without what surrounds it; None allocates.

        Returns:
            what was written, in x's dtype and shape.
        """
        options = {"input_bias": input_bias, "statistics": statistics, "activation": activation, "out": out}
        return self._run("group_norm_silu", x, weight, bias, groups, eps, **options)

    def group_norm_statistics(self, x: torch.Tensor, groups: int, *, input_bias: torch.Tensor | None = None) -> Moments:
        """Moments of each frame and group of `x` [B, C, T, H, W]; those of parts of a frame can be merged.

        Args:
            input_bias: [C], added to x first.
        """
        return self._run("group_norm_statistics", x, groups, input_bias=input_bias)

    def pixel_shuffle_3d(
        self,
        x: torch.Tensor,
        temporal: int,
        *,
        drop_head: bool = False,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | Padded | None = None,
    ) -> torch.Tensor:
        """Channels to space and time, `out[c, z t + k, 2 h + a, 2 w + b] = x[((a 2 + b) z + k) C + c, t, h, w]`.

        Args:
            x: [B, 4 z C, T, H, W].
            temporal: z, frames per frame: 1 or 2.
            drop_head: leave out the frames k > 0 of the first input frame (the beginning of a clip).
            bias: [4 z C], added to the channels of x: that of the convolution that made it, say.
            residual: of the result's shape, added to it.
            out: where to write [B, C, z T (- z + 1), 2 H, 2 W], with or without what surrounds it; None allocates.

        Returns:
            what was written, without what surrounds it.
        """
        options = {"drop_head": drop_head, "bias": bias, "residual": residual, "out": out}
        return self._run("pixel_shuffle_3d", x, temporal, **options)

    def put(
        self,
        x: torch.Tensor,
        *,
        out: torch.Tensor | Padded | None = None,
        bias: torch.Tensor | None = None,
        add: bool = False,
    ) -> torch.Tensor:
        """Write `x + bias` to where it belongs, or add it to what lies there.

        Args:
            x: [B, C, T, H, W], any strides.
            out: where to write, of x's shape, with or without what surrounds it; None allocates.
            bias: [C]; None adds none.
            add: add to what lies in `out`, which is a tensor then.

        Returns:
            what was written, without what surrounds it.
        """
        where = out.buffer if isinstance(out, Padded) else out
        if where is not None and where.device != x.device:  # frames that wait in main memory
            return KernelChoice(eager.put, eager.NAME)(x, out=out, bias=bias, add=add)
        return self._run("put", x, out=out, bias=bias, add=add)

    def rms_norm_silu(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        activation: bool = True,
        out: torch.Tensor | Padded | None = None,
    ) -> torch.Tensor:
        """RMS norm over the channels of each cell, then SiLU: `silu(x / |x| * sqrt(C) * weight + bias)`.

        It is the norm of the Wan family's decoders; |x| is the length of a cell's channels.

        Args:
            x: [B, C, T, H, W], any strides.
            weight, bias: C numbers in any shape ([C, 1, 1, 1]); no bias is a bias of zero.
            activation: False leaves the SiLU out.
            out: where to write, of x's shape, with or without what surrounds it; None allocates.

        Returns:
            what was written, in x's dtype and shape.
        """
        return self._run("rms_norm_silu", x, weight, bias, activation=activation, out=out)

    def refusals(self) -> dict[str, str]:
        """Return {"name, operation, dtype": reason} of the fused implementations switched off in this process."""
        with _lock:
            return {f"{name}, {key.operation}, {key.dtype}": reason for (key, name), reason in _refusals.items()}

    def _run(self, operation: str, x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if self.choice == "plain":
            return KernelChoice(getattr(plain, operation), plain.NAME)(x, *arguments, **options)
        twin = KernelChoice(getattr(eager, operation), eager.NAME)
        if self.choice == "eager" or torch.compiler.is_compiling() or not _asked_on(x.device.type):
            return twin(x, *arguments, **options)
        with torch.cuda.device_of(x):  # Triton launches on the current card, whichever holds the tensors
            return self._run_fused(twin, operation, x, *arguments, **options)

    def _run_fused(self, twin: KernelChoice, operation: str, x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        key = Key(operation, str(x.device), x.dtype, x.shape[1], x.stride(1) == 1)
        with _lock:
            if (key, FUSED) not in _choices:
                _choices[key, FUSED] = _choose(key)
            chosen = _choices[key, FUSED]
        self.used[operation] = chosen.name
        if chosen == twin:
            return twin(x, *arguments, **options)
        try:
            return chosen(x, *arguments, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a kernel may fail in any way; the eager twin writes everything anew
            reason = describe(error)
            log.warning("%s, %s: %s; it is switched off", chosen.name, operation, reason)
        with _lock:
            _refusals[key, chosen.name] = reason
            _choices[key, FUSED] = twin
        self.used[operation] = eager.NAME
        return twin(x, *arguments, **options)


def _asked_on(kind: str) -> tuple[str, ...]:
    """The fused implementations that may have something for a kind of device."""
    if kind == "meta":
        return ()
    on_card = kind == "cuda" or (INTERPRETED and kind == "cpu")
    return FUSED if on_card else tuple(name for name in FUSED if name not in FOR_CARDS)


def _choose(key: Key) -> KernelChoice:
    """The first fused implementation that passes its probe, else the eager twin. Called with the lock held."""
    for name in _asked_on(torch.device(key.device).type):
        module = _module(name)
        if isinstance(module, str):
            _refusals[key, name] = module
            continue
        function = getattr(module, key.operation, None)
        if function is None:
            continue
        reason = module.unavailable(key.device) or SAVED.get((name, *key))
        if not reason:
            pads = getattr(module, "WRITES_PADDING", False)
            reason = probe(key.operation, function, key.device, key.dtype, key.channels, key.channels_last, pads=pads)
            if not reason:
                return KernelChoice(function, name, pads)
            SAVED.put((name, *key), reason)
        _refusals[key, name] = reason
    return KernelChoice(getattr(eager, key.operation), eager.NAME)


def _module(name: str) -> ModuleType | str:
    """The implementation's module, or why it cannot be imported."""
    try:
        return importlib.import_module(f".{name}", __name__)
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: a broken Triton driver at import
        return describe(error)
