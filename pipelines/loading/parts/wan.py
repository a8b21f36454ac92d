"""Wan 2.1 and 2.2 in parts: from text, and 2.2 from a first frame.

Sources of the configurations, all in agreement with what is here:
- diffusers, `scripts/convert_wan_to_diffusers.py`: the transformers of 1.3B and 14B are the class's defaults but for
  what the shapes tell, and Wan 2.2's experts change at 0.875 (from text) and 0.9 (from a frame) of the noise.
- diffusers, documentation of Wan: UniPC with flow sigmas, shifted by 3.
- ComfyUI, `comfy/model_detection.py`: the size of the heads, and what tells Wan's many other models.
"""

from __future__ import annotations

import re

from . import encoders, vaes
from .component import Component, Config, PartsFamily, Shapes, Weights, count_blocks

HEAD = 128
"""Channels of an attention head of every published size, which no shape tells."""
SCHEDULER: Config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_NOISE = re.compile(r"(high|low)[-_ ]?noise", re.IGNORECASE)
"""How the names of its files tell the experts of Wan 2.2, whose tensors have the same names and sizes."""
_OTHERS = (
    *("vace_", "control_adapter.", "casual_audio_encoder.", "audio_proj.", "face_adapter.", "motion_encoder."),
    *("patch_embedding_", "img_emb.", "ref_conv."),
)
"""What Wan's other models have besides."""


def _is_wan(shapes: Shapes) -> bool:
    wanted = ("head.modulation", "patch_embedding.weight", "blocks.0.self_attn.norm_q.weight")
    return all(name in shapes for name in wanted) and not any(name.startswith(_OTHERS) for name in shapes)


def _channels(shapes: Shapes) -> tuple[int, int]:
    return shapes["patch_embedding.weight"][1], shapes["head.head.weight"][0] // 4


def _is_text_to_video(shapes: Shapes) -> bool:
    return _is_wan(shapes) and _channels(shapes) == (16, 16)


def _is_image_to_video(shapes: Shapes) -> bool:
    """Wan 2.2's: 2.1 has an encoder of pictures besides."""
    return _is_wan(shapes) and _channels(shapes) == (36, 16)


def expert_in_name(name: str) -> str:
    """ "high" or "low" where the name of a file says which expert of Wan 2.2 it is, else ""."""
    found = _NOISE.search(name)
    return found[1].lower() if found else ""


def _config(shapes: Shapes) -> Config:
    channels, out = _channels(shapes)
    return {
        "num_attention_heads": shapes["blocks.0.self_attn.q.weight"][0] // HEAD,
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


def _family(title: str, told: object, pipeline: str, usual: str, boundary: float, needs_second: bool) -> PartsFamily:
    def expert(level: str) -> Component:
        file = f"wan2.2_{usual}_{level}_noise_14B_fp8_scaled.safetensors"
        what = f"the expert for {'much' if level == 'high' else 'little'} noise, usually {file}"
        return Component("diffusers", "WanTransformer3DModel", what, _is_wan, _config, _rename)

    return PartsFamily(
        title=title,
        told=lambda shapes, name: told(shapes),  # type: ignore[operator]
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
        note="its steps are shifted by 3, as published for 480p: other sizes may want --flow-shift",
    )


FAMILIES = (
    _family("Wan 2.1 or 2.2 (text to video)", _is_text_to_video, "WanPipeline", "t2v", 0.875, False),
    _family("Wan 2.2 (image to video)", _is_image_to_video, "WanImageToVideoPipeline", "i2v", 0.9, True),
)
