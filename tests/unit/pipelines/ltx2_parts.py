"""Tiny LTX-2 and LTX-2.3, and their components as the files that ComfyUI takes, by renamings of the tests' own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from original_layout import Tensors
from safetensors.torch import save_file

from fastdiffusers.pipelines import tiny

MODEL = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}
TABLES = {
    "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
    "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
}
VOCODER = {"upsamplers": "ups", "resnets": "resblocks", "conv_in": "conv_pre", "conv_out": "conv_post"}
STATISTICS = {
    "latents_mean": "per_channel_statistics.mean-of-means",
    "latents_std": "per_channel_statistics.std-of-means",
}
MEL_BINS = 8


def ltx2() -> Any:
    """LTX-2 with feed-forward layers of 256 channels, as blocks of GGUF take them."""
    import diffusers
    from further_parts import changed

    small: Any = tiny.build("ltx2-t2v")
    torch.manual_seed(18)
    sizes = {"attention_head_dim": 32, "cross_attention_dim": 64}
    config = changed(small.transformer.config, **sizes)
    small.register_modules(transformer=diffusers.LTX2VideoTransformer3DModel.from_config(config).eval())
    return small


def ltx23() -> Any:
    """LTX-2.3: gates, texts projected apart, a VAE of another decoder, and a vocoder of two stages."""
    import diffusers
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2VocoderWithBWE
    from further_parts import changed

    small: Any = tiny.build("ltx2-t2v")
    torch.manual_seed(19)
    sizes: dict[str, Any] = {"attention_head_dim": 32, "cross_attention_dim": 64, "use_prompt_embeddings": False}
    sizes |= {"perturbed_attn": True, "caption_channels": 32}
    for side in ("", "audio_"):
        sizes |= {f"{side}gated_attn": True, f"{side}cross_attn_mod": True}
    transformer = diffusers.LTX2VideoTransformer3DModel.from_config(changed(small.transformer.config, **sizes))
    apart: dict[str, Any] = {"per_modality_projections": True, "proj_bias": True}
    for side, width in (("video", 64), ("audio", transformer.config.audio_cross_attention_dim)):
        apart |= {f"{side}_hidden_dim": width, f"{side}_gated_attn": True}
        apart |= {f"{side}_connector_attention_head_dim": width // 2}
    connectors = LTX2TextConnectors.from_config(changed(small.connectors.config, **apart))
    vae = diffusers.AutoencoderKLLTX2Video(
        block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(8, 16, 16, 32),
        layers_per_block=(0, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True,) * 4,
        decoder_inject_noise=(False,) * 5,
        upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        upsample_residual=(False,) * 4,
        upsample_factor=(2, 2, 1, 2),
        decoder_causal=False,
        decoder_spatial_padding_mode="zeros",
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    vocoder = LTX2VocoderWithBWE(
        in_channels=2 * MEL_BINS,
        hidden_channels=64,
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        bwe_in_channels=2 * MEL_BINS,
        bwe_hidden_channels=32,
        bwe_resnet_kernel_sizes=[3],
        bwe_resnet_dilations=[[1, 3, 5]],
        num_mel_channels=MEL_BINS,
    )
    for module in (vae, vocoder.mel_stft):  # what is 0 and 1 until it is loaded
        for buffer in module.buffers():
            buffer.uniform_(0.5, 1.5)
    parts = {"transformer": transformer, "connectors": connectors, "vae": vae, "vocoder": vocoder}
    small.register_modules(**{name: part.eval() for name, part in parts.items()})
    return small


def original_ltx2(state: Tensors) -> Tensors:
    out: Tensors = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        rest = [TABLES.get(piece, piece) for piece in rest]
        new = ".".join([MODEL.get(first, first), *rest])
        out[new.replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")] = value
    return out


def original_connectors(state: Tensors) -> Tensors:
    names = {
        "video_connector": "video_embeddings_connector",
        "audio_connector": "audio_embeddings_connector",
        "text_proj_in": "text_embedding_projection.aggregate_embed",
        "video_text_proj_in": "text_embedding_projection.video_aggregate_embed",
        "audio_text_proj_in": "text_embedding_projection.audio_aggregate_embed",
    }
    out: Tensors = {}
    for name, value in state.items():
        first, rest = name.split(".", 1)
        new = f"{names[first]}.{rest}".replace("transformer_blocks.", "transformer_1d_blocks.")
        out[new.replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")] = value
    return out


def original_video_vae(state: Tensors) -> Tensors:
    """Both halves count what changes the size among their blocks, and the decoder begins with the middle."""
    steps = {
        r"encoder\.down_blocks\.(\d)\.downsamplers\.0": lambda at: f"encoder.down_blocks.{2 * int(at[1]) + 1}",
        r"encoder\.down_blocks\.(\d)\.resnets": lambda at: f"encoder.down_blocks.{2 * int(at[1])}.res_blocks",
        r"encoder\.mid_block\.resnets": lambda at: "encoder.down_blocks.8.res_blocks",
        r"decoder\.mid_block\.resnets": lambda at: "decoder.up_blocks.0.res_blocks",
        r"decoder\.up_blocks\.(\d)\.upsamplers\.0": lambda at: f"decoder.up_blocks.{2 * int(at[1]) + 1}",
        r"decoder\.up_blocks\.(\d)\.resnets": lambda at: f"decoder.up_blocks.{2 * int(at[1]) + 2}.res_blocks",
    }
    out: Tensors = {}
    for name, value in state.items():
        new = STATISTICS.get(name, name)
        for old, renamed in steps.items():
            new, done = re.subn(old, renamed, new, count=1)
            if done:
                break
        out[new] = value
    return {
        **out,
        "per_channel_statistics.channel": torch.zeros(1),
        "per_channel_statistics.mean-of-stds": torch.ones(1),
    }


def original_vocoder(state: Tensors) -> Tensors:
    out: Tensors = {}
    for name, value in state.items():
        new = name.replace("act_out.", "act_post.").replace(".downsample.filter", ".downsample.lowpass.filter")
        out[".".join(VOCODER.get(piece, piece) for piece in new.split("."))] = value
    return out


def original_gemma(model: Any) -> Tensors:
    """The file has what sees pictures too, and the tokenizer."""
    state = model.state_dict()
    out: Tensors = {}
    for name, value in state.items():
        if ".language_model." in name:
            out["model." + name.split("language_model.")[1]] = value
    assert out
    return {**out, "vision_model.embeddings.patch_embedding.weight": torch.zeros(2, 3, 2, 2)}


def original_files(pipeline: Any) -> dict[str, Tensors]:
    """Component -> its tensors under their own names."""
    audio = {STATISTICS.get(name, name): value for name, value in pipeline.audio_vae.state_dict().items()}
    connectors = original_connectors(pipeline.connectors.state_dict())
    projection = "text_embedding_projection."
    return {
        "transformer": original_ltx2(pipeline.transformer.state_dict()),
        "connectors": {name: value for name, value in connectors.items() if not name.startswith(projection)},
        "projection": {name: value for name, value in connectors.items() if name.startswith(projection)},
        "text": original_gemma(pipeline.text_encoder),
        "vae": original_video_vae(pipeline.vae.state_dict()),
        "audio": {f"audio_vae.{name}": value for name, value in audio.items()}
        | {f"vocoder.{name}": value for name, value in original_vocoder(pipeline.vocoder.state_dict()).items()},
    }


def write_ltx2(pipeline: Any, place: Path, layout: str, name: str = "ltx") -> tuple[dict[str, Path], Path]:
    """The files of a pipeline, and its diffusers folder.

    Args:
        layout: "whole": all but the text encoder in one file; "parts": the connectors in the diffusion model's file,
            and their projection in one of its own; "apart": connectors and projection in a file of their own.
    """
    twin, own = place / "twin", original_files(pipeline)
    pipeline.save_pretrained(twin)
    inner = {f"model.diffusion_model.{key}": value for key, value in own["transformer"].items()}
    connectors = {f"model.diffusion_model.{key}": value for key, value in own["connectors"].items()}
    files = {"text": own["text"]}
    if layout == "whole":
        vae = {f"vae.{key}": value for key, value in own["vae"].items()}
        files["model"] = {**inner, **connectors, **own["projection"], **vae, **own["audio"]}
    elif layout == "parts":
        files |= {"model": {**own["transformer"], **own["connectors"]}, "text_projection": own["projection"]}
        files |= {"vae": own["vae"], "audio": own["audio"]}
    else:
        files |= {"model": inner, "text_connectors": {**connectors, **own["projection"]}}
        files |= {"vae": own["vae"], "audio": own["audio"]}
    paths = {key: place / f"{name if key == 'model' else key}.safetensors" for key in files}
    for key, tensors in files.items():
        save_file({inside: value.contiguous().clone() for inside, value in tensors.items()}, paths[key])
    for file in twin.glob("*/*"):
        if file.suffix in (".json", ".txt", ".model", ".jinja") and "index" not in file.name:
            (place / name / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place / name / file.parent.name / file.name)
    return paths, twin
