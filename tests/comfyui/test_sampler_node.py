"""The loader and the sampler in a running ComfyUI, with the embedded tiny pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiffusers.pipelines import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from comfy_client import Client

TINY = "embedded tiny: "
PLAIN = {"attention": "sdpa", "torch_compile": "off", "vae_tiling": "off", "step_cache": "off"}
SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 5, "guidance": 2.0}
VIDEO = ("wan22-t2v", "wan22-i2v")
EDIT = ("flux-kontext", "qwenimage-edit", "wan22-i2v")
BARE: dict[str, dict[str, Any]] = {
    "flux": {"guidance_scale": 2.0},
    "flux-kontext": {"guidance_scale": 2.0, "_auto_resize": False, "max_area": 64 * 64},
    "flux2-klein": {"guidance_scale": 2.0},
    "sdxl": {"guidance_scale": 2.0},
    "sd3": {"guidance_scale": 2.0},
    "qwenimage": {"true_cfg_scale": 2.0, "negative_prompt": " "},
    "qwenimage-edit": {"true_cfg_scale": 2.0, "negative_prompt": " "},
    "zimage": {"guidance_scale": 2.0},
    "wan22-t2v": {"guidance_scale": 2.0, "guidance_scale_2": 2.0, "num_frames": 5},
    "wan22-i2v": {"guidance_scale": 2.0, "guidance_scale_2": 2.0, "num_frames": 5},
}
"""How a person calls each pipeline for the same picture, by what diffusers documents."""


def prompt_for(server: Client, family: str, **widgets: Any) -> dict[str, Any]:
    """The sampling graph of a family, with the input picture where the family edits one."""
    prompt = server.sampling(TINY + family, **{**PLAIN, **SMALL, **widgets})
    if family in VIDEO:
        prompt["sample"]["inputs"]["num_frames"] = 5
    if family in EDIT:
        prompt["picture"] = server.node("LoadImage", image="gradient.png")
        prompt["sample"]["inputs"]["images.image_1"] = ["picture", 0]
    return prompt


def bare_frames(family: str, picture: Path) -> np.ndarray:
    """What diffusers itself gives, as the uint8 [N, H, W, 3] that a PNG holds."""
    torch.set_num_threads(1)
    arguments = {"prompt": "a cat", "num_inference_steps": 2, "width": 64, "height": 64, **BARE[family]}
    if family in EDIT:
        arguments["image"] = Image.open(picture).convert("RGB")
    with torch.inference_mode():
        generator = torch.Generator("cpu").manual_seed(5)
        frames = tiny.build(family)(**arguments, generator=generator, output_type="pt")[0]
    frames = frames.flatten(0, 1) if frames.ndim == 5 else frames
    return (frames.permute(0, 2, 3, 1).float().numpy() * 255).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("family", tiny.TINY_FAMILIES)
def test_plain_run_equals_diffusers_bit_for_bit(server: Client, family: str) -> None:
    entry = server.succeed(prompt_for(server, family))
    pictures = server.images(entry)
    expected = bare_frames(family, server.base / "input" / "gradient.png")
    assert pictures.shape == expected.shape
    assert expected.std() > 1, "the tiny pipeline draws something"
    assert np.array_equal(pictures, expected)
    latent = server.latent(entry)
    assert latent.ndim == (5 if family in VIDEO or family.startswith("qwen") else 4)


@pytest.mark.parametrize("family", tiny.TINY_FAMILIES)
def test_default_widgets_run(server: Client, family: str) -> None:
    prompt = server.sampling(TINY + family)
    if family in EDIT:
        prompt["picture"] = server.node("LoadImage", image="gradient.png")
        prompt["sample"]["inputs"]["images.image_1"] = ["picture", 0]
    entry = server.succeed(prompt)
    assert server.images(entry).shape[0] == (9 if family in VIDEO else 1)


def test_second_prompt_uses_the_loaded_pipeline(server: Client) -> None:
    first = server.report(server.succeed(prompt_for(server, "sdxl", seed=21)))
    second = server.report(server.succeed(prompt_for(server, "sdxl", seed=22, attention="auto", vae_tiling="on")))
    other = server.report(server.succeed(prompt_for(server, "sd3")))
    again = server.report(server.succeed(prompt_for(server, "sdxl", seed=23)))
    loads = [report["facts"]["loaded_at"] for report in (first, second, other, again)]
    assert loads[0] == loads[1], "a hot setting loads nothing"
    assert loads[0] != loads[3], "a pipeline that no graph uses any more is let go"
    assert [report["facts"]["seeds"] for report in (first, second)] == [[21], [22]]


def test_decode_off_passes_the_latent_only(server: Client) -> None:
    prompt = server.sampling(TINY + "sdxl", **PLAIN, **SMALL, decode=False)
    prompt["decoded"] = server.node("FastDiffusersVAEDecode", samples=["sample", 1], vae=["load", 0], tiling="whole")
    prompt["save"] = server.node("SaveImage", images=["decoded", 0], filename_prefix="decoded")
    pictures = server.images(server.succeed(prompt))
    assert np.array_equal(pictures, bare_frames("sdxl", server.base / "input" / "gradient.png"))


def test_images_of_an_undecoded_run_stop_at_the_socket(server: Client) -> None:
    start = len(server.server.log())
    entry = server.run(server.sampling(TINY + "sdxl", **PLAIN, **SMALL, decode=False))
    assert "save" not in entry["outputs"], "nothing is handed on as if it were pictures"
    assert tuple(server.latent(entry).shape) == (1, 4, 8, 8)
    assert "Traceback" not in server.server.log()[start:]


def test_encode_and_decode_through_a_pipeline(server: Client) -> None:
    for family in ("sdxl", "wan22-t2v"):
        prompt = {
            "load": server.node("FastDiffusersLoadPipeline", model=TINY + family),
            "picture": server.node("LoadImage", image="gradient.png"),
            "clip": server.node("RepeatImageBatch", image=["picture", 0], amount=5),
            "encode": server.node("FastDiffusersVAEEncode", pixels=["clip", 0], vae=["load", 0]),
            "decode": server.node("FastDiffusersVAEDecode", samples=["encode", 0], vae=["load", 0]),
            "save": server.node("SaveImage", images=["decode", 0], filename_prefix="roundtrip"),
            "latent": server.node("SaveLatent", samples=["encode", 0], filename_prefix="roundtrip"),
        }
        entry = server.succeed(prompt)
        assert server.images(entry).shape == (5, 64, 64, 3)
        assert tuple(server.latent(entry).shape) == ((1, 16, 2, 8, 8) if family == "wan22-t2v" else (5, 4, 8, 8))


def test_compile_tiling_and_settings_nodes_work_together(server: Client) -> None:
    prompt = prompt_for(server, "flux", torch_compile="on", vae_tiling="on", attention="auto")
    prompt["compile"] = server.node("FastDiffusersTorchCompileSettings", backend="eager", headroom_gib=0.0)
    prompt["settings"] = server.node("FastDiffusersOptimizationSettings", vae_tile_size=64, vae_tile_overlap=16)
    prompt["sample"]["inputs"] |= {"compile_settings": ["compile", 0], "settings": ["settings", 0]}
    entry = server.succeed(prompt)
    records = {record["name"]: record for record in server.report(entry)["optimizations"]}
    assert "eager" in records["torch_compile"]["applied"]
    assert records["vae_tiling"]["applied"] != "off"
    expected = bare_frames("flux", server.base / "input" / "gradient.png")
    assert np.abs(server.images(entry).astype(int) - expected).max() <= 2
