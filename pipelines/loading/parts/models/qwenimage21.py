"""Qwen-Image-2.1 in parts.

Sources of the configurations, all in agreement with what is here:
- diffusers, `QwenImage21Transformer2DModel` and `AutoencoderKLQwenImage21`: their defaults are the published models',
  means and deviations included; `loaders/single_file_utils.py`: that ComfyUI's file has one layer for two.
- WanGP and TensorSharp, which run the model: the scheduler, which is Qwen-Image's; WanGP: that ComfyUI's file of the
  VAE has the names of Wan 2.2's, and convolutions with a place for the time that is never used.
"""

from __future__ import annotations

from .. import encoders, wan22_vae
from ..component import Component, Config, PartsFamily, Shapes, Weights, count_blocks
from . import qwen3_vl, qwenimage

ROPE_AXES = qwenimage.ROPE_AXES
_BLOCK = "transformer_blocks.0."
_GATES = ("img_mlp.gate_up.weight", "img_mlp.gate_layer.weight")
_OWN = "encoder.mid_block.resnets.0.norm1.gamma"
"""A tensor of the VAE under diffusers' names."""


def is_qwenimage21(shapes: Shapes) -> bool:
    """The model, or its turbo."""
    return "txt_in.text_norm.weight" in shapes and any(_BLOCK + name in shapes for name in _GATES)


def _config(shapes: Shapes) -> Config:
    head = shapes[_BLOCK + "attn.norm_q.weight"][0]
    width, channels = shapes["img_in.weight"]
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0],
        "num_layers": count_blocks(shapes, "transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "context_in_dim": shapes["txt_in.text_norm.weight"][0],
        "mlp_ratio": shapes[_BLOCK + "img_mlp.out.weight"][1] // width,
        "axes_dims_rope": ROPE_AXES.get(head, []),
    }


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_qwen_image21_transformer_checkpoint_to_diffusers

    if sum(config.get("axes_dims_rope") or ()) != config.get("attention_head_dim"):
        raise ValueError(f"no configuration is known for heads of {config.get('attention_head_dim')}")
    return dict(convert_qwen_image21_transformer_checkpoint_to_diffusers(dict(weights)))


def _is_vae(shapes: Shapes) -> bool:
    if _OWN in shapes:
        return shapes.get("decoder.conv_in.weight", (0, 0))[1] == 64
    nested = "decoder.upsamples.0.upsamples.0.residual.0.gamma" in shapes
    return nested and shapes.get("decoder.conv1.weight", (0, 0))[1] == 64


def _rename_vae(weights: Weights, config: Config) -> Weights:
    """Under Wan 2.2's names, or under diffusers' own."""
    if _OWN in weights:
        return dict(weights)
    found = {wan22_vae.renamed(key): value for key, value in weights.items()}
    return {key: value.squeeze(2) if value.ndim == 5 else value for key, value in found.items()}


FAMILIES = (
    PartsFamily(
        title="Qwen-Image-2.1",
        told=lambda shapes, name: is_qwenimage21(shapes) and "turbo" not in name.lower(),
        pipeline="QwenImage21ModularPipeline",
        components={
            "transformer": Component(
                "diffusers",
                "QwenImage21Transformer2DModel",
                "Qwen-Image-2.1's diffusion model, usually qwen_image_2.1_bf16.safetensors",
                is_qwenimage21,
                _config,
                _rename,
            ),
            "text_encoder": qwen3_vl.QWEN3_VL_8B_WHOLE,
            "vae": Component(
                "diffusers",
                "AutoencoderKLQwenImage21",
                "Qwen-Image-2.1's VAE, usually qwen_image_2.1_vae_bf16.safetensors",
                _is_vae,
                lambda shapes: {},
                _rename_vae,
            ),
        },
        tokenizers={"tokenizer": encoders.QWEN_TOKENIZER},
        scheduler=("FlowMatchEulerDiscreteScheduler", qwenimage.SCHEDULER),
        note="run as the model that is not turbo, as its name does not say so: both have the same tensors",
        more=qwen3_vl.processor("processor"),
    ),
)
