"""FLUX.3 in parts, with guidance and distilled.

Sources of the configurations, all in agreement with what is here:
- diffusers, `Flux3Transformer2DModel`: its defaults; `modular_pipelines/flux3`: the VAE is FLUX.2's, eight layers of
  Qwen3-VL are read, together as wide as those of 4B are, and the blocks bring their scheduler.
- diffusers, `loaders/single_file_utils.py`: the names, and that a distilled model embeds a second timestep.
The language model that rewrites a prompt is not read: a prompt is used as it is.
"""

from __future__ import annotations

from .. import encoders, vaes
from ..component import Component, Config, PartsFamily, Shapes, Weights, count_blocks
from . import qwen3_vl

ROPE_AXES = {128: [32, 32, 32, 32]}
"""Size of a head -> how it is divided between the axes, which no shape tells."""
_BLOCK = "content_mode_blocks.image."
_TARGET = "ref_time_in.in_layer.weight"


def _is_flux3(shapes: Shapes) -> bool:
    wanted = (f"{_BLOCK}0.q_proj.weight", "emb_in.image.weight", "final_layer.image.linear.weight", "txt_in.weight")
    return all(name in shapes for name in wanted)


def _config(shapes: Shapes) -> Config:
    (head,) = shapes[f"{_BLOCK}0.norm.query_norm.scale"]
    width, channels = shapes["emb_in.image.weight"]
    return {
        "in_channels": channels,
        "cond_in_channels": shapes["emb_in.image_cond.weight"][1],
        "num_layers": count_blocks(shapes, _BLOCK),
        "num_single_layers": count_blocks(shapes, "single_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "timestep_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": shapes[f"{_BLOCK}0.mlp_out.weight"][1] / width,
        "axes_dims_rope": ROPE_AXES.get(head, []),
        "flow_map": _TARGET in shapes,
    }


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_flux3_transformer_checkpoint_to_diffusers

    if sum(config.get("axes_dims_rope") or ()) != config.get("attention_head_dim"):
        raise ValueError(f"no configuration is known for heads of {config.get('attention_head_dim')}")
    return dict(convert_flux3_transformer_checkpoint_to_diffusers(dict(weights)))


def _family(distilled: bool) -> PartsFamily:
    title = f"FLUX.3{' distilled' if distilled else ''}"

    def told(shapes: Shapes) -> bool:
        return _is_flux3(shapes) and (_TARGET in shapes) == distilled

    return PartsFamily(
        title=title,
        told=lambda shapes, name: told(shapes),
        pipeline="Flux3DistilledModularPipeline" if distilled else "Flux3ModularPipeline",
        components={
            "transformer": Component(
                "diffusers", "Flux3Transformer2DModel", f"{title}'s diffusion model", told, _config, _rename
            ),
            "text_encoder": qwen3_vl.QWEN3_VL_4B_WHOLE,
            "vae": vaes.FLUX2_COMPONENT,
        },
        tokenizers={"tokenizer": encoders.QWEN_TOKENIZER},
        scheduler=("", {}),
        more=qwen3_vl.processor("tokenizer"),
    )


FAMILIES = (_family(True), _family(False))
