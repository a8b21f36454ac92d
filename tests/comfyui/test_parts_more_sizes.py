"""More models in parts at their published sizes: names and shapes from ComfyUI's own networks, built without memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_checkpoints_offline import SIZES
from test_parts_node import FLUX, write_header
from test_parts_sizes import Shapes, flux_vae, how, shapes_of, wan, wan_vae

from fastdiffusers.scripts.comfyui_server import find_comfyui

Files = dict[str, Shapes]


def settings(file: str) -> dict[str, Any]:
    import comfy

    return dict(json.loads((Path(comfy.__path__[0]) / file).read_text()))


def clip(file: str, projected: bool) -> Shapes:
    """The file of ComfyUI's users has the projection of CLIP-G, and none of CLIP-L."""
    import comfy.clip_model

    found = shapes_of(lambda: comfy.clip_model.CLIPTextModel(settings(file), **how()))
    return {key: shape for key, shape in found.items() if projected or key != "text_projection.weight"}


def t5() -> Shapes:
    from comfy.text_encoders.t5 import T5

    return shapes_of(lambda: T5(settings("text_encoders/t5_config_xxl.json"), **how()))


def sdxl_vae() -> Shapes:
    from comfy.ldm.modules.diffusionmodules.model import Decoder, Encoder

    vae = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    vae |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    found = {
        f"{half}.{key}": shape
        for half, network in {"encoder": Encoder, "decoder": Decoder}.items()
        for key, shape in shapes_of(lambda network=network: network(**vae)).items()
    }
    convolutions = {"quant_conv": (8, 8), "post_quant_conv": (4, 4)}
    found |= {f"{name}.weight": (*sizes, 1, 1) for name, sizes in convolutions.items()}
    return found | {f"{name}.bias": sizes[:1] for name, sizes in convolutions.items()}


def flux_fill() -> Files:
    from comfy.ldm.flux.model import Flux

    model = shapes_of(lambda: Flux(**{**FLUX, "in_channels": 96}, guidance_embed=True, **how()))
    return {
        "model": {key.replace("_norm.weight", "_norm.scale"): shape for key, shape in model.items()},
        "text": clip("sd1_clip_config.json", False),
        "text_2": t5(),
        "vae": flux_vae(),
    }


def chroma() -> Files:
    from comfy.ldm.chroma.model import Chroma

    sizes: dict[str, Any] = {**FLUX, "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "in_dim": 64}
    sizes |= {"out_dim": 3072, "hidden_dim": 5120, "n_layers": 5}
    return {"model": shapes_of(lambda: Chroma(**sizes, **how())), "text": t5(), "vae": flux_vae()}


def sdxl() -> Files:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    sizes: dict[str, Any] = {
        name: value.copy() if isinstance(value, list) else value for name, value in SIZES["xl_base"].items()
    }
    sizes |= {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320}
    return {
        "model": shapes_of(lambda: UNetModel(**sizes, use_spatial_transformer=True, **how())),
        "text": clip("sd1_clip_config.json", False),
        "text_2": clip("clip_config_bigg.json", True),
        "vae": sdxl_vae(),
    }


def sd3(depth: int, patches: int, twice: int, norm: str | None = "rms") -> Files:
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    linear = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}}
    sizes: dict[str, Any] = {"input_size": None, "in_channels": 16, "depth": depth, "adm_in_channels": 2048}
    sizes |= {"context_embedder_config": linear, "num_patches": patches**2, "pos_embed_max_size": patches}
    sizes |= {"qk_norm": norm, "x_block_self_attn_layers": list(range(twice))}
    return {
        "model": {**shapes_of(lambda: MMDiT(**sizes, **how())), "pos_embed": (1, patches**2, 64 * depth)},
        "text": clip("sd1_clip_config.json", False),
        "text_2": clip("clip_config_bigg.json", True),
        "text_3": t5(),
        "vae": flux_vae(),
    }


def wan21_i2v() -> Files:
    from comfy.clip_model import CLIPVisionModelProjection
    from comfy.ldm.wan.model import WanModel

    sizes = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "in_dim": 36, "model_type": "i2v"}
    pictures = shapes_of(lambda: CLIPVisionModelProjection(settings("clip_vision_config_h.json"), **how()))
    return {
        "model": shapes_of(lambda: WanModel(**sizes, **how())),
        "text": wan(1536, 8960, 12, 1, 16)["text"],
        "text_of_pictures": pictures,
        "vae": wan_vae(),
    }


