"""Embedded Tiny CLIP and VAE: ComfyUI's own text encoder and VAE at tiny sizes, which its loaders read no file of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from comfy_api.latest import io

from .. import types
from ..host.compat import schema

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""Of Qwen3, for the embedded tiny Z-Image, which reads embeddings of that width."""
LATENT_CHANNELS = 16
SEED = 0


class TinyEncoder(io.ComfyNode):
    """Nothing -> CLIP and VAE with random weights, always the same, for the embedded tiny Z-Image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersTinyEncoder",
            display_name="Embedded Tiny CLIP and VAE",
            category=types.CATEGORY,
            search_aliases=["tiny", "embedded", "load clip", "try", "example"],
            inputs=[],
            outputs=[io.Clip.Output(display_name="clip"), io.Vae.Output(display_name="vae")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(_text_encoder(), _vae())


def _text_encoder() -> Any:
    """ComfyUI's own Qwen3 for Z-Image; its tokenizer is the published one."""
    import comfy.sd
    from comfy.text_encoders import z_image

    target = SimpleNamespace(params={}, clip=z_image.te(), tokenizer=z_image.ZImageTokenizer)
    clip = comfy.sd.CLIP(target, model_options={"qwen3_4b_model_config": SIZES})
    _fill(clip.cond_stage_model)
    return clip


def _vae() -> Any:
    """ComfyUI's small VAE for latents of 16 channels, as its loader recognises it."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    network = TAESD(latent_channels=LATENT_CHANNELS)
    _fill(network)
    return comfy.sd.VAE(sd=network.state_dict())


def _fill(network: Any) -> None:
    """Random weights of a size that leaves what goes through a layer as large as it was; ComfyUI leaves them unset."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                deviation = 1.0 if "embed" in name else parameter[0].numel() ** -0.5
                random = torch.randn(parameter.shape, generator=generator) * deviation
                parameter.copy_(random.to(parameter.dtype))
            elif name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim:
                parameter.fill_(1.0)
