"""IP-Adapters and Flux Redux with random weights, as files, for the tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fastdiffusers.pipelines.tiny.components import WIDTH
from fastdiffusers.pipelines.tiny.image_prompts import TOKENS, adapter_tensors


def vision(name: str = "CLIPVisionModelWithProjection", width: int = WIDTH, seed: int = 11) -> Any:
    """A small vision model of transformers, for pictures of 32 pixels."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 37, "num_hidden_layers": 3}
    config_name = "CLIPVisionConfig" if name.startswith("CLIP") else "SiglipVisionConfig"
    further = {"projection_dim": width} if name.startswith("CLIP") else {}
    config = getattr(transformers, config_name)(image_size=32, patch_size=8, num_attention_heads=4, **sizes, **further)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, name)(config).eval()


def ip_adapter_file(pipeline: Any, folder: Path) -> Path:
    """Write an IP-Adapter for a pipeline, with its vision model beside it."""
    sd3 = type(pipeline).__name__.startswith("StableDiffusion3")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        tensors = _sd3(pipeline.transformer) if sd3 else adapter_tensors(pipeline)
    folder.mkdir(parents=True, exist_ok=True)
    vision("SiglipVisionModel" if sd3 else "CLIPVisionModelWithProjection").save_pretrained(folder / "image_encoder")
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "ip-adapter.safetensors")
    return folder / "ip-adapter.safetensors"


def _sd3(transformer: Any) -> dict[str, torch.Tensor]:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    config = transformer.config
    hidden = config.attention_head_dim * config.num_attention_heads
    projection = IPAdapterTimeImageProjection(
        embed_dim=WIDTH, output_dim=hidden, hidden_dim=64, heads=1, num_queries=TOKENS, timestep_in_dim=320
    )
    layers = {}
    for index in range(len(transformer.attn_processors)):
        processor = SD3IPAdapterJointAttnProcessor2_0(hidden, hidden, config.attention_head_dim, timesteps_emb_dim=64)
        layers |= {f"{index}.{name}": value for name, value in processor.state_dict().items()}
    parts = {"image_proj": projection.state_dict(), "ip_adapter": layers}
    return {f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}


def redux_folder(folder: Path) -> Path:
    """Write a Flux Redux."""
    import diffusers
    from diffusers.pipelines.flux import ReduxImageEncoder
    from transformers import SiglipImageProcessor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(13)
        embedder: Any = ReduxImageEncoder(redux_dim=WIDTH, txt_in_features=WIDTH)
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    prior: Any = diffusers.FluxPriorReduxPipeline(vision("SiglipVisionModel"), processor, embedder.eval())
    prior.save_pretrained(folder)
    return folder
