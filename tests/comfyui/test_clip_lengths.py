"""Clips of any length through VAE Encode (Fast) and VAE Decode (Fast), also where ComfyUI's nodes changed the latent.

What a clip was filled up with is cut off again; frames of its own never are.
"""

from __future__ import annotations

import importlib
from typing import Any

import core_vaes
import pytest
import torch

from fastdiffusers.callbacks import SILENT

torch.set_num_threads(1)

KINDS = ["wan21-t2v", "ltx2-t2v", "minimax-h3", "Load Video VAE", "ComfyUI's Wan"]
FILLED = {"wan21-t2v": (6, 9), "ltx2-t2v": (6, 9), "minimax-h3": (24, 39), "Load Video VAE": (6, 9)}
"""Of each kind that fills up a length that its VAE does not take, and the one that it fills it up to."""


@pytest.fixture(scope="module")
def vaes(core: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from safetensors.torch import save_file

    from fastdiffusers.nodes import types, video_vae
    from fastdiffusers.pipelines.loading import loader
    from fastdiffusers.pipelines.types import PipelineHandle
    from fastdiffusers.vae import VaeConfig, VideoVAE

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(VideoVAE(VaeConfig(block_out_channels=(32, 32, 32, 32))).state_dict(), path)
    with torch.inference_mode():
        wan = core_vaes.small_wan(core_vaes.video_vae(core), "wan 2.1")
    return {
        "Load Video VAE": types.VideoVaeHandle(types.video_vae_file(str(path), video_vae.identity(path))),
        "ComfyUI's Wan": wan,
    } | {name: PipelineHandle(loader.resolve(f"tiny:{name}", device="cpu")) for name in KINDS[:3]}


def clip(length: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(length, 64, 64, 3, generator=torch.Generator().manual_seed(seed))


def encode(vae: Any, pixels: torch.Tensor) -> tuple[dict[str, Any], list[str]]:
    from fastdiffusers.nodes import vae_engines
    from fastdiffusers.nodes.vae_choices import VaeChoices

    with torch.inference_mode():
        latent, report = vae_engines.encode(vae, pixels, VaeChoices(), SILENT)
    return latent, report.notes


def decode(vae: Any, latent: dict[str, Any]) -> tuple[torch.Tensor, list[str]]:
    from fastdiffusers.nodes import vae_engines
    from fastdiffusers.nodes.vae_choices import VaeChoices

    with torch.inference_mode():
        frames, report = vae_engines.decode(vae, latent, VaeChoices(), SILENT)
    return frames, report.notes


def core_node(name: str, **inputs: Any) -> dict[str, Any]:
    importlib.import_module("comfy_extras.nodes_post_processing")  # first: the two import each other
    nodes = importlib.import_module("comfy_extras.nodes_latent")
    latent: dict[str, Any] = getattr(nodes, name).execute(**inputs)[0]
    return latent


def not_followed(notes: list[str]) -> bool:
    return any("not followed" in note for note in notes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_length_comes_back(vaes: dict[str, Any], kind: str) -> None:
    lengths = (1, 2, 5, 6, 9) if kind != "minimax-h3" else (1, 3, 5, 7, 21, 22, 23, 39)
    for length in lengths:
        latent, notes = encode(vaes[kind], clip(length))
        frames, told = decode(vaes[kind], latent)
        dropped = any("were dropped" in note for note in notes)
        assert frames.shape[1] == length or (dropped and frames.shape[1] < length), (kind, length)
        assert not not_followed(told)
        assert kind == "ComfyUI's Wan" or not dropped
        filled = any("filled up" in note or "padded" in note for note in notes)
        assert ("clip_length" in latent) == filled, (kind, length, notes)


@pytest.mark.parametrize("kind", FILLED)
def test_clips_joined_in_time_keep_every_frame(vaes: dict[str, Any], kind: str) -> None:
    vae, (length, _) = vaes[kind], FILLED[kind]
    first, second = encode(vae, clip(length))[0], encode(vae, clip(length, seed=1))[0]
    if kind == "minimax-h3":  # which decodes 5n + 2 latent frames
        samples = torch.cat((first["samples"], second["samples"][:, :, -5:]), dim=2)
        joined = first | {"samples": samples}
    else:
        joined = core_node("LatentConcat", samples1=first, samples2=second, dim="t")
    frames, notes = decode(vae, joined)
    assert torch.equal(frames, decode(vae, {"samples": joined["samples"]})[0])
    assert frames.shape[1] > 2 * length
    assert not_followed(notes)


@pytest.mark.parametrize("kind", FILLED)
@pytest.mark.parametrize("part", ["first", "last"])
def test_a_part_of_a_clip_keeps_every_frame(vaes: dict[str, Any], kind: str, part: str) -> None:
    latent = encode(vaes[kind], clip(FILLED[kind][1] + 1))[0]
    count = latent["samples"].shape[2] - (5 if kind == "minimax-h3" else 1)
    index = 0 if part == "first" else latent["samples"].shape[2] - count
    cut = core_node("LatentCut", samples=latent, dim="t", index=index, amount=count)
    assert cut["samples"].shape[2] == count
    frames, notes = decode(vaes[kind], cut)
    assert torch.equal(frames, decode(vaes[kind], {"samples": cut["samples"]})[0])
    assert not_followed(notes)


@pytest.mark.parametrize("kind", ["wan21-t2v", "Load Video VAE"])
def test_a_batch_of_clips(vaes: dict[str, Any], kind: str) -> None:
    vae, (length, longer) = vaes[kind], FILLED[kind]
    both = encode(vae, torch.stack([clip(length), clip(length, seed=1)]))[0]
    assert decode(vae, both)[0].shape[:2] == (2, length)
    assert decode(vae, both | {"samples": both["samples"][1:]})[0].shape[:2] == (1, length)
    batch = core_node("LatentBatch", samples1=encode(vae, clip(length))[0], samples2=encode(vae, clip(longer))[0])
    frames, notes = decode(vae, batch)
    assert frames.shape[:2] == (2, longer), "the second clip has more frames of its own"
    assert not_followed(notes)


@pytest.mark.parametrize("kind", FILLED)
def test_what_becomes_of_a_latent_of_an_earlier_version(vaes: dict[str, Any], kind: str) -> None:
    vae, (length, _) = vaes[kind], FILLED[kind]
    latent = encode(vae, clip(length))[0]
    alone = {"samples": latent["samples"], "clip_length": length}
    whole = decode(vae, {"samples": latent["samples"]})[0]
    frames, notes = decode(vae, alone)
    if kind == "minimax-h3":  # nothing tells
        assert torch.equal(frames, whole)
        assert not_followed(notes)
        return
    assert torch.equal(frames, whole[:, :length])
    assert not not_followed(notes)
    joined = core_node("LatentConcat", samples1=alone, samples2=alone, dim="t")
    frames, notes = decode(vae, joined)
    assert torch.equal(frames, decode(vae, {"samples": joined["samples"]})[0])
    assert not_followed(notes)


def test_keys_of_the_clip_s_length_have_no_use_to_a_sampler(vaes: dict[str, Any]) -> None:
    from fastdiffusers.nodes import latent_input

    latent = encode(vaes["wan21-t2v"], clip(6))[0]
    assert latent.keys() == {"samples", "clip_length", "clip_latent_frames", "clip_count"}
    assert latent_input.read(latent).unused == []
