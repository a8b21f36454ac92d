"""What other nodes have changed in one of ComfyUI's VAE objects: its methods, its network, its weights."""

from __future__ import annotations

from typing import Any

import comfy.sd

from ... import vae as engine

ORIGINS = ("torch.nn.", "comfy.", f"{engine.__name__}.")
"""Where the classes of an unchanged network come from."""
PATCHES = ("patches", "object_patches", "weight_wrapper_patches", "hook_patches")
"""What a `ModelPatcher` may hold for the time when its model is on the device."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_compiled_call_impl")


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


def as_loaded(vae: Any) -> bool:
    """Return whether the VAE is as ComfyUI loaded it, so that its weights define what a decode or an encode gives.

    False where a method was replaced or wrapped, a module compiled, hooked or exchanged for one of another pack, or
    where the patcher holds patches.
    """
    if replaced(vae, "decode", "encode", "decode_tiled", "encode_tiled"):
        return False
    patcher = getattr(vae, "patcher", None)
    if any(getattr(patcher, name, None) for name in PATCHES):
        return False
    network = vae.first_stage_model
    if {"decode", "encode"} & vars(network).keys():
        return False
    return all(
        type(module).__module__.startswith(ORIGINS)
        and "forward" not in vars(module)
        and not any(getattr(module, name, None) for name in HOOKS)
        for module in network.modules()
    )