def wan22_5b() -> Files:
    import comfy.ldm.wan.vae2_2
    from comfy.ldm.wan.model import WanModel

    sizes = {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30, "in_dim": 48, "out_dim": 48}
    vae = {"dim": 160, "z_dim": 48, "temperal_downsample": [False, True, True]}
    return {
        "model": shapes_of(lambda: WanModel(**sizes, **how())),
        "text": wan(1536, 8960, 12, 1, 16)["text"],
        "vae": shapes_of(lambda: comfy.ldm.wan.vae2_2.WanVAE(**vae)),
    }


def krea2() -> Files:
    from comfy.ldm.krea2.model import SingleStreamDiT
    from comfy.text_encoders.qwen3vl import _make_qwen3vl_model

    text = shapes_of(lambda: _make_qwen3vl_model("qwen3vl_4b")({}, **how()))
    whole = {"visual.": "model.visual.", "model.": "model.language_model."}  # as in its file
    named = {
        key: next(new + key.removeprefix(old) for old, new in whole.items() if key.startswith(old)) for key in text
    }
    return {
        "model": shapes_of(lambda: SingleStreamDiT(**how())),
        "text": {named[key]: shape for key, shape in text.items()},
        "vae": wan_vae(),
    }


PUBLISHED: dict[str, tuple[Callable[[], Files], str, str]] = {
    "flux1-fill-dev": (flux_fill, "FLUX.1 Fill", "FluxFillPipeline"),
    "Chroma1-HD": (chroma, "Chroma", "ChromaPipeline"),
    "sd_xl_base_1.0": (sdxl, "SDXL", "sdxl"),
    "sd3.5_medium": (lambda: sd3(24, 384, 13), "Stable Diffusion 3", "sd3"),
    "sd3.5_large": (lambda: sd3(38, 192, 0), "Stable Diffusion 3", "sd3"),
    "sd3_medium": (lambda: sd3(24, 192, 0, None), "Stable Diffusion 3", "sd3"),
    "wan2.1_i2v_480p_14B_fp8_scaled": (wan21_i2v, "Wan 2.1 (image", "wan-i2v"),
    "krea2_turbo": (krea2, "Krea 2 turbo", "Krea2Pipeline"),
    "krea2": (krea2, "Krea 2", "Krea2Pipeline"),
    "wan2.2_ti2v_5B_fp16": (wan22_5b, "Wan 2.2 5B", "wan-t2v"),
}
COMFYUI = find_comfyui()
HERE = [
    name for name in PUBLISHED if not name.startswith("krea2") or (COMFYUI and (COMFYUI / "comfy/ldm/krea2").is_dir())
]
"""Those that the ComfyUI at hand has a class of: older ones have none of Krea 2."""
NOT_READ = ("text_projection.weight", "visual_projection.weight", "norm_final.weight")
"""Ends of what a file may hold besides: of CLIP-L, of CLIP-H, and of Wan 2.1's first release."""


@pytest.mark.parametrize("file", HERE)
def test_the_published_sizes_are_recognised_and_built(core: Any, tmp_path: Path, file: str) -> None:
    from fastdiffusers.pipelines.loading import loader
    from fastdiffusers.pipelines.loading.parts import choose_text_encoders, choose_vae, kind_of_part, plan
    from fastdiffusers.pipelines.loading.parts.header import read_part

    build, title, family_name = PUBLISHED[file]
    shapes = build()
    paths = {name: tmp_path / f"{file if name == 'model' else name}.safetensors" for name in shapes}
    for name, path in paths.items():
        write_header(path, shapes[name])
    texts = [path for name, path in paths.items() if name.startswith("text")]
    kinds = ["diffusion model", *["text encoder"] * len(texts), "VAE"]
    assert [kind_of_part(path) for path in paths.values()] == kinds
    family = plan.family_of_part(paths["model"])
    assert family.title.startswith(title)
    assert sorted(choose_text_encoders(paths["model"], [], [*paths.values()])) == sorted(texts)
    assert choose_vae(paths["model"], [*paths.values()]) == paths["vae"]
    given = {"text_encoders": [str(path) for path in texts], "vae": str(paths["vae"]), "device": "cpu"}
    key = loader.resolve(str(paths["model"]), in_parts=True, **given)
    assert loader.family_of_key(key).name == family_name
    named = {str(path): name for name, path in paths.items()}
    for slot, path in key.parts:
        component = family.components[slot]
        built = plan.empty_network(component, component.config(read_part(Path(path), "file").shapes))
        held = {key: value for key, value in built.state_dict().items() if key != "encoder.embed_tokens.weight"}
        if family_name == "sd3" and slot == "text_encoder":
            held.pop("text_projection.weight")
        unread = () if slot == "text_encoder_2" else NOT_READ
        of_file = {key: shape for key, shape in shapes[named[path]].items() if not key.endswith(unread or ("\0",))}
        count = sum(value.numel() for value in held.values())
        assert count == sum(int(np.prod(shape, dtype=np.int64)) for shape in of_file.values()), slot


