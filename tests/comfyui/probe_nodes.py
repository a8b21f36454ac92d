"""Put into the test server's `custom_nodes`: a conditioning without a text encoder, and what is in its memory.

ComfyUI imports this file; the tests only copy it.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import psutil
import torch
from aiohttp import web
from safetensors.torch import save_file
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


class TinyTextEncoder:
    """ComfyUI's own text encoder of a family at the sizes of small files, which its loaders do not read."""

    CATEGORY = "test"
    FUNCTION = "make"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"folder": ("STRING", {"default": ""})}}

    def make(self, folder: str) -> tuple[Any]:
        place = Path(folder)
        described = json.loads((place / "encoder.json").read_text())
        if described["family"] in ("ltx2", "ltx23"):
            return (_ltx2(place),)
        target = SimpleNamespace(params={})
        target.clip, target.tokenizer = _classes(described["family"])
        states = {
            name: comfy.utils.load_torch_file(str(place / f"{name}.safetensors")) for name in described["encoders"]
        }
        held = [state.pop("spiece_model") for state in states.values() if "spiece_model" in state]
        options: dict[str, Any] = {f"{name}_model_config": sizes for name, sizes in described["encoders"].items()}
        options["dtype"] = torch.float32  # as the files have it; by itself ComfyUI rounds to float16
        with _small_vision():
            data = {"spiece_model": held[0]} if held else {}
            clip = comfy.sd.CLIP(target, tokenizer_data=data, model_options=options)
        for name, state in states.items():
            missing, _ = getattr(clip.cond_stage_model, name).load_sd(state)
            lacking = [key for key in missing if not key.startswith(("visual.", "text_projection", "logit_scale"))]
            assert not lacking, f"{name} lacks {lacking[:3]}"
        return (clip,)


class KeepImages:
    """Pictures as they are, without eight bits between."""

    CATEGORY = "test"
    FUNCTION = "keep"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "path": ("STRING", {"default": ""})}}

    def keep(self, images: torch.Tensor, path: str) -> tuple[()]:
        save_file({"images": images.contiguous()}, path)
        return ()


class Value:
    """Any value, written as JSON, from an output that can be linked to everything."""

    CATEGORY = "test"
    FUNCTION = "make"
    RETURN_TYPES = ("*",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"json": ("STRING", {"default": "null"})}}

    def make(self, **written: str) -> tuple[Any]:
        return (json.loads(written["json"]),)


class TinyVae:
    """ComfyUI's small VAE for latents of so many channels, with weights of zeros."""

    CATEGORY = "test"
    FUNCTION = "make"
    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"channels": ("INT", {"default": 4, "min": 4})}}

    def make(self, channels: int) -> tuple[Any]:
        from comfy.taesd.taesd import TAESD

        weights = TAESD(latent_channels=channels).state_dict()
        return (comfy.sd.VAE(sd={name: torch.zeros_like(weight) for name, weight in weights.items()}),)


def _classes(family: str) -> tuple[Any, Any]:
    from comfy import sd1_clip, sdxl_clip
    from comfy.text_encoders import flux, pixart_t5, qwen_image, sd3_clip, wan, z_image

    return {
        "chroma": lambda: (pixart_t5.pixart_te(), pixart_t5.PixArtTokenizer),
        "krea2": _krea2_classes,
        "anima": _anima_classes,
        "minimax-h3": _minimax_classes,
        "flux": lambda: (flux.flux_clip(), flux.FluxTokenizer),
        "flux2-klein": lambda: (flux.klein_te(), flux.KleinTokenizer),
        "sdxl": lambda: (sdxl_clip.SDXLClipModel, sdxl_clip.SDXLTokenizer),
        "sd15": lambda: (sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer),
        "sd3": lambda: (sd3_clip.sd3_clip(), sd3_clip.SD3Tokenizer),
        "qwenimage": lambda: (qwen_image.te(), qwen_image.QwenImageTokenizer),
        "zimage": lambda: (z_image.te(), z_image.ZImageTokenizer),
        "wan": lambda: (wan.te(), wan.WanT5Tokenizer),
    }[family]()


def _ltx2(place: Path) -> Any:
    """ComfyUI's own encoder of LTX-2 around the Gemma of transformers: what is its own is all that comes after it."""
    import comfy.ops
    from comfy.text_encoders import lt
    from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

    class Tokenizer:
        def __init__(self, **options: Any) -> None:
            self.inner = AutoTokenizer.from_pretrained(place / "gemma", padding_side="left")

        def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> dict[str, Any]:
            found = self.inner(text, padding="max_length", max_length=1024).input_ids
            return {"gemma3_12b": [[(token, 1.0) for token in found]]}

    class Gemma(torch.nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.operations = comfy.ops.manual_cast
            self.inner = Gemma3ForConditionalGeneration.from_pretrained(place / "gemma", dtype=torch.float32).eval()
            self.transformer = SimpleNamespace(model=SimpleNamespace(config=self.inner.config.text_config))

        def set_clip_options(self, options: Any) -> None:
            pass

        def reset_clip_options(self) -> None:
            pass

        def encode_token_weights(self, rows: Any) -> Any:
            tokens = torch.tensor([[token for token, _ in row] for row in rows])
            mask = (tokens != Tokenizer().inner.pad_token_id).long()
            made = self.inner(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states
            return torch.stack(made, dim=1), None, {"attention_mask": mask}

    projection = comfy.utils.load_torch_file(str(place / "text_embedding_projection.safetensors"))
    target = SimpleNamespace(params={}, tokenizer=Tokenizer)
    found = {f"text_embedding_projection.{name}": weight for name, weight in projection.items()}
    target.clip = lt.ltxav_te(text_encoder_model=Gemma, **lt.sd_detect([found]))
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    clip.cond_stage_model.text_embedding_projection.load_state_dict(projection)
    return clip


def _krea2_classes() -> tuple[Any, Any]:
    from comfy.text_encoders import krea2

    _small_qwen3_vision("qwen3vl_4b")
    return krea2.te(), krea2.Krea2Tokenizer


def _anima_classes() -> tuple[Any, Any]:
    from comfy.text_encoders import anima

    return anima.te(), anima.AnimaTokenizer


def _minimax_classes() -> tuple[Any, Any]:
    from comfy.text_encoders import minimax

    _small_qwen3_vision("qwen3vl_32b")
    return minimax.te(), minimax.MiniMaxH3Tokenizer


def _small_qwen3_vision(name: str) -> None:
    from comfy.text_encoders import qwen3vl  # not in every version

    qwen3vl.QWEN3VL_VISION[name] = {
        **{"hidden_size": 16, "intermediate_size": 16, "depth": 1},
        **{"num_heads": 1, "deepstack_visual_indexes": [0]},
    }


@contextmanager
def _small_vision() -> Iterator[None]:
    """Qwen2.5-VL reads pictures with a network of its own, whose size is fixed."""
    from comfy.text_encoders import qwen_vl

    whole = qwen_vl.Qwen2VLVisionTransformer

    class Small(whole):  # type: ignore[misc, valid-type]
        def __init__(self, **sizes: Any) -> None:
            super().__init__(**{**sizes, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "num_layers": 1})

    qwen_vl.Qwen2VLVisionTransformer = Small
    try:
        yield
    finally:
        qwen_vl.Qwen2VLVisionTransformer = whole


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


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "TestZeroConditioning": ZeroConditioning,
    "TestTinyTextEncoder": TinyTextEncoder,
    "TestKeepImages": KeepImages,
    "TestTinyVae": TinyVae,
    "TestValue": Value,
}
