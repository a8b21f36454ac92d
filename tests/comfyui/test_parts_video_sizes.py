"""LTX-2, LTX-2.3, MiniMax-H3 and Qwen3-VL at their published sizes: names and shapes from ComfyUI's own networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_parts_node import write_header
from test_parts_sizes import Shapes, how, shapes_of

ENCODER = (
    *(("res_x", 4), ("compress_space_res", 2), ("res_x", 6), ("compress_time_res", 2)),
    *(("res_x", 6), ("compress_all_res", 2), ("res_x", 2), ("compress_all_res", 2), ("res_x", 2)),
)
DECODER = (("res_x", 5), *(("compress_all", 2), ("res_x", 5)) * 3)
ENCODER_23 = (
    *(("res_x", 4), ("compress_space_res", 2), ("res_x", 6), ("compress_time_res", 2)),
    *(("res_x", 4), ("compress_all_res", 2), ("res_x", 2), ("compress_all_res", 1), ("res_x", 2)),
)
DECODER_23 = (
    *(("res_x", 4), ("compress_space", 2), ("res_x", 6), ("compress_time", 2)),
    *(("res_x", 4), ("compress_all", 1), ("res_x", 2), ("compress_all", 2), ("res_x", 2)),
)
"""Blocks of the VAEs and their layers, or by how much they change the channels."""


def model(later: bool) -> Shapes:
    from comfy.ldm.lightricks.av_model import LTXAVModel

    sizes: dict[str, Any] = {"rope_type": "split"}
    if later:
        sizes |= {"apply_gated_attention": True, "cross_attention_adaln": True, "caption_proj_before_connector": True}
        sizes |= {"caption_projection_first_linear": False, "caption_projection_second_linear": False}
        sizes |= {"connector_apply_gated_attention": True, "connector_num_layers": 8}
        sizes |= {"connector_num_attention_heads": 32, "connector_attention_head_dim": 128}
        sizes |= {"audio_connector_num_attention_heads": 32, "audio_connector_attention_head_dim": 64}
    return shapes_of(lambda: LTXAVModel(**sizes, **how()))


def video_vae(later: bool) -> Shapes:
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    def blocks(names: tuple[tuple[str, int], ...], residual: bool) -> list[Any]:
        plain = {"residual": True} if residual else {}
        return [
            (name, {"num_layers": number} if name == "res_x" else {"multiplier": number, **plain})
            for name, number in names
        ]

    config = {"dims": 3, "latent_channels": 128, "norm_layer": "pixel_norm", "patch_size": 4}
    config |= {"latent_log_var": "uniform", "causal_decoder": False}
    config |= {"encoder_blocks": blocks(ENCODER_23 if later else ENCODER, False)}
    config |= {"decoder_blocks": blocks(DECODER_23 if later else DECODER, not later)}
    return shapes_of(lambda: VideoVAE(config=config))


def sound(later: bool) -> Shapes:
    from comfy.ldm.lightricks.vae.causal_audio_autoencoder import CausalAudioAutoencoder
    from comfy.ldm.lightricks.vocoders.vocoder import Vocoder, VocoderWithBWE

    sizes: dict[str, Any] = {"ch": 128, "ch_mult": [1, 2, 4], "num_res_blocks": 2, "z_channels": 8, "double_z": True}
    sizes |= {"mel_bins": 64, "norm_type": "pixel", "causality_axis": "height", "attn_resolutions": []}
    sizes |= {"in_channels": 2, "out_ch": 2, "resolution": 256, "dropout": 0.0, "mid_block_add_attention": False}
    params = {"sampling_rate": 16000, "ddconfig": sizes}
    found = shapes_of(lambda: CausalAudioAutoencoder(config={"model": {"params": params}}))
    first = {"upsample_rates": [6, 5, 2, 2, 2], "upsample_kernel_sizes": [16, 15, 8, 4, 4]}
    first |= {"upsample_initial_channel": 1024, "resblock": "1"}
    made: Callable[[], Any] = lambda: Vocoder(config=first)
    if later:
        how_it_sounds = {"resblock": "AMP1", "activation": "snakebeta", "use_bias_at_final": False}
        low = {"upsample_rates": [5, 2, 2, 2, 2, 2], "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4]}
        high = {"upsample_rates": [6, 5, 2, 2, 2], "upsample_kernel_sizes": [12, 11, 4, 4, 4]}
        high |= {"input_sampling_rate": 16000, "output_sampling_rate": 48000, "hop_length": 80}
        config = {
            "vocoder": {**how_it_sounds, **low, "upsample_initial_channel": 1536},
            "bwe": {**how_it_sounds, **high, "upsample_initial_channel": 512, "n_fft": 512, "num_mels": 64},
        }
        made = lambda: VocoderWithBWE(config=config)
    return {f"audio_vae.{key}": shape for key, shape in found.items()} | {
        f"vocoder.{key}": shape for key, shape in shapes_of(made).items()
    }


def text() -> Shapes:
    from comfy.text_encoders.llama import Gemma3_12B

    return shapes_of(lambda: Gemma3_12B({}, **how()))


def projection(later: bool) -> Shapes:
    states, name = 3840 * 49, "text_embedding_projection."
    if not later:
        return {f"{name}aggregate_embed.weight": (3840, states)}
    sizes = {"video": 4096, "audio": 2048}
    return {f"{name}{side}_aggregate_embed.weight": (size, states) for side, size in sizes.items()} | {
        f"{name}{side}_aggregate_embed.bias": (size,) for side, size in sizes.items()
    }


@pytest.mark.parametrize("later", [False, True])
def test_ltx2_is_recognised_and_built(core: Any, tmp_path: Path, later: bool) -> None:
    """LTX-2 as files of each component, LTX-2.3 as one with all but the text encoder, as both are published."""
    pytest.importorskip("comfy.ldm.lightricks.av_model")
    if later and not hasattr(importlib.import_module("comfy.ldm.lightricks.vocoders.vocoder"), "VocoderWithBWE"):
        pytest.skip("this ComfyUI has no LTX-2.3")
    from fastdiffusers.pipelines.loading import loader
    from fastdiffusers.pipelines.loading.parts import plan

    own = {"model": model(later), "text": text(), "projection": projection(later)}
    own |= {"vae": video_vae(later), "audio": sound(later)}
    if later:
        inner = {f"model.diffusion_model.{key}": shape for key, shape in own["model"].items()}
        vae = {f"vae.{key}": shape for key, shape in own.pop("vae").items()}
        own["model"] = {**inner, **own.pop("projection"), **vae, **own.pop("audio")}
    name = {"model": "ltx-2.3-22b-distilled" if later else "ltx-2-19b-dev"}
    paths = {key: tmp_path / f"{name.get(key, key)}.safetensors" for key in own}
    for key, path in paths.items():
        write_header(path, own[key])
    texts = [str(paths[key]) for key in ("text", "projection") if key in paths]
    more = {"vae": str(paths.get("vae", "")), "audio_vae": str(paths.get("audio", ""))}
    key = loader.resolve(str(paths["model"]), in_parts=True, device="cpu", text_encoders=texts, **more)
    slots = ["transformer", "connectors", "text_encoder", "text_projection", "vae", "audio_vae", "vocoder"]
    assert [slot for slot, _ in key.parts] == [slot for slot in slots if slot != "text_projection" or not later]
    assert loader.family_of_key(key).name == "ltx2-t2v"
    assert plan.family_of_part(paths["model"]).title == ("LTX-2.3 distilled" if later else "LTX-2")


@pytest.mark.core_has("comfy/ldm/minimax/model.py")
def test_minimax_h3_is_recognised_and_built(core: Any, tmp_path: Path) -> None:
    from comfy.ldm.minimax import model as networks

    from fastdiffusers.pipelines.loading import loader
    from fastdiffusers.pipelines.loading.parts import plan

    shapes = shapes_of(lambda: networks.MiniMaxH3Model(**how()))
    write_header(tmp_path / "model.safetensors", shapes)
    key = loader.resolve(str(tmp_path / "model.safetensors"), in_parts=True, device="cpu")
    assert loader.family_of_key(key).name == "minimax-h3"
    assert plan.left_out(key.parts) == ["text_encoder", "vae", "audio_vae"]


@pytest.mark.core_has("comfy/text_encoders/qwen3vl.py")
@pytest.mark.parametrize(("kind", "title"), [("qwen3vl_4b", "FLUX.3"), ("qwen3vl_8b", "Qwen-Image-2.1")])
def test_qwen3_vl_is_recognised_and_built(core: Any, tmp_path: Path, kind: str, title: str) -> None:
    from comfy.text_encoders import qwen3vl as encoders

    from fastdiffusers.pipelines.loading.parts import TEXT_ENCODER, kind_of_part
    from fastdiffusers.pipelines.loading.parts.fit import problem_of
    from fastdiffusers.pipelines.loading.parts.models import FAMILIES

    path = tmp_path / f"{kind}.safetensors"
    write_header(path, shapes_of(lambda: encoders._make_qwen3vl_model(kind)({}, **how())))
    assert kind_of_part(path) == TEXT_ENCODER
    family = next(family for family in FAMILIES if family.title == title)
    assert problem_of(family, "text_encoder", path, tmp_path / "model.safetensors", "text_encoder") == ""
    other = next(family for family in FAMILIES if family.title == {"FLUX.3": "Qwen-Image-2.1"}.get(title, "FLUX.3"))
    assert problem_of(other, "text_encoder", path, tmp_path / "model.safetensors", "text_encoder") != ""
