"""Models in parts at their published sizes: names and shapes from ComfyUI's own networks, built without memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_parts_node import write_header

from fastdiffusers.scripts.comfyui_server import find_comfyui

Shapes = dict[str, tuple[int, ...]]


def shapes_of(build: Callable[[], torch.nn.Module]) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build().state_dict().items()}


def how() -> dict[str, Any]:
    import comfy.ops

    return {"dtype": torch.bfloat16, "device": "meta", "operations": comfy.ops.disable_weight_init}


def flux_vae() -> Shapes:
    from comfy.ldm.modules.diffusionmodules.model import Decoder, Encoder

    vae = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    vae |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    halves = {"encoder": Encoder, "decoder": Decoder}
    return {
        f"{half}.{key}": shape
        for half, network in halves.items()
        for key, shape in shapes_of(lambda network=network: network(**vae)).items()
    }


def wan_vae() -> Shapes:
    from comfy.ldm.wan.vae import WanVAE

    return shapes_of(lambda: WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True]))


def zimage() -> dict[str, Shapes]:
    from comfy.ldm.lumina.model import NextDiT
    from comfy.text_encoders.llama import Qwen3_4B

    # What ComfyUI's own detection says of this width.
    sizes = {"dim": 3840, "n_heads": 30, "n_kv_heads": 30, "n_layers": 30, "cap_feat_dim": 2560, "in_channels": 16}
    more = {"qk_norm": True, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "z_image_modulation": True}
    more |= {"ffn_dim_multiplier": 8 / 3, "pad_tokens_multiple": 32, "time_scale": 1000.0, "rope_theta": 256.0}
    return {
        "model": shapes_of(lambda: NextDiT(**sizes, **more, **how())),
        "text": shapes_of(lambda: Qwen3_4B({}, **how())),
        "vae": flux_vae(),
    }


def qwenimage() -> dict[str, Shapes]:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
    from comfy.text_encoders.llama import Qwen25_7BVLI

    return {
        "model": shapes_of(lambda: QwenImageTransformer2DModel(**how())),
        "text": shapes_of(lambda: Qwen25_7BVLI({}, **how())),
        "vae": wan_vae(),
    }


def flux2_vae() -> Shapes:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    vae = {"double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    vae |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    found = shapes_of(lambda: AutoencoderKL(ddconfig={**vae, "batch_norm_latent": True}, embed_dim=32))
    inside = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}  # as in its file
    named = {key: key.split(".", 1) for key in found}
    return {f"{inside.get(first, first)}.{rest}": found[key] for key, (first, rest) in named.items()}


def klein(width: int, heads: int, double: int, single: int, text: str) -> dict[str, Shapes]:
    from comfy.ldm.flux.model import Flux
    from comfy.text_encoders import llama

    sizes: dict[str, Any] = {"hidden_size": width, "num_heads": heads, "depth": double, "depth_single_blocks": single}
    encoder = shapes_of(lambda: getattr(llama, text)({}, **how()))
    # What ComfyUI's own detection says of these tensors.
    sizes |= {"in_channels": 128, "out_channels": 128, "patch_size": 1, "axes_dim": [32, 32, 32, 32], "theta": 2000}
    sizes |= {"context_in_dim": 3 * encoder["model.norm.weight"][0], "vec_in_dim": None, "mlp_ratio": 3.0}
    sizes |= {"qkv_bias": False, "ops_bias": False, "guidance_embed": False, "global_modulation": True}
    sizes |= {"mlp_silu_act": True, "txt_ids_dims": [3]}
    model = shapes_of(lambda: Flux(**sizes, **how()))
    return {
        "model": {key.replace("_norm.weight", "_norm.scale"): shape for key, shape in model.items()},
        "text": encoder,
        "vae": flux2_vae(),
    }


def wan(dim: int, ffn: int, heads: int, layers: int, channels: int) -> dict[str, Shapes]:
    import comfy.text_encoders.wan as core_wan
    from comfy.ldm.wan.model import WanModel
    from comfy.text_encoders.t5 import T5

    config = json.loads(Path(core_wan.__file__).with_name("umt5_config_xxl.json").read_text())
    sizes = {"dim": dim, "ffn_dim": ffn, "num_heads": heads, "num_layers": layers, "in_dim": channels}
    return {
        "model": shapes_of(lambda: WanModel(**sizes, **how())),
        "text": shapes_of(lambda: T5(config, **how())),
        "vae": wan_vae(),
    }


PUBLISHED: dict[str, tuple[Callable[[], dict[str, Shapes]], str, str]] = {
    "z_image_turbo_bf16": (zimage, "Z-Image", "zimage"),
    "qwen_image_fp8_e4m3fn": (qwenimage, "Qwen-Image", "qwenimage"),
    "qwen_image_edit_2509_fp8_e4m3fn": (qwenimage, "Qwen-Image-Edit-2509", "qwenimage-edit-plus"),
    "flux-2-klein-4b": (lambda: klein(3072, 24, 5, 20, "Qwen3_4B"), "FLUX.2-klein 4B", "flux2-klein"),
    "flux-2-klein-base-9b": (lambda: klein(4096, 32, 8, 24, "Qwen3_8B"), "FLUX.2-klein 9B base", "flux2-klein"),
    "wan2.1_t2v_1.3B_fp16": (lambda: wan(1536, 8960, 12, 30, 16), "Wan 2.1", "wan-t2v"),
    "wan2.2_t2v_high_noise_14B_fp8_scaled": (lambda: wan(5120, 13824, 40, 40, 16), "Wan 2.1 or 2.2", "wan-t2v"),
    "wan2.2_i2v_high_noise_14B_fp8_scaled": (lambda: wan(5120, 13824, 40, 40, 36), "Wan 2.2 (image", "wan-i2v"),
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_the_published_sizes_are_recognised_and_built(core: Any, tmp_path: Path, file: str) -> None:
    from fastdiffusers.pipelines.loading import loader
    from fastdiffusers.pipelines.loading.parts import choose_second_expert, kind_of_part, plan
    from fastdiffusers.pipelines.loading.parts.header import read_part

    build, title, family_name = PUBLISHED[file]
    shapes = build()
    paths = {"model": tmp_path / f"{file}.safetensors"}
    paths |= {name: tmp_path / f"{name}.safetensors" for name in ("text", "vae")}
    for name, path in paths.items():
        write_header(path, shapes[name])
    second = None
    if "high_noise" in file:
        second = tmp_path / f"{file.replace('high', 'low')}.safetensors"
        write_header(second, shapes["model"])
        assert choose_second_expert(paths["model"], [paths["vae"], second]) == second
    assert [kind_of_part(path) for path in paths.values()] == ["diffusion model", "text encoder", "VAE"]
    family = plan.family_of_part(paths["model"])
    assert family.title.startswith(title)
    key = loader.resolve(
        str(paths["model"]),
        in_parts=True,
        text_encoders=[str(paths["text"])],
        vae=str(paths["vae"]),
        second_expert=str(second or ""),
        device="cpu",
    )
    assert loader.family_of_key(key).name == family_name
    for slot, name in ((family.diffusion_model, "model"), ("text_encoder", "text"), ("vae", "vae")):
        component = family.components[slot]
        built = plan.empty_network(component, component.config(read_part(paths[name], "file").shapes))
        tied = {"lm_head.weight"} if slot == "text_encoder" else set()
        count = sum(value.numel() for key, value in built.named_parameters() if key not in tied)
        file_count = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes[name].values())
        assert count == file_count - unused(slot, shapes[name]), slot


def unused(slot: str, shapes: Shapes) -> int:
    """Numbers in a file that the model does not use, or that are no parameters there: statistics of latents."""
    if slot == "vae":
        return sum(int(np.prod(shape, dtype=np.int64)) for key, shape in shapes.items() if key.startswith("bn."))
    if slot == "text_encoder":
        return sum(int(np.prod(shape)) for key, shape in shapes.items() if key.endswith("lm_head.weight"))
    return shapes["norm_final.weight"][0] if slot == "transformer" and "norm_final.weight" in shapes else 0


CONFIGURATIONS = {
    "QWEN3_4B": "Qwen3_4BConfig",
    "QWEN3_8B": "Qwen3_8BConfig",
    "QWEN25_VL_7B": "Qwen25_7BVLI_Config",
    "QWEN3_VL_4B": "Qwen3VL_4BConfig",
}
COMFYUI = find_comfyui()
LLAMA = (COMFYUI / "comfy/text_encoders/llama.py").read_text(encoding="utf-8") if COMFYUI else ""


@pytest.mark.parametrize("sizes", [sizes for sizes, theirs in CONFIGURATIONS.items() if f"class {theirs}" in LLAMA])
def test_the_configurations_are_those_of_comfyui(core: Any, sizes: str) -> None:
    from comfy.text_encoders import llama

    from fastdiffusers.pipelines.loading.parts import encoders

    ours = getattr(encoders, sizes)
    theirs: Any = getattr(llama, CONFIGURATIONS[sizes])()
    ours = ours.get("text_config", ours)
    shared = [name for name in ours if hasattr(theirs, name)]
    assert len(shared) >= 9
    assert {name: ours[name] for name in shared} == {name: getattr(theirs, name) for name in shared}
    if "rope_scaling" in ours:
        assert ours["rope_scaling"]["mrope_section"] == theirs.rope_dims


def test_the_latents_are_those_of_comfyui(core: Any) -> None:
    import comfy.latent_formats
    import diffusers

    theirs = comfy.latent_formats.Wan21()
    for name in ("AutoencoderKLWan", "AutoencoderKLQwenImage"):
        with torch.device("meta"):
            config = getattr(diffusers, name)().config
        np.testing.assert_allclose(config.latents_mean, theirs.latents_mean.flatten().tolist(), rtol=1e-6)
        np.testing.assert_allclose(config.latents_std, theirs.latents_std.flatten().tolist(), rtol=1e-6)


@pytest.mark.parametrize("family", ["zimage", "flux2-klein", "qwenimage"])
def test_the_tokens_are_those_of_comfyui(core: Any, comfyui: Path, tmp_path: Path, family: str) -> None:
    from comfy.text_encoders.flux import KleinTokenizer
    from comfy.text_encoders.qwen_image import QwenImageTokenizer
    from comfy.text_encoders.z_image import ZImageTokenizer

    from fastdiffusers.pipelines.loading.parts.encoders import QWEN_TOKENIZER
    from fastdiffusers.pipelines.loading.parts.read import read_tokenizer

    own = read_tokenizer("tokenizer", QWEN_TOKENIZER, tmp_path / "none.safetensors", str(comfyui), {})
    for text in ("A red fox, 2 foxes.", "snow   and  Ice", "\u00e9t\u00e9 \u65e5\u672c 100% #hash", "one\ntwo", ""):
        if family != "qwenimage":
            thinks = family == "zimage"
            tokenizer = ZImageTokenizer() if thinks else KleinTokenizer()
            theirs = tokenizer.tokenize_with_weights(text)["qwen3_4b"]
            message = [{"role": "user", "content": text}]
            options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": thinks}
            prompt = own.apply_chat_template(message, **options)
        else:
            theirs = QwenImageTokenizer().tokenize_with_weights(text)["qwen25_7b"]
            prompt = template_of_qwenimage().format(text)
        expected = [token[0] for chunk in theirs for token in chunk]
        padding = {"padding": "max_length", "max_length": 512} if family == "flux2-klein" else {}
        assert own(prompt, **padding).input_ids == expected, text
    padded = own(["a", "a b c"], padding=True)
    assert padded.input_ids[0][-1] == 151643, "padded with <|endoftext|>, as ComfyUI pads"


def template_of_qwenimage() -> str:
    """What diffusers puts a prompt of Qwen-Image into."""
    from fastdiffusers.pipelines import tiny

    return tiny.build("qwenimage").prompt_template_encode
