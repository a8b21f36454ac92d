"""Wan 2.1 and 2.2 in parts, from text and from a first frame, and 2.2's model of 5B, which does both.

Sources of the configurations, all in agreement with what is here:
- diffusers, `scripts/convert_wan_to_diffusers.py`: the transformers of 1.3B and 14B are the class's defaults but for
  what the shapes tell, and Wan 2.2's experts change at 0.875 (from text) and 0.9 (from a frame) of the noise.
  Wan 2.1 reads a first frame with CLIP-H; the 5B model expands its timesteps. UniPC with flow sigmas, shifted by 3,
  that of 5B by 5.
- ComfyUI, `comfy/model_detection.py`: the size of the heads, and what tells Wan's many other models.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import clips, encoders, vaes, wan22_vae
from ..component import Component, Config, PartsFamily, Shapes, Weights, count_blocks

HEAD = 128
"""Channels of an attention head of every published size, which no shape tells."""
SCHEDULER: Config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_SHIFTED = "its steps are shifted by 3, as published for 480p: other sizes may want --flow-shift"
_NOISE = re.compile(r"(high|low)[-_ ]?noise", re.IGNORECASE)
"""How the names of its files tell the experts of Wan 2.2, whose tensors have the same names and sizes."""
_OTHERS = (
    *("vace_", "control_adapter.", "casual_audio_encoder.", "audio_proj.", "face_adapter.", "motion_encoder."),
    *("patch_embedding_", "ref_conv.", "img_emb.emb_pos"),
)
"""What Wan's other models have besides: "emb_pos" that for a first and a last frame."""
_PICTURES = "img_emb.proj.1.weight"


def _is_wan(shapes: Shapes) -> bool:
    wanted = ("head.modulation", "patch_embedding.weight", "blocks.0.self_attn.norm_q.weight")
    return all(name in shapes for name in wanted) and not any(name.startswith(_OTHERS) for name in shapes)


def _channels(shapes: Shapes) -> tuple[int, int]:
    return shapes["patch_embedding.weight"][1], shapes["head.head.weight"][0] // 4


def _reads_pictures(shapes: Shapes) -> bool:
    """Whether it looks at what an encoder makes of the first frame, as Wan 2.1 does and 2.2 does not."""
    return _PICTURES in shapes


def _is(channels: tuple[int, int], pictures: bool = False) -> Callable[[Shapes], bool]:
    return lambda shapes: _is_wan(shapes) and _channels(shapes) == channels and _reads_pictures(shapes) == pictures


def expert_in_name(name: str) -> str:
    """ "high" or "low" where the name of a file says which expert of Wan 2.2 it is, else ""."""
    found = _NOISE.search(name)
    return found[1].lower() if found else ""


def _config(shapes: Shapes) -> Config:
    channels, out = _channels(shapes)
    width = shapes["blocks.0.self_attn.q.weight"][0]
    pictures = {"image_dim": shapes[_PICTURES][1], "added_kv_proj_dim": width} if _reads_pictures(shapes) else {}
    return {
        **pictures,
        "num_attention_heads": width // HEAD,
        "attention_head_dim": HEAD,
        "in_channels": channels,
        "out_channels": out,
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "num_layers": count_blocks(shapes, "blocks."),
    }


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return dict(convert_wan_transformer_to_diffusers(dict(weights)))


def _picture_processor(made: dict[str, Any], beside: Path) -> dict[str, Any]:
    """What prepares the first frame for its encoder: that of the folder beside the diffusion model, else CLIP's."""
    from transformers import CLIPImageProcessor

    if (beside / "image_processor").is_dir():
        return {
            "image_processor": CLIPImageProcessor.from_pretrained(beside / "image_processor", local_files_only=True)
        }
    return {"image_processor": CLIPImageProcessor()}


def _model(title: str) -> Component:
    return Component("diffusers", "WanTransformer3DModel", title, _is_wan, _config, _rename)


def _of_two_experts(
    title: str, told: Callable[[Shapes], bool], pipeline: str, usual: str, boundary: float, needs_second: bool
) -> PartsFamily:
    def expert(level: str) -> Component:
        file = f"wan2.2_{usual}_{level}_noise_14B_fp8_scaled.safetensors"
        return _model(f"the expert for {'much' if level == 'high' else 'little'} noise, usually {file}")

    return PartsFamily(
        title=title,
        told=lambda shapes, name: told(shapes),
        pipeline=pipeline,
        components={
            "transformer": expert("high"),
            "transformer_2": expert("low"),
            "text_encoder": encoders.UMT5_ENCODER,
            "vae": vaes.WAN_COMPONENT,
        },
        tokenizers={"tokenizer": encoders.UMT5_TOKENIZER},
        scheduler=("UniPCMultistepScheduler", SCHEDULER),
        second="transformer_2",
        needs_second=lambda name: needs_second or expert_in_name(name) != "",
        expert=expert_in_name,
        settings_of_two={"boundary_ratio": boundary},
        note=_SHIFTED,
    )


FAMILIES = (
    _of_two_experts("Wan 2.1 or 2.2 (text to video)", _is((16, 16)), "WanPipeline", "t2v", 0.875, False),
    _of_two_experts("Wan 2.2 (image to video)", _is((36, 16)), "WanImageToVideoPipeline", "i2v", 0.9, True),
    PartsFamily(
        title="Wan 2.1 (image to video)",
        told=lambda shapes, name: _is((36, 16), pictures=True)(shapes),
        pipeline="WanImageToVideoPipeline",
        components={
            "transformer": _model(
                "Wan 2.1's diffusion model for a first frame, usually wan2.1_i2v_480p_14B_fp8_scaled.safetensors"
            ),
            "text_encoder": encoders.UMT5_ENCODER,
            "image_encoder": clips.CLIP_VISION_ENCODER,
            "vae": vaes.WAN_COMPONENT,
        },
        tokenizers={"tokenizer": encoders.UMT5_TOKENIZER},
        scheduler=("UniPCMultistepScheduler", SCHEDULER),
        more=_picture_processor,
        note=_SHIFTED,
    ),
    PartsFamily(
        title="Wan 2.2 5B",
        told=lambda shapes, name: _is((48, 48))(shapes),
        pipeline="WanPipeline",
        components={
            "transformer": _model("Wan 2.2's diffusion model of 5B, usually wan2.2_ti2v_5B_fp16.safetensors"),
            "text_encoder": encoders.UMT5_ENCODER,
            "vae": wan22_vae.WAN22_COMPONENT,
        },
        tokenizers={"tokenizer": encoders.UMT5_TOKENIZER},
        scheduler=("UniPCMultistepScheduler", SCHEDULER | {"flow_shift": 5.0}),
        settings={"expand_timesteps": True},
    ),
)
