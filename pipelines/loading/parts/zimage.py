"""Z-Image in parts.

Sources of the configurations, all in agreement with what is here:
- ComfyUI, `comfy/model_detection.py` for a width of 3840, and `comfy/supported_models.py`: axes, shift.
- diffusers, `ZImageTransformer2DModel`: its defaults but for `axes_lens`, which bounds how long a prompt may be.
- diffusers, documentation of Z-Image-Turbo: FLUX.1's VAE, Qwen3-4B, nine steps without guidance.
"""

from __future__ import annotations

from . import encoders, vaes
from .component import Component, Config, PartsFamily, Shapes, Weights, count_blocks

ROPE_AXES = {128: [32, 48, 48]}
"""Size of a head -> how it is divided between the axes, which no shape tells."""


def _is_zimage(shapes: Shapes) -> bool:
    wanted = ("noise_refiner.0.attention.qkv.weight", "cap_embedder.1.weight", "cap_pad_token", "x_pad_token")
    return all(name in shapes for name in wanted) and "siglip_embedder.0.weight" not in shapes


def _config(shapes: Shapes) -> Config:
    width, features = shapes["cap_embedder.1.weight"]
    head = shapes["layers.0.attention.q_norm.weight"][0]
    fused = shapes["layers.0.attention.qkv.weight"][0]
    return {
        "in_channels": shapes["x_embedder.weight"][1] // 4,
        "dim": width,
        "n_layers": count_blocks(shapes, "layers."),
        "n_refiner_layers": count_blocks(shapes, "noise_refiner."),
        "n_heads": width // head,
        "n_kv_heads": (fused - width) // (2 * head),
        "cap_feat_dim": features,
        "axes_dims": ROPE_AXES.get(head, []),
        "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0,
        "t_scale": 1000.0,
    }


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers

    if sum(config.get("axes_dims") or ()) * config["n_heads"] != config["dim"]:
        raise ValueError(f"no configuration is known for {config['n_heads']} heads in {config['dim']} channels")
    if config["n_heads"] != config["n_kv_heads"]:
        raise ValueError("its keys and values have fewer heads than its queries")
    return dict(convert_z_image_transformer_checkpoint_to_diffusers(dict(weights)))


FAMILIES = (
    PartsFamily(
        title="Z-Image",
        told=lambda shapes, name: _is_zimage(shapes),
        pipeline="ZImagePipeline",
        components={
            "transformer": Component(
                "diffusers",
                "ZImageTransformer2DModel",
                "Z-Image's diffusion model, usually z_image_turbo_bf16.safetensors",
                _is_zimage,
                _config,
                _rename,
            ),
            "text_encoder": encoders.QWEN3_ENCODER,
            "vae": vaes.FLUX_COMPONENT,
        },
        tokenizers={"tokenizer": encoders.QWEN_TOKENIZER},
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": False}),
        note="its steps are shifted by 3, as Z-Image-Turbo's are: the other models of Z-Image have the same tensors",
    ),
)
