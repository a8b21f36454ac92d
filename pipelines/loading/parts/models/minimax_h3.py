"""MiniMax-H3 in parts: its diffusion model, with texts that ComfyUI encodes and a latent that ComfyUI decodes.

Sources of the configurations, both in agreement with what is here:
- diffusers, `MiniMaxH3Transformer3DModel` and `scripts/convert_minimax_h3_to_diffusers.py`: what is left out is the
  class's default; `loaders/single_file_utils.py`: the names, and the order of queries, keys and values.
- ComfyUI, `comfy/model_detection.py`: how the sizes are told.
Its text encoder is read by ComfyUI alone: the file ends with the layer that is read, where transformers' model goes on,
so that its norm would come after it. diffusers has no reader of single files for its VAEs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..component import Component, Config, PartsFamily, Shapes, Weights, count_blocks

SHIFTS = {"scheduler": 12.0, "audio_scheduler": 3.0}
"""Of the steps for the picture and of those for the sound."""


def _is_minimax_h3(shapes: Shapes) -> bool:
    return all(
        name in shapes for name in ("video_patch_proj.weight", "audio_patch_proj.weight", "condition_proj.weight")
    )


def is_pruned(shapes: Shapes) -> bool:
    """A copy whose embedding of the time is a table, which diffusers does not read."""
    return _is_minimax_h3(shapes) and "adaln_t_table" in shapes


def _is_whole(shapes: Shapes) -> bool:
    return _is_minimax_h3(shapes) and not is_pruned(shapes)


def _never(shapes: Shapes) -> bool:
    return False


def _config(shapes: Shapes) -> Config:
    (head,) = shapes["blocks.0.attn.q_norm.weight"]
    hidden, freq = shapes["time_embedder.proj_in.weight"]
    return {
        "num_attention_heads": shapes["blocks.0.attn.qkv_proj.weight"][0] // (3 * head),
        "attention_head_dim": head,
        "hidden_size": shapes["video_patch_proj.weight"][0],
        "num_layers": count_blocks(shapes, "blocks."),
        "num_refiner_layers": count_blocks(shapes, "token_refiner.blocks."),
        "ffn_dim": shapes["blocks.0.mlp.fc1.weight"][0] // 2,
        "in_channels": shapes["final_layer.video_out.weight"][0] // 4,
        "audio_in_channels": shapes["final_layer.audio_out.weight"][0],
        "text_dim": shapes["condition_proj.weight"][1],
        "freq_dim": freq,
        "time_embed_hidden_dim": hidden,
        "time_embed_dim": shapes["time_embedder.proj_out.weight"][0],
        **({"rope_freq_dim": shapes["rope.inv_freq"][0]} if "rope.inv_freq" in shapes else {}),
    }


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_minimax_h3_transformer_checkpoint_to_diffusers

    return dict(convert_minimax_h3_transformer_checkpoint_to_diffusers(dict(weights), config))


def _second_scheduler(made: dict[str, Any], beside: Path) -> dict[str, Any]:
    from diffusers import MiniMaxH3Scheduler

    return {"audio_scheduler": MiniMaxH3Scheduler(shift=SHIFTS["audio_scheduler"])}


FAMILIES = (
    PartsFamily(
        title="MiniMax-H3",
        told=lambda shapes, name: _is_whole(shapes),
        pipeline="MiniMaxH3ModularPipeline",
        components={
            "transformer": Component(
                "diffusers",
                "MiniMaxH3Transformer3DModel",
                "MiniMax-H3's diffusion model",
                _is_whole,
                _config,
                _rename,
            ),
        },
        tokenizers={},
        scheduler=("MiniMaxH3Scheduler", {"shift": SHIFTS["scheduler"]}),
        more=_second_scheduler,
        elsewhere={
            "text_encoder": Component(
                "transformers", "Qwen3VLForConditionalGeneration", "Qwen3-VL-32B", _never, dict, _rename
            ),
            "vae": Component("diffusers", "AutoencoderKLMiniMaxH3", "MiniMax-H3's VAE", _never, dict, _rename),
            "audio_vae": Component(
                "diffusers", "AutoencoderKLMiniMaxH3Audio", "MiniMax-H3's VAE for sound", _never, dict, _rename
            ),
        },
    ),
)
