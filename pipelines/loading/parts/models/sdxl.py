"""SDXL in parts: the diffusion model alone, as ComfyUI saves it or as it is cut out of a checkpoint.

Its configurations are those of whole checkpoints: see `checkpoint`.
"""

from __future__ import annotations

from .. import clips, vaes
from ..checkpoint import PUBLISHED, prediction
from ..component import Component, Config, PartsFamily, Shapes, Weights

_PREFIX = "model.diffusion_model."
"""What diffusers' converter looks for."""
_MARKS = ("v_pred", "ztsnr")
"""Beside the weights: that the model predicts the velocity, and that its last step begins with noise alone."""


def _is_sdxl(shapes: Shapes) -> bool:
    """Models to inpaint have 9 channels; the refiner has other sizes, which are compared later."""
    wanted = (
        "input_blocks.0.0.weight",
        "label_emb.0.0.weight",
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    )
    return all(name in shapes for name in wanted) and shapes["input_blocks.0.0.weight"][1] == 4


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    named = {_PREFIX + key: value for key, value in weights.items() if key not in _MARKS}
    return dict(convert_ldm_unet_checkpoint(named, config))


def _family(marks: tuple[str, ...]) -> PartsFamily:
    name, config = PUBLISHED["xl_base"]["scheduler"][1:]
    return PartsFamily(
        title="SDXL" + (" of the velocity" if marks else ""),
        told=lambda shapes, name: _is_sdxl(shapes) and all((mark in shapes) == (mark in marks) for mark in _MARKS),
        pipeline="StableDiffusionXLPipeline",
        components={
            "unet": Component(
                "diffusers",
                "UNet2DConditionModel",
                "SDXL's diffusion model",
                _is_sdxl,
                lambda shapes: {"layers_per_block": 2, **PUBLISHED["xl_base"]["unet"][2]},
                _rename,
            ),
            "text_encoder": clips.CLIP_L_ENCODER,
            "text_encoder_2": clips.CLIP_G_ENCODER,
            "vae": vaes.SDXL_COMPONENT,
        },
        tokenizers={"tokenizer": clips.CLIP_TOKENIZER, "tokenizer_2": clips.CLIP_G_TOKENIZER},
        scheduler=(name, config | prediction(marks)),
        note=f"run as a model that predicts the {'velocity, as its file says' if marks else 'noise'}",
    )


FAMILIES = tuple(_family(marks) for marks in ((), _MARKS[:1], _MARKS))
