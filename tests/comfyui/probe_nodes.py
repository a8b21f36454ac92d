"""Put into the test server's `custom_nodes`: a conditioning without a text encoder, and what is in its memory.

ComfyUI imports this file; the tests only copy it.
"""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import comfy.model_management
import psutil
import torch
from aiohttp import web
from server import PromptServer

WATCHED = ("DiffusionPipeline", "BaseModel", "VAE", "ExternalModelPatcher")
"""Classes, with all that derive from them, whose living objects are counted: what this pack and ComfyUI load."""

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
"""Tensors that own bytes. A class derived from them wraps some of these, or stands for none (a compiler's fakes)."""


class ZeroConditioning:
    """A CONDITIONING of zeros, for a model that came without a text encoder."""

    CATEGORY = "test"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = ("INT", {"default": 32, "min": 1})
        return {"required": {"width": size, "pooled": size}}

    def make(self, width: int, pooled: int) -> tuple[list[Any]]:
        return ([[torch.zeros(1, 8, width), {"pooled_output": torch.zeros(1, pooled)}]],)


@PromptServer.instance.routes.get("/probe")
async def probe(_request: web.Request) -> web.Response:
    """What lives in this process now: resident bytes, bytes of tensors, watched objects, ComfyUI's list of models."""
    gc.collect()
    alive: Counter[str] = Counter()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        kind = type(thing)  # never isinstance: it would ask a lazy proxy what it stands for
        if kind in PLAIN_TENSORS:
            if thing.layout == torch.strided and thing.device.type != "meta":
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        elif not issubclass(kind, torch.Tensor):
            alive.update({base.__name__ for base in kind.__mro__ if base.__name__ in WATCHED})
    loaded = comfy.model_management.loaded_models()
    return web.json_response(
        {
            "resident_bytes": psutil.Process().memory_info().rss,
            "tensor_bytes": sum(storages.values()),
            "alive": dict(alive),
            "listed": sorted(type(patcher.model).__name__ for patcher in loaded),
            "listed_bytes": sum(patcher.loaded_size() for patcher in loaded),
        }
    )


NODE_CLASS_MAPPINGS: dict[str, type] = {"TestZeroConditioning": ZeroConditioning}
