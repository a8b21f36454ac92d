"""Qwen-Image in parts, from text and with pictures to edit.

Sources of the configurations, all in agreement with what is here:
- diffusers, `QwenImageTransformer2DModel`: its defaults; the tensors of the published files have its own names.
- ostris/ai-toolkit on GitHub, its Qwen-Image model: the scheduler, a copy of Qwen/Qwen-Image's.
- transformers, `Qwen2VLImageProcessor`: its defaults, but for the largest picture, which is Qwen2.5-VL's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import encoders, vaes
from .component import Component, Config, PartsFamily, Shapes, Weights, count_blocks

ROPE_AXES = {128: [16, 56, 56]}
"""Size of a head -> how it is divided between the axes, which no shape tells."""
SCHEDULER: Config = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "use_dynamic_shifting": True,
}
PICTURES = {"min_pixels": 3136, "max_pixels": 12845056}
"""What Qwen2.5-VL's encoder of pictures takes, in pixels."""
_TIMESTEP_ZERO = "__index_timestep_zero__"
"""Marks Qwen-Image-Edit-2511: its reference pictures are at timestep 0."""
_LAYERED = "time_text_embed.addition_t_embedding.weight"


def _is_qwenimage(shapes: Shapes) -> bool:
    wanted = ("txt_norm.weight", "transformer_blocks.0.attn.add_q_proj.weight", "transformer_blocks.0.img_mod.1.weight")
    return all(name in shapes for name in wanted) and _LAYERED not in shapes


def _config(shapes: Shapes) -> Config:
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    width, channels = shapes["img_in.weight"]
    config: Config = {
        "patch_size": 2,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_layers": count_blocks(shapes, "transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_norm.weight"][0],
        "axes_dims_rope": ROPE_AXES.get(head, []),
    }
    if _TIMESTEP_ZERO in shapes:
        config["zero_cond_t"] = True
    return config


def _rename(weights: Weights, config: Config) -> Weights:
    if sum(config.get("axes_dims_rope") or ()) != config.get("attention_head_dim"):
        raise ValueError(f"no configuration is known for heads of {config.get('attention_head_dim')}")
    return {key: value for key, value in weights.items() if key != _TIMESTEP_ZERO}


def _processor(made: dict[str, Any], beside: Path) -> dict[str, Any]:
    """What prepares pictures for the text encoder: that of the folder beside the diffusion model, else Qwen2.5-VL's."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    if made["tokenizer"] is None:  # what is encoded elsewhere is prepared there
        return {"processor": None}
    if (beside / "processor").is_dir():
        return {"processor": Qwen2VLProcessor.from_pretrained(beside / "processor", local_files_only=True)}
    return {
        "processor": Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(**PICTURES),
            tokenizer=made["tokenizer"],
            video_processor=Qwen2VLVideoProcessor(**PICTURES),
            chat_template=encoders.CHAT_TEMPLATE,
        )
    }


def _family(title: str, told: Any, pipeline: str, usual: str, note: str, edits: bool = False) -> PartsFamily:
    return PartsFamily(
        title=title,
        told=lambda shapes, name: _is_qwenimage(shapes) and told(shapes, name.lower()),
        pipeline=pipeline,
        components={
            "transformer": Component(
                "diffusers",
                "QwenImageTransformer2DModel",
                f"{title}'s diffusion model, usually {usual}",
                _is_qwenimage,
                _config,
                _rename,
            ),
            "text_encoder": encoders.QWEN25_VL_ENCODER,
            "vae": vaes.QWEN_COMPONENT,
        },
        tokenizers={"tokenizer": encoders.QWEN_TOKENIZER},
        scheduler=("FlowMatchEulerDiscreteScheduler", SCHEDULER),
        note=f"run as {title}, as its {note}: all Qwen-Image models have the same tensors",
        more=_processor if edits else None,
    )


def _has_pictures(shapes: Shapes, name: str) -> bool:
    return _TIMESTEP_ZERO in shapes or ("edit" in name and any(mark in name for mark in ("2509", "2511", "plus")))


FAMILIES = (
    _family(
        "Qwen-Image-Edit-2509",
        _has_pictures,
        "QwenImageEditPlusPipeline",
        "qwen_image_edit_2509_fp8_e4m3fn.safetensors",
        "name or its mark says",
        edits=True,
    ),
    _family(
        "Qwen-Image-Edit",
        lambda shapes, name: "edit" in name,
        "QwenImageEditPipeline",
        "qwen_image_edit_fp8_e4m3fn.safetensors",
        "name says",
        edits=True,
    ),
    _family(
        "Qwen-Image",
        lambda shapes, name: True,
        "QwenImagePipeline",
        "qwen_image_fp8_e4m3fn.safetensors",
        "name does not say that it edits pictures",
    ),
)
