"""The names that diffusers imports for training across devices; nothing calls them here."""

from __future__ import annotations

from typing import Any


def _wrapped_flash_attn_forward(*arguments: Any, **options: Any) -> Any:
    raise NotImplementedError("the stand-in serves one device")


def _wrapped_flash_attn_backward(*arguments: Any, **options: Any) -> Any:
    raise NotImplementedError("the stand-in has no backward pass")
