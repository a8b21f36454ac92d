"""Processors that send a layer's attention to a chosen backend: variants of diffusers' own, made by copying.

The original processor is never changed, so that restoring is putting it back. A variant has the class of its original
as its base and keeps its name and its signature, because diffusers looks at both.

Newer processors name their backend themselves (`_attention_backend`). The older ones (SD3, SDXL and many more) call
`scaled_dot_product_attention` directly: there that one call is redirected while the processor runs.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..fallback import all_finite, describe, is_out_of_memory
from .attention_backends import Backend, additive_mask, attend

MASK_ARGUMENTS = ("attention_mask", "attn_mask")


class Trust:
    """Whether a backend may still be used on one model, shared by all its layers.

    Args:
        backend: the one in use.
        doubtful: its first results are to be checked for NaN and infinity.
        give_up: puts the original processors back; called once, at the first failure.

    Attributes:
        failure: why it was given up, or "".
    """

    def __init__(self, backend: Backend, doubtful: bool, give_up: Callable[[], None]) -> None:
        self.backend = backend
        self.doubtful = doubtful
        self.failure = ""
        self._give_up = give_up

    def fail(self, reason: str) -> None:
        if not self.failure:
            self.failure = reason
            self._give_up()


def can_vary(processor: Any) -> bool:
    """Whether there is a way to send this processor's attention elsewhere; a variant answers for its original.

    Processors with weights of their own (IP adapters) stay as they are: a copy would leave the model's tree.
    """
    original = getattr(processor, "_original", processor)
    kind: Any = type(original)
    return not isinstance(original, nn.Module) and (_names_backend(original) or _calls_sdpa(kind))


def vary(processor: Any, trust: Trust) -> Any:
    """A variant of `processor` that attends through `trust.backend`."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    kind: Any = type(processor)
    variant = copy.copy(processor)
    variant._original = processor
    variant._trust = trust
    variant._unproven = {"masked", "unmasked"} if trust.doubtful else set()
    if _names_backend(processor):
        variant._attention_backend = AttentionBackendName(trust.backend.dispatch)
        variant.__class__ = _naming_class(kind, trust.backend.masks)
    else:
        variant._redirect = _Redirect(trust.backend)
        variant.__class__ = _redirecting_class(kind)
    return variant


def _names_backend(processor: Any) -> bool:
    return hasattr(processor, "_attention_backend")


@functools.cache
def _calls_sdpa(kind: type) -> bool:
    """Whether the class's code mentions the function that `_Redirect` intercepts, or the one that calls it by default.

    Cosmos' processors hand their attention to diffusers' dispatcher and name no backend: it calls SDPA.
    """
    code = getattr(inspect.getattr_static(kind, "__call__", None), "__code__", None)
    return code is not None and bool({"scaled_dot_product_attention", "dispatch_attention_fn"} & set(code.co_names))


@functools.cache
def _naming_class(kind: type, masks: str) -> type:
    """The variant of a class that names its backend, with masks handled as that backend needs them."""
    original_call = kind.__call__
    names = list(inspect.signature(original_call).parameters)
    argument = next((name for name in MASK_ARGUMENTS if name in names), "")
    position = names.index(argument) - 1 if argument else -1  # without self

    @functools.wraps(original_call)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = args[position] if 0 <= position < len(args) else kwargs.get(argument)
        if mask is None:
            return _guarded(self, original_call, args, kwargs)
        if masks == "none":
            return self._original(*args, **kwargs)
        if masks == "additive" and mask.dtype == torch.bool:
            mask = additive_mask(mask, _hidden_states(args, kwargs).dtype)
            if position < len(args):
                args = (*args[:position], mask, *args[position + 1 :])
            else:
                kwargs = {**kwargs, argument: mask}
        return _guarded(self, original_call, args, kwargs, "masked")

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    states: torch.Tensor = args[1] if len(args) > 1 else kwargs["hidden_states"]
    return states


@functools.cache
def _redirecting_class(kind: type) -> type:
    """The variant of a class that calls SDPA itself."""
    original_call = kind.__call__

    def redirected(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._redirect:
            return original_call(self, *args, **kwargs)

    @functools.wraps(original_call)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _guarded(self, redirected, args, kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


class _Redirect(TorchFunctionMode):
    """While it is entered, SDPA in this thread is attention through `backend`."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """SDPA's arguments, [B, H, S, D] and back."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unsqueeze(1)
        return attend(self._backend, query, key, value, attn_mask, **options).transpose(1, 2)


def _guarded(
    variant: Any, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], kind: str = "unmasked"
) -> Any:
    """Attend; at a failure, or at first results that are not finite, let the original do it from now on.

    Compiled code is not guarded here: it would not compile, and what runs it is guarded itself.
    """
    trust = variant._trust
    if torch.compiler.is_compiling():
        return call(variant, *args, **kwargs)
    if trust.failure:  # given up while this call was on its way
        return variant._original(*args, **kwargs)
    try:
        result = call(variant, *args, **kwargs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = f"it failed at its first use: {describe(error)}"
    else:
        proven = kind not in variant._unproven
        variant._unproven.discard(kind)
        if proven or all_finite(result):
            return result
        result = variant._original(*args, **kwargs)
        if all_finite(result):
            trust.fail("its first result held NaN or infinity, and that of sdpa did not")
        return result
    result = variant._original(*args, **kwargs)  # raises by itself when the layer, not the backend, is to blame
    trust.fail(reason)
    return result
