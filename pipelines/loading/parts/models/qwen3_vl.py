"""Qwen3-VL, which encodes texts and pictures for FLUX.3 and Qwen-Image-2.1, and what prepares both for it.

Sources of the configurations, all in agreement with what is here:
- ComfyUI, classes Qwen3VL_4BConfig and Qwen3VL_8BConfig of `comfy/text_encoders/llama.py`, and what Qwen3-VL sees with
  in `comfy/text_encoders/qwen3vl.py`: the sizes, and how pictures are prepared.
- diffusers, `modular_pipelines/flux3/encoders.py` and `modular_pipelines/qwenimage21/encoders.py`: the class.
- transformers: what is left out here is the default of its class; Qwen3-VL's pictures are of 65536 to 16777216 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import encoders
from ..component import Component, Config, Shapes, Weights

QWEN3_VL_8B: Config = {
    "text_config": {
        **encoders.QWEN3_VL_4B["text_config"],
        "hidden_size": encoders.QWEN3_8B["hidden_size"],
        "intermediate_size": encoders.QWEN3_8B["intermediate_size"],
    },
    "vision_config": {
        **encoders.QWEN3_VL_4B["vision_config"],
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "out_hidden_size": encoders.QWEN3_8B["hidden_size"],
        "deepstack_visual_indexes": [8, 16, 24],
    },
    "tie_word_embeddings": False,
}
PICTURES = {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}
"""Fewest and most pixels of a picture."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen3-VL's for what a pipeline sends: texts and pictures, without tools."""
_SEEN = "visual.deepstack_merger_list.0.norm.weight"
_LEVELS = {
    "model.language_model.": "model.language_model.",
    "model.visual.": "model.visual.",
    "visual.": "model.visual.",
    "model.lm_head.": "lm_head.",
    "model.": "model.language_model.",
}
"""Beginnings of names in a file -> in transformers; the first that fits counts."""


def _is_qwen3_vl(shapes: Shapes) -> bool:
    return "model." + _SEEN in shapes or _SEEN in shapes


def _renamed(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in _LEVELS.items() if name.startswith(old)), name)


def _rename(weights: Weights, config: Config) -> Weights:
    """ComfyUI moves the models a level up; a file without the head of the language model is whole."""
    found = {_renamed(key): value for key, value in weights.items()}
    found.setdefault("lm_head.weight", found["model.language_model.embed_tokens.weight"])
    return found


def _has_head(shapes: Shapes) -> bool:
    return any(_renamed(name) == "lm_head.weight" for name in shapes)


def _encoder(usual: str, config: Config) -> Component:
    return Component(
        "transformers",
        "Qwen3VLForConditionalGeneration",
        usual,
        _is_qwen3_vl,
        lambda shapes: {**config, "tie_word_embeddings": not _has_head(shapes)},
        _rename,
    )


QWEN3_VL_4B_WHOLE = _encoder(
    "Qwen3-VL-4B, usually qwen3vl_4b_fp8_scaled.safetensors or qwen3vl_4b_bf16.safetensors", encoders.QWEN3_VL_4B
)
QWEN3_VL_8B_WHOLE = _encoder(
    "Qwen3-VL-8B, usually qwen3vl_8b_fp8_scaled.safetensors or qwen3vl_8b_bf16.safetensors", QWEN3_VL_8B
)


def processor(name: str) -> Callable[[dict[str, Any], Path], dict[str, Any]]:
    """What prepares texts and pictures, as the component `name`: that of the folder beside the diffusion model, else
    Qwen3-VL's as published."""

    def made(parts: dict[str, Any], beside: Path) -> dict[str, Any]:
        from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

        if parts["tokenizer"] is None:  # what is encoded elsewhere is prepared there
            return {name: None}
        if (beside / name / "preprocessor_config.json").is_file() or (
            beside / name / "processor_config.json"
        ).is_file():
            return {name: Qwen3VLProcessor.from_pretrained(beside / name, local_files_only=True)}
        half = [0.5, 0.5, 0.5]
        return {
            name: Qwen3VLProcessor(
                image_processor=Qwen2VLImageProcessor(
                    patch_size=16, image_mean=half, image_std=half, size=dict(PICTURES)
                ),
                tokenizer=parts["tokenizer"],
                video_processor=Qwen3VLVideoProcessor(),
                chat_template=CHAT_TEMPLATE,
            )
        }

    return made
