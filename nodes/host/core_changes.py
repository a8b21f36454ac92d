"""What other nodes have changed in one of ComfyUI's VAE objects: its methods, its network, the code of its classes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import comfy.sd
import torch
from torch import nn
from torch.utils import _contextlib

from ... import vae as engine

ORIGINS = ("torch.nn.", "comfy.", f"{engine.__name__}.")
"""Where the classes of an unchanged network come from."""
CODE_ORIGINS = ("torch.", "comfy.", f"{engine.__name__}.")
"""Where the functions of those classes come from."""
DECORATORS = (contextlib.__file__, _contextlib.__file__)
"""Files of decorators that ComfyUI and torch use themselves, around functions that are looked at."""
PATCHES = ("patches", "object_patches", "weight_wrapper_patches", "hook_patches")
"""What a `ModelPatcher` may hold for the time when its model is on the device."""
ON_MODULES = ("_forward_hooks", "_forward_pre_hooks", "_compiled_call_impl", "weight_function", "bias_function")
"""What a module may hold that changes what it gives: hooks, a compiled call, functions over its weights."""
CALLED = ("forward", "__call__", "_call_impl", "_wrapped_call_impl", "_conv_forward")
"""Methods of torch's modules that a network goes through. Libraries add others to these classes (transformers does)."""
PROBE = (1, 3, 2, 5, 4)
"""Shape of the clip that is sent through a VAE's `process_input` and `process_output`."""

_built: WeakKeyDictionary[type, list[tuple[str, type, str]]] = WeakKeyDictionary()
"""The modules of a new network of a class: name, class and sizes."""


def replaced(vae: Any, *names: str) -> bool:
    """Return whether one of these methods of `comfy.sd.VAE` is replaced, on the object or in a subclass."""
    return any(name in vars(vae) or _other(type(vae), name) for name in names)


def _other(own: type, name: str) -> bool:
    original = getattr(comfy.sd.VAE, name, None)
    return getattr(own, name, original) is not original


def network_replaced(network: Any, name: str) -> bool:
    """Return whether `network.decode` (or another method) is replaced, on the object or in its class."""
    method = getattr(type(network), name, None)
    return name in vars(network) or getattr(method, "__module__", None) != type(network).__module__


def as_loaded(vae: Any, scale: float, shift: float) -> bool:
    """Return whether the VAE is as ComfyUI loaded it, so that its weights define what a decode or an encode gives.

    False where a method or a function of ComfyUI's was replaced or wrapped, on the object or in its class, where a
    module was compiled, hooked, resized or exchanged for another, where pictures or latents are scaled in another way,
    or where the patcher holds patches. Changed weights are not looked at.

    Args:
        scale, shift: a latent is `(mean - shift) * scale`.
    """
    if replaced(vae, "decode", "encode", "decode_tiled", "encode_tiled") or _has_methods_of_its_own(vae):
        return False
    patcher = getattr(vae, "patcher", None)
    if any(getattr(patcher, name, None) for name in PATCHES):
        return False
    network = vae.first_stage_model
    modules = list(network.modules())
    if not all(type(module).__module__.startswith(ORIGINS) for module in modules):
        return False
    if {"decode", "encode"} & vars(network).keys():
        return False
    if any(_has_methods_of_its_own(module) for module in modules):
        return False
    if any(getattr(module, name, None) for module in modules for name in ON_MODULES):
        return False
    classes = {base for module in modules for base in type(module).__mro__ if base is not object}
    classes |= {comfy.sd.VAE} if isinstance(vae, comfy.sd.VAE) else set()
    return (
        all(_is_own(function) for one in classes for function in _looked_at(one))
        and _code_as_written(type(network).__module__)
        and _modules_as_built(network)
        and _scales_as_ever(vae, scale, shift)
    )


def _has_methods_of_its_own(thing: Any) -> bool:
    """Whether the object hides a method of its class, or holds a function that is not ComfyUI's."""
    held = [(name, value) for name, value in vars(thing).items() if _is_method(value)]
    return any(_is_method(getattr(type(thing), name, None)) or not _is_own(value) for name, value in held)


def _is_method(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _looked_at(one: type) -> list[Any]:
    """The values of a class that decide what a network gives."""
    of_torch = one.__module__.startswith("torch.")
    return [value for name, value in vars(one).items() if not of_torch or name in CALLED]


def _is_own(value: Any) -> bool:
    """Whether a value of a class or a module is no function, or one that its file has defined: not by another pack.

    A function that `functools.wraps` made names the module of what it wraps; the file of its code is its own.
    """
    value = getattr(value, "fget", None) or getattr(value, "__func__", value)
    if not isinstance(value, FunctionType):
        return not callable(value) or type(value).__module__.startswith((*CODE_ORIGINS, "typing", "builtins"))
    while value.__code__.co_filename in DECORATORS and hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    home = value.__module__ or ""
    known = home.startswith(CODE_ORIGINS) or home.partition(".")[0] in sys.stdlib_module_names
    return known and value.__code__.co_filename == getattr(sys.modules.get(home), "__file__", None)


def _code_as_written(module: str) -> bool:
    """Whether the functions, classes and constants in a module of ComfyUI's are those that its file defines."""
    if not module.startswith("comfy."):
        return True
    values = vars(sys.modules[module])
    beside = sys.modules.get(f"{module.rpartition('.')[0]}.constants")
    constants = {} if beside is None else vars(beside)
    defined = [value for value in values.values() if isinstance(value, type) and value.__module__ == module]
    functions: Iterable[Any] = [value for value in values.values() if isinstance(value, FunctionType)]
    return (
        all(_is_own(function) for function in functions)
        and all(_is_own(function) for one in defined for function in vars(one).values())
        and all(values[name] == constants[name] for name in values.keys() & constants.keys() if name.isupper())
    )


def _modules_as_built(network: Any) -> bool:
    """Whether every module of a network of ComfyUI's is of the class and the sizes that a new one has."""
    own = type(network)
    if not own.__module__.startswith("comfy."):
        return True
    if own not in _built:
        try:
            with torch.device("meta"):
                _built[own] = _modules_of(own())
        except TypeError:  # a class that asks for sizes
            return True
    return _built[own] == _modules_of(network)


def _modules_of(network: nn.Module) -> list[tuple[str, type, str]]:
    return [(name, type(module), module.extra_repr()) for name, module in network.named_modules()]


def _scales_as_ever(vae: Any, scale: float, shift: float) -> bool:
    """Whether pictures go from 0..1 to -1..1 and back, and latents are scaled, as ComfyUI's loader has set it."""
    probe = torch.randn(PROBE, generator=torch.Generator().manual_seed(0))
    expected: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "process_input": lambda image: image * 2 - 1,
        "process_output": lambda image: ((image + 1) / 2).clamp(0, 1),
        "format_encoded": lambda mean: (mean - shift) * scale,
    }
    for name, plain in expected.items():
        given = getattr(vae, name, None)
        if given is not None and not torch.allclose(given(probe.clone()), plain(probe), atol=1e-5):
            return False
    return True
