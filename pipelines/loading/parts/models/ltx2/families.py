"""LTX-2 and LTX-2.3 in parts, or in the one file in which they are published, with Gemma 3 beside it.

Sources of the configurations: `model`, `connectors`, `vaes` and `gemma` for the networks; diffusers,
`scripts/convert_ltx2_to_diffusers.py`: the schedulers, and that a file whose name says so is of the distilled model.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...component import Component, Config, PartsFamily, Shapes, count_blocks
from . import connectors, gemma, model, vaes

SCHEDULER: Config = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}
_AS_GIVEN: Config = {"use_dynamic_shifting": False, "shift_terminal": None}
"""Of the distilled model, whose noise levels are given."""
_GATES = "transformer_blocks.0.attn1.to_gate_logits.weight"
_LATER = ("keyframes_abs_pos_embedding",)
"""What LTX-2.5 has besides."""


def is_ltx2(shapes: Shapes) -> bool:
    """LTX-2 or later."""
    wanted = ("audio_adaln_single.linear.weight", "adaln_single.linear.weight", "audio_patchify_proj.weight")
    return all(name in shapes for name in wanted)


def is_later(shapes: Shapes) -> bool:
    """LTX-2.5, whose feed-forward layers lost their bias."""
    no_bias = "transformer_blocks.0.ff.net.0.proj.bias" not in shapes
    return is_ltx2(shapes) and (no_bias or any(name in shapes for name in _LATER))


_SIDES = ("video", "audio")
_FIRST = "_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.weight"


def _agree(shapes: Mapping[str, Shapes]) -> str:
    """Why text encoder, projection, connectors and model are not one model's."""
    denoiser, joint = shapes["transformer"], shapes["connectors"]
    widths = [joint[side + _FIRST][1] for side in _SIDES]
    caption = denoiser.get("caption_projection.linear_1.weight")
    blocks = ("attn2", "audio_attn2")
    wanted = (
        [caption[1]] * 2 if caption else [denoiser[f"transformer_blocks.0.{name}.to_k.weight"][1] for name in blocks]
    )
    if widths != wanted:
        return f"its connectors give {widths} channels for picture and sound, and the model takes {wanted}"
    held = {**joint, **shapes.get("text_projection", {})}
    projections = [held[name] for name in connectors.PROJECTIONS if name in held]
    given = [out for out, _ in projections]
    if any(out not in widths for out in given):
        return f"its text projection gives {given} channels, and its connectors take {widths}"
    names = shapes.get("text_encoder", {})
    if names and projections:
        states = (1 + count_blocks(names, "model.layers.")) * names["model.embed_tokens.weight"][1]
        if projections[0][1] != states:
            return f"its text projection takes {projections[0][1]} channels, and its text encoder gives {states}"
    return ""


def _family(version: str, distilled: bool) -> PartsFamily:
    later = version == "2.3"
    short = "LTX23" if later else "LTX2"
    title = f"LTX-{version}{' distilled' if distilled else ''}"
    size = f"ltx-{'2.3-22b' if later else '2-19b'}-{'distilled' if distilled else 'dev'}"

    def told_by(shapes: Shapes) -> bool:
        return is_ltx2(shapes) and not is_later(shapes) and (_GATES in shapes) == later

    def told(shapes: Shapes, name: str) -> bool:
        return told_by(shapes) and ("distilled" in name.lower()) == distilled

    sound = f"LTX-{version}'s VAE for sound with its vocoder, usually {short}_audio_vae_bf16.safetensors"
    inside = f"in the diffusion model's file, or {size}-embeddings-connectors.safetensors"
    projection = "in the file of the connectors, or ltx-2.3_text_projection_bf16.safetensors"
    vae = vaes.VIDEO_VAE_23 if later else vaes.VIDEO_VAE
    said = "says" if distilled else "does not say distilled"
    how = "the distilled model, for 8 steps without guidance" if distilled else "the model that is not distilled"
    return PartsFamily(
        title=title,
        told=told,
        pipeline="LTX2Pipeline",
        components={
            "transformer": Component(
                "diffusers",
                "LTX2VideoTransformer3DModel",
                f"{title}'s diffusion model, usually {size}.safetensors",
                told_by,
                model.model_config,
                model.rename_model,
                own=model.of_model,
            ),
            "connectors": connectors.connectors(title, inside),
            "text_encoder": gemma.GEMMA3_ENCODER,
            "text_projection": connectors.projection(title, projection),
            "vae": vaes.video_vae(f"LTX-{version}", f"{short}_video_vae_bf16.safetensors", vae),
            "audio_vae": vaes.audio_vae(sound),
            "vocoder": vaes.vocoder(sound, later),
        },
        tokenizers={"tokenizer": gemma.GEMMA_TOKENIZER},
        scheduler=("FlowMatchEulerDiscreteScheduler", SCHEDULER | (_AS_GIVEN if distilled else {})),
        note=f"run as {how}, as its name {said}: both have the same tensors",
        inside=("connectors", "vae", "audio_vae", "vocoder"),
        joined={"text_projection": "connectors"},
        stand_ins={"vae": vaes.vae_stand_in, "audio_vae": vaes.audio_vae_stand_in},
        agree=_agree,
    )


FAMILIES = tuple(_family(version, distilled) for version in ("2", "2.3") for distilled in (True, False))
