"""Masks and the like through the nodes of a running ComfyUI, on one cached pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from comfy_client import Client

TINY = "embedded tiny: "
SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 5, "torch_compile": "off", "attention": "sdpa"}


def graph(server: Client, family: str, nodes: dict[str, Any], *, picture: bool = False, **widgets: Any) -> Any:
    """The sampling graph with further nodes, of which "last" goes to `conditions`."""
    prompt = server.sampling(TINY + family, **SMALL, **widgets)
    prompt |= nodes
    if "last" in nodes:
        prompt["sample"]["inputs"]["conditions"] = ["last", 0]
    if picture:
        prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}}
        prompt["sample"]["inputs"]["images.image_1"] = ["picture", 0]
    return prompt


def mask(value: float, size: int = 64) -> dict[str, Any]:
    return {
        "solid": {"class_type": "SolidMask", "inputs": {"value": value, "width": size, "height": size}},
        "last": {"class_type": "FastDiffusersMaskCondition", "inputs": {"mask": ["solid", 0]}},
    }


def notes(server: Client, entry: dict[str, Any]) -> list[str]:
    return server.report(entry)["notes"]


def test_a_mask_of_zeros_keeps_the_picture_and_one_of_ones_is_none(server: Client) -> None:
    plain = server.images(server.succeed(graph(server, "flux", {})))
    ones = server.images(server.succeed(graph(server, "flux", mask(1.0), picture=True)))
    assert np.array_equal(plain, ones)
    zeros = server.images(server.succeed(graph(server, "flux", mask(0.0), picture=True)))
    again = server.images(server.succeed(graph(server, "flux", mask(0.0), picture=True, prompt="something else")))
    assert np.array_equal(zeros, again), "nothing of the prompt is in what is kept"
    assert not np.array_equal(zeros, plain)


def test_a_mask_of_another_size_is_scaled_and_it_is_said(server: Client) -> None:
    entry = server.succeed(graph(server, "sdxl", mask(0.5, 32), picture=True))
    assert any("scaled from 32x32 to the picture's 64x64" in note for note in notes(server, entry))


def test_a_noise_mask_of_core_is_kept_to(server: Client) -> None:
    """VAE Encode (Fast), then core's Set Latent Noise Mask: a mask of zeros decodes to what was encoded."""
    nodes = {
        "picture": {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}},
        "encode": server.node("FastDiffusersVAEEncode", pixels=["picture", 0], pipeline=["load", 0]),
        "solid": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}},
        "masked": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["encode", 0], "mask": ["solid", 0]}},
        "decode": server.node("FastDiffusersVAEDecode", samples=["encode", 0], pipeline=["load", 0]),
        "shown": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "round"}},
    }
    prompt = graph(server, "zimage", nodes)
    prompt["sample"]["inputs"]["latent"] = ["masked", 0]
    entry = server.succeed(prompt)
    kept = server.images(entry)
    round_trip = server.images(entry, "shown")
    assert np.abs(kept.astype(int) - round_trip).max() <= 1


@pytest.mark.parametrize(
    ("family", "nodes", "words"),
    [
        ("flux", mask(0.5), "no picture for it to keep"),
        ("wan22-t2v", mask(0.5), "no clip to keep a part of"),
    ],
)
def test_bad_input_is_one_line_and_the_next_run_works(server: Client, family: str, nodes: Any, words: str) -> None:
    message = server.error(server.run(graph(server, family, nodes)))
    assert message["exception_type"].endswith("InputError")
    assert words in message["exception_message"]
    assert "\n" not in message["exception_message"].strip()
    server.succeed(graph(server, "flux", {}))
