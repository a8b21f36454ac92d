"""A model that makes sound, in a running ComfyUI: core's Save Video and Create Video get what the pipeline made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiffusers.pipelines import tiny

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfy_client import Client

pytest.importorskip("diffusers.pipelines.ltx2", reason="this release of diffusers has no LTX-2")

TINY = "embedded tiny: "
PLAIN = {"attention": "sdpa", "torch_compile": "off", "vae_tiling": "off", "step_cache": "off"}
SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 5, "num_frames": 17}
FRAMES, RATE = 17, 24_000
BLOCK = 1024
"""Samples that AAC packs together: what is read back is whole blocks of it."""


@dataclass
class File:
    """What was read back. `sound` is [channels, samples] at `sample_rate` Hz, or None without a sound track."""

    frames: np.ndarray
    frame_rate: float
    sound: torch.Tensor | None
    sample_rate: int


def read(client: Client, entry: Mapping[str, Any], node: str) -> File:
    import av

    saved = entry["outputs"][node]["images"][0]
    frames, frame_rate, sound, sample_rate = np.empty(0), 0.0, None, 0
    with av.open(str(client.base / saved["type"] / saved["subfolder"] / saved["filename"])) as container:
        if container.streams.video:
            frame_rate = float(container.streams.video[0].average_rate)
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            container.seek(0)
        if container.streams.audio:
            sample_rate = container.streams.audio[0].rate
            blocks = [torch.from_numpy(block.to_ndarray()) for block in container.decode(audio=0)]
            sound = torch.cat(blocks, dim=1)
    return File(frames, frame_rate, sound, sample_rate)


def bare(client: Client, family: str, batch: int = 1) -> tuple[np.ndarray, torch.Tensor]:
    """What diffusers itself gives: uint8 frames [B * T, H, W, 3], as PNG holds them, and the sound [B, 2, samples]."""
    torch.set_num_threads(1)
    arguments: dict[str, Any] = {"num_videos_per_prompt": batch, "spatio_temporal_guidance_blocks": [1]}
    if family == "ltx2-i2v":
        picture = Image.open(client.base / "input" / "gradient.png").convert("RGB")
        arguments |= {"image": picture, "use_cross_timestep": False}
    output = tiny.build(family)(
        prompt="a cat",
        width=64,
        height=64,
        num_frames=FRAMES,
        num_inference_steps=2,
        generator=[torch.Generator("cpu").manual_seed(5 + index) for index in range(batch)],
        output_type="pt",
        **arguments,
    )
    frames = output.frames.flatten(0, 1).permute(0, 2, 3, 1)
    return (frames.numpy() * 255).clip(0, 255).astype(np.uint8), output.audio


def prompt_for(client: Client, family: str, **widgets: Any) -> dict[str, Any]:
    prompt = client.sampling(TINY + family, **{**PLAIN, **SMALL, **widgets})
    prompt["video"] = client.node("SaveVideo", video=["sample", 4], filename_prefix="sound")
    prompt["join"] = client.node("CreateVideo", images=["sample", 0], audio=["sample", 5], fps=24.0)
    prompt["joined"] = client.node("SaveVideo", video=["join", 0], filename_prefix="joined")
    if family.endswith("i2v"):
        prompt["picture"] = client.node("LoadImage", image="gradient.png")
        prompt["sample"]["inputs"]["images.image_1"] = ["picture", 0]
    return prompt


def likeness(made: torch.Tensor, heard: torch.Tensor) -> float:
    """Correlation of two waveforms [channels, samples] over what they share: 1 for the same, about 0 for others."""
    length = min(made.shape[1], heard.shape[1])
    return float(torch.corrcoef(torch.stack([made[:, :length].flatten(), heard[:, :length].flatten()]))[0, 1])


@pytest.mark.parametrize("family", tiny.TINY_SOUND_FAMILIES)
def test_save_video_writes_the_frames_with_their_sound(server: Client, family: str) -> None:
    entry = server.succeed(prompt_for(server, family))
    frames, waveform = bare(server, family)
    assert np.array_equal(server.images(entry), frames)
    assert tuple(server.latent(entry).shape) == (1, 128, 3, 2, 2)

    saved = read(server, entry, "video")
    assert saved.frames.shape == (FRAMES, 64, 64, 3)
    assert saved.frame_rate == 24.0
    assert saved.sample_rate == RATE
    assert saved.sound is not None
    assert saved.sound.shape[0] == 2
    assert saved.sound.shape[1] == pytest.approx(FRAMES / 24 * RATE, abs=2 * BLOCK)
    assert likeness(waveform[0], saved.sound) > 0.5

    joined = read(server, entry, "joined")
    assert joined.sample_rate == RATE
    assert joined.sound is not None
    assert likeness(waveform[0], joined.sound) > 0.5
    assert str(RATE) in server.report(entry)["facts"]["sound"]


def test_a_batch_is_one_video_with_the_sounds_in_a_row(server: Client) -> None:
    entry = server.succeed(prompt_for(server, "ltx2-t2v", batch_size=2, frame_rate=12.0))
    saved = read(server, entry, "video")
    assert saved.frames.shape[0] == 2 * FRAMES
    assert saved.frame_rate == 12.0
    assert saved.sound is not None
    each = round(FRAMES / 12 * RATE)
    assert saved.sound.shape[1] == pytest.approx(2 * each, abs=2 * BLOCK)
    alone = read(server, server.succeed(prompt_for(server, "ltx2-t2v", seed=6, frame_rate=12.0)), "video")
    assert alone.sound is not None
    second = saved.sound[:, each:]
    assert likeness(alone.sound, second) > 0.5
    assert abs(likeness(alone.sound, saved.sound)) < 0.5, "the first sound is another one"


def test_a_model_without_sound_gives_a_silent_video_and_blocks_the_audio(server: Client) -> None:
    entry = server.run(prompt_for(server, "wan22-t2v", num_frames=5))
    saved = read(server, entry, "video")
    assert saved.frames.shape[0] == 5
    assert saved.frame_rate == 16.0
    assert saved.sound is None
    assert "joined" not in entry["outputs"], "what wants the sound is stopped, the rest is not"
    assert server.images(entry).shape[0] == 5


def test_decode_off_passes_the_sound_but_no_video(server: Client) -> None:
    prompt = prompt_for(server, "ltx2-t2v", decode=False)
    prompt["decoded"] = server.node("FastDiffusersVAEDecode", samples=["sample", 1], vae=["load", 0], tiling="whole")
    prompt["frames"] = server.node("SaveImage", images=["decoded", 0], filename_prefix="decoded")
    prompt["join"]["inputs"]["images"] = ["decoded", 0]
    entry = server.run(prompt)
    frames, waveform = bare(server, "ltx2-t2v")
    assert np.array_equal(server.images(entry, "frames"), frames)
    assert "video" not in entry["outputs"]
    saved = read(server, entry, "joined")
    assert saved.frames.shape[0] == FRAMES
    assert saved.sound is not None
    assert likeness(waveform[0], saved.sound) > 0.5
