"""IP-Adapters for embedded tiny pipelines, with the vision model that each reads pictures with.

They are random, depend on the family alone, and are written as files, since that is what an IP-Adapter is, when they
are first asked for.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, ModelFileError
from .build import build
from .components import WIDTH

if TYPE_CHECKING:
    import torch

IMAGE_PROMPT_FAMILIES = ("flux", "sdxl")
ENCODER = "image_encoder"
TOKENS = 4
"""Rows that such an IP-Adapter makes of a picture."""
_SIZE = 0.1
"""Standard deviation of a weight: enough for the picture to change."""


def image_prompt_file(family: str, folder: Path) -> Path:
    """The IP-Adapter of a family in `folder`, its vision model beside it. The first call on a folder writes both.

    Raises:
        InputError: there is none for this family.
        ModelFileError: the folder cannot be written.
    """
    if family not in IMAGE_PROMPT_FAMILIES:
        cure = f"choose one of: {', '.join(f'tiny:{family}' for family in IMAGE_PROMPT_FAMILIES)}"
        reason = "there is no embedded IP-Adapter of that name"
        raise InputError("image prompt model", f"tiny:{family}", reason, cure)
    from ...cache_folder import filled

    place = folder / f"embedded_image_prompt_{family}"
    file = place / f"tiny-{family}.safetensors"
    try:
        if not (file.is_file() and (place / ENCODER / "config.json").is_file()):
            with filled(place, file.name, f"{ENCODER}/config.json") as made:
                _write(family, made, file.name)
    except OSError as error:
        cure = "set FASTDIFFUSERS_CACHE to a folder that can be written"
        raise ModelFileError("image prompt model", str(file), f"it cannot be written ({error})", cure) from error
    return file


def _write(family: str, folder: Path, name: str) -> None:
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{family} image prompt".encode()))
        tensors, encoder = adapter_tensors(build(family)), vision_model()
    encoder.save_pretrained(folder / ENCODER)
    save_file(tensors, folder / name)


def vision_model() -> Any:
    """A small CLIP vision model for pictures of 32 pixels, with torch's random numbers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=37,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


def adapter_tensors(pipeline: Any) -> dict[str, torch.Tensor]:
    """The tensors of a plain IP-Adapter for a pipeline with a U-Net or Flux's transformer, named as in its file."""
    import torch

    layers: dict[str, tuple[int, ...]] = {}
    if hasattr(pipeline, "unet"):
        reads = pipeline.unet.config.cross_attention_dim
        crossing = [name for name in pipeline.unet.attn_processors if "attn2" in name]
        for index, name in enumerate(crossing):
            width = pipeline.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            layers |= {f"{2 * index + 1}.to_{kind}_ip.weight": (width, reads) for kind in "kv"}
    else:
        config = pipeline.transformer.config
        reads, width = config.joint_attention_dim, config.num_attention_heads * config.attention_head_dim
        for index in range(config.num_layers):
            layers |= {f"{index}.to_{kind}_ip.weight": (width, reads) for kind in "kv"}
            layers |= {f"{index}.to_{kind}_ip.bias": (width,) for kind in "kv"}
    tensors = {f"ip_adapter.{name}": torch.randn(shape) * _SIZE for name, shape in layers.items()}
    tensors["image_proj.proj.weight"] = torch.randn(TOKENS * reads, WIDTH) * _SIZE
    tensors["image_proj.proj.bias"] = torch.randn(TOKENS * reads) * _SIZE
    tensors["image_proj.norm.weight"] = torch.rand(reads) + 0.5
    tensors["image_proj.norm.bias"] = torch.randn(reads) * _SIZE
    return tensors
