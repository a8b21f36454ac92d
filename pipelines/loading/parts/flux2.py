"""FLUX.2-klein in parts: 4B and 9B, distilled and base.

Sources of the configurations, all in agreement with what is here:
- diffusers, `scripts/convert_flux2_to_diffusers.py`: both transformers, the names of the VAE, FLUX.1-dev's scheduler
  (of which only `use_dynamic_shifting` counts: the pipeline computes its own shift), and that a file is distilled
  unless its name says base.
- ComfyUI, `comfy/model_detection.py` and `comfy/text_encoders/flux.py`: axes, ratio, and which Qwen3 goes with which.
- diffusers, `AutoencoderKLFlux2`: its defaults are the published VAE's.
"""

from __future__ import annotations

from typing import Any

from . import encoders, flux, vaes
from .component import Component, Config, PartsFamily, Shapes, Weights, count_blocks

ROPE_AXES = {128: [32, 32, 32, 32]}
"""Size of a head -> how it is divided between the axes, which no shape tells."""
LAYERS = 3
"""Of Qwen3, whose states are put side by side for each token."""


def _is_klein(shapes: Shapes) -> bool:
    """FLUX.2-dev embeds its guidance besides."""
    wanted = ("double_stream_modulation_img.lin.weight", "single_blocks.0.linear1.weight", "txt_in.weight")
    return all(name in shapes for name in wanted) and "guidance_in.in_layer.weight" not in shapes


def _is_9b(shapes: Shapes) -> bool:
    return shapes["txt_in.weight"][1] == LAYERS * encoders.QWEN3_8B["hidden_size"]


def _config(shapes: Shapes) -> Config:
    norm = "double_blocks.0.img_attn.norm.query_norm."
    (head,) = shapes.get(norm + "scale") or shapes[norm + "weight"]
    width, channels = shapes["img_in.weight"]
    return {
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": count_blocks(shapes, "double_blocks."),
        "num_single_layers": count_blocks(shapes, "single_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": shapes["double_blocks.0.img_mlp.2.weight"][1] / width,
        "axes_dims_rope": ROPE_AXES.get(head, []),
        "rope_theta": 2000,
        "guidance_embeds": False,
    }


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    if sum(config.get("axes_dims_rope") or ()) != config.get("attention_head_dim"):
        raise ValueError(f"no configuration is known for heads of {config.get('attention_head_dim')}")
    return dict(convert_flux2_transformer_checkpoint_to_diffusers(dict(weights)))


def _family(size: str, base: bool) -> PartsFamily:
    title = f"FLUX.2-klein {size}{' base' if base else ''}"
    large = size == "9B"
    file = f"flux-2-klein-{'base-' if base else ''}{size.lower()}.safetensors"

    def told(shapes: Shapes, name: str) -> bool:
        return _is_klein(shapes) and _is_9b(shapes) == large and ("base" in name.lower()) == base

    components: dict[str, Any] = {
        "transformer": Component(
            "diffusers",
            "Flux2Transformer2DModel",
            f"{title}'s diffusion model, usually {file}",
            _is_klein,
            _config,
            _rename,
        ),
        "text_encoder": encoders.QWEN3_8B_CAUSAL if large else encoders.QWEN3_4B_CAUSAL,
        "vae": vaes.FLUX2_COMPONENT,
    }
    kind = "a base model: 50 steps with guidance" if base else "distilled: 4 steps"
    return PartsFamily(
        title=title,
        told=told,
        pipeline="Flux2KleinPipeline",
        components=components,
        tokenizers={"tokenizer": encoders.QWEN_TOKENIZER},
        scheduler=("FlowMatchEulerDiscreteScheduler", flux.scheduler(guidance=True)),
        note=f"run as {kind}, as its name {'says' if base else 'does not say base'}: both have the same tensors",
        settings={"is_distilled": not base},
    )


FAMILIES = tuple(_family(size, base) for size in ("4B", "9B") for base in (True, False))
