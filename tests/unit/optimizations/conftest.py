"""What the tests of optimizations share: pictures from tiny pipelines, attention kernels that work without a card."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastdiffusers.memory import GIB, MemoryState

NEGATIVE = "a dog and a fish, blurred, with far more words than the prompt has"
TOKENS = 64
"""Enough for both texts. By default most families pad them to 512, which then take most of the time."""


def make_picture(pipeline: Any, family: str, edge: int = 32, prompt: str = "a cat", steps: int = 2) -> torch.Tensor:
    """What the pipeline makes of a prompt, as float [B, ...]; guided, so that masks and both experts are in it."""
    from PIL import Image

    pipeline.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"prompt": prompt, "num_inference_steps": steps, "height": edge, "width": edge}
    call |= {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    if family in ("qwenimage-edit", "flux-kontext", "wan22-i2v"):
        call["image"] = Image.new("RGB", (edge, edge), (200, 30, 60))
    if family == "flux-kontext":  # it enlarges every picture to a megapixel
        call |= {"max_area": edge * edge, "_auto_resize": False}
    if family.startswith("wan"):
        call["num_frames"] = 5
    if family in ("sdxl", "sd3", "zimage"):
        call |= {"negative_prompt": NEGATIVE, "guidance_scale": 3.0}
    if family == "qwenimage":
        call |= {"negative_prompt": NEGATIVE, "true_cfg_scale": 3.0}
    if "max_sequence_length" in inspect.signature(pipeline.__call__).parameters:
        call["max_sequence_length"] = TOKENS
    output = pipeline(**call)
    pixels = output.frames if hasattr(output, "frames") else output.images
    return pixels.float()


@pytest.fixture
def picture(small_edit_pictures: None) -> Callable[..., torch.Tensor]:
    """`make_picture`, on any family within a second."""
    return make_picture


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device has 100 GiB free, whatever else runs on this machine: a full one would decline compiling."""
    plenty = MemoryState(100 * GIB, 100 * GIB)
    module = importlib.import_module("fastdiffusers.optimizations.apply")
    monkeypatch.setattr(module, "device_memory", lambda device: plenty)


class FakeKernels:
    """Stands in for xFormers and flash-attn: the right arithmetic, and the manners of the real ones.

    Attributes:
        calls: shapes of the queries that reached a kernel, outside compiled code.
        biases: the masks that xFormers was given.
        fail: raised instead of answering, once set.
        poison: answers are filled with NaN, once set.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.biases: list[torch.Tensor] = []
        self.fail: Exception | None = None
        self.poison = False

    def xformers(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_bias: torch.Tensor | None = None,
        p: float = 0.0,
        scale: float | None = None,
    ) -> torch.Tensor:
        """[B, S, H, D]; adds whatever bias it is given, and wants its rows to begin at multiples of 16 bytes."""
        if attn_bias is not None:
            alignment = 16 // attn_bias.element_size()
            assert attn_bias.is_floating_point(), "a boolean bias would be added as 1 and 0"
            assert all(stride % alignment == 0 for stride in attn_bias.stride()[:-1])
            if not torch.compiler.is_compiling():
                self.biases.append(attn_bias)
        return self._attend(query, key, value, attn_bias, scale)

    def flash(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float | None = None, **_: Any
    ) -> torch.Tensor:
        return self._attend(q, k, v, None, softmax_scale)

    def _attend(self, q: Any, k: Any, v: Any, bias: Any, scale: float | None) -> torch.Tensor:
        if not torch.compiler.is_compiling():  # dynamo would compile anew each time the list has grown
            self.calls.append(tuple(q.shape))
        if self.fail is not None:
            raise self.fail
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        # Not SDPA: a redirected call would come back here.
        scores = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
        result = ((scores if bias is None else scores + bias).softmax(-1) @ v).transpose(1, 2)
        return torch.full_like(result, float("nan")) if self.poison else result


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernels]:
    """xFormers, flash-attn and SageAttention, installed and willing to run on the CPU in float32."""
    from diffusers.models import attention_dispatch as dispatch

    from fastdiffusers.optimizations import attention_backends

    fake = FakeKernels()
    monkeypatch.setattr(attention_backends, "_installed", lambda package: True)
    monkeypatch.setattr(dispatch, "xops", types.SimpleNamespace(memory_efficient_attention=fake.xformers))
    monkeypatch.setattr(dispatch, "flash_attn_func", fake.flash)
    monkeypatch.setattr(dispatch, "sageattn", lambda q, k, v, sm_scale=None, **_: fake.flash(q, k, v, sm_scale))
    for flag in ("_CAN_USE_XFORMERS_ATTN", "_CAN_USE_FLASH_ATTN", "_CAN_USE_SAGE_ATTN"):
        monkeypatch.setattr(dispatch, flag, True)
    for name in ("xformers", "flash", "sage"):
        backend = replace(attention_backends.BACKENDS[name], checks=(), usually=None)
        monkeypatch.setitem(attention_backends.BACKENDS, name, backend)
    attention_backends.forget_probes()
    yield fake
    attention_backends.forget_probes()
