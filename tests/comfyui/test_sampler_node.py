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
    start = len(server.server.log())
    second = server.report(server.succeed(prompt_for(server, "sdxl", seed=22, attention="auto", vae_tiling="on")))
    assert "load seconds" in first["facts"]
    assert second["facts"]["load seconds"] == first["facts"]["load seconds"], "a hot setting loads nothing"
    assert "Loading" not in server.server.log()[start:]