def test_the_latents_are_those_of_comfyui(core: Any) -> None:
    import comfy.latent_formats

    from fastdiffusers.pipelines.loading.parts import vaes, wan22_vae

    theirs = comfy.latent_formats.Wan22()
    ours = wan22_vae.WAN22_VAE
    np.testing.assert_allclose(ours["latents_mean"], theirs.latents_mean.flatten().tolist(), rtol=1e-6)
    np.testing.assert_allclose(ours["latents_std"], theirs.latents_std.flatten().tolist(), rtol=1e-6)
    assert ours["z_dim"] == theirs.latent_channels
    sd3_latents = comfy.latent_formats.SD3()
    numbers = (vaes.SD3_VAE["scaling_factor"], vaes.SD3_VAE["shift_factor"])
    assert numbers == (sd3_latents.scale_factor, sd3_latents.shift_factor)
    assert vaes.SDXL_COMPONENT.config({})["scaling_factor"] == comfy.latent_formats.SDXL().scale_factor


def test_chroma_is_sampled_as_in_comfyuis_own_workflow(core: Any) -> None:
    """Its node goes before the default that ComfyUI has for the model."""
    import comfy.model_sampling
    from diffusers import FlowMatchEulerDiscreteScheduler

    from fastdiffusers.pipelines.loading.parts.models import chroma as parts

    found = [*Path(comfy.__path__[0]).parents, *map(Path, sys.path)]
    places = [file for place in found for file in place.glob("comfyui_workflow_templates_*/templates/image_chroma_t*")]
    if not places:
        pytest.skip("this ComfyUI came without its workflows")
    nodes = json.loads(next(file for file in places if file.suffix == ".json").read_text(encoding="utf-8"))["nodes"]
    (shift,) = next(node["widgets_values"] for node in nodes if node["type"] == "ModelSamplingAuraFlow")
    theirs = comfy.model_sampling.ModelSamplingDiscreteFlow()
    theirs.set_parameters(shift=shift, multiplier=1.0)
    kind, config = parts.FAMILIES[0].scheduler
    assert kind == "FlowMatchEulerDiscreteScheduler"
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    given = np.linspace(1.0, 1 / 8, 8)
    scheduler.set_timesteps(sigmas=given, mu=1.15)
    expected = theirs.sigma(torch.tensor(given))
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("ours", "file"),
    [
        ("CLIP_L", "sd1_clip_config.json"),
        ("CLIP_G", "clip_config_bigg.json"),
        ("CLIP_H_VISION", "clip_vision_config_h.json"),
    ],
)
def test_the_clips_are_those_of_comfyui(core: Any, ours: str, file: str) -> None:
    from fastdiffusers.pipelines.loading.parts import clips

    config, theirs = getattr(clips, ours), settings(file)
    shared = config.keys() & theirs.keys() - {"eos_token_id"}
    assert len(shared) >= 8
    assert {key: config[key] for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_the_tokens_are_those_of_comfyui(core: Any, comfyui: Path, tmp_path: Path, family: str) -> None:
    """CLIP-G is padded with another token than CLIP-L."""
    from comfy.sdxl_clip import SDXLTokenizer
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    from fastdiffusers.pipelines.loading.parts import clips
    from fastdiffusers.pipelines.loading.parts.read import read_tokenizer

    theirs = SDXLTokenizer() if family == "sdxl" else SD3Tokenizer()
    for key, tokenizer in (("l", clips.CLIP_TOKENIZER), ("g", clips.CLIP_G_TOKENIZER)):
        own = read_tokenizer("tokenizer", tokenizer, tmp_path / "none.safetensors", str(comfyui), {})
        for text in ("A red fox, 2 foxes.", "snow   and  Ice", ""):
            expected = [token[0] for token in theirs.tokenize_with_weights(text)[key][0]]
            assert own(text, padding="max_length", truncation=True).input_ids == expected, (key, text)
