"""Load Engine (Server) in a real ComfyUI, with a server that answers as SGLang-Diffusion and vLLM-Omni do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from engine_server import FRAMES, MODEL, RATE, EngineServer, clip_pixels, pixels, serving, slow, status
from test_interrupt import TEXT_EVENT, cancel_when, says

from fastdiffusers.engines.settings import HOSTS, KEY

if TYPE_CHECKING:
    from comfy_client import Client

IMAGES = "/v1/images/generations"


@pytest.fixture
def engine() -> Iterator[EngineServer]:
    with serving("sglang") as running:
        yield running


def sampling(server: Client, url: str, load: dict[str, Any] | None = None, **widgets: Any) -> dict[str, Any]:
    """Have a server sample; show the report, and save the images."""
    pipeline = server.node("FastDiffusersLoadEngine", url=url, **(load or {}))
    sampler = server.node("FastDiffusersSampler", pipeline=["load", 0], prompt="a cat", **widgets)
    return {
        "load": pipeline,
        "sample": sampler,
        "report": server.node("FastDiffusersShowReport", report=["sample", 3], format="json"),
        "save": server.node("SaveImage", images=["sample", 0], filename_prefix="served"),
    }


def message(server: Client, prompt: dict[str, Any], node: str) -> str:
    """The one line with which a run ends at a node."""
    error = server.error(server.run(prompt))
    assert error["node_id"] == node
    text = error["exception_message"].strip()
    assert len(text.splitlines()) == 1
    return text


def test_a_batch_comes_back_in_order_with_its_report(server: Client, engine: EngineServer) -> None:
    entry = server.succeed(sampling(server, engine.url, seed=7, batch_size=3, width=64, height=32, attention="sage"))
    expected = [pixels(seed, "a cat", "64x32") for seed in (7, 8, 9)]
    assert np.array_equal(server.images(entry), np.stack(expected))
    report = server.report(entry)
    assert report["facts"]["seeds"] == [7, 8, 9]
    assert report["facts"]["model"] == MODEL
    assert report["facts"]["engine"] == f"SGLang-Diffusion at {engine.url}"
    assert [record["name"] for record in report["optimizations"] if record["failed"]] == ["attention"]
    assert [asked.fields["seed"] for asked in engine.to(IMAGES)] == [7, 8, 9]


def test_pictures_are_edited_and_clips_are_made(server: Client, engine: EngineServer) -> None:
    edit = sampling(server, engine.url, seed=1)
    edit["picture"] = server.node("LoadImage", image="gradient.png")
    edit["sample"]["inputs"]["images.image_1"] = ["picture", 0]
    server.succeed(edit)
    (asked,) = engine.to("/v1/images/edits")
    assert [name for name, _ in asked.files] == ["image"]
    engine.task, engine.sound = "T2V", True
    clip = sampling(server, engine.url, seed=3, width=64, height=48)
    clip["video"] = server.node("SaveVideo", video=["sample", 4], filename_prefix="served")
    entry = server.succeed(clip)
    (asked,) = engine.to("/v1/videos")
    frames = server.images(entry)
    assert frames.shape == (FRAMES, 48, 64, 3)
    assert np.abs(frames.astype(int) - clip_pixels(asked.fields)).mean() < 4
    report = server.report(entry)
    assert report["facts"]["size"] == f"64x48x{FRAMES}"
    assert f"{RATE}" in report["facts"]["sound"] or "Hz" in report["facts"]["sound"]


def test_what_needs_a_latent_says_so(server: Client, engine: EngineServer) -> None:
    prompt = sampling(server, engine.url)
    prompt["latent"] = server.node("SaveLatent", samples=["sample", 1], filename_prefix="served")
    messages = asyncio.run(cancel_when(server, prompt, lambda event: False))
    (blocked,) = [each["data"] for each in messages if isinstance(each, dict) and each["type"] == "execution_error"]
    assert blocked["node_id"] == "latent"
    assert "the server that runs it, shows no latent" in blocked["exception_message"]
    decode = sampling(server, engine.url)
    decode["empty"] = server.node("EmptyLatentImage", width=64, height=64)
    decode["decode"] = server.node("FastDiffusersVAEDecode", samples=["empty", 0], vae=["load", 0])
    decode["show"] = server.node("SaveImage", images=["decode", 0], filename_prefix="served")
    assert "a server takes no latents and gives none" in message(server, decode, "decode")
    start = sampling(server, engine.url, latent=["empty", 0])
    start["empty"] = decode["empty"]
    assert "no weights, LoRAs or latents are here" in message(server, start, "sample")


def test_nodes_that_need_weights_say_so(server: Client, engine: EngineServer) -> None:
    save = {
        "load": server.node("FastDiffusersLoadEngine", url=engine.url),
        "save": server.node("FastDiffusersSaveFolder", pipeline=["load", 0], name="served"),
    }
    assert "no weights, LoRAs or latents are here" in message(server, save, "save")
    together = sampling(server, engine.url, scheduler="euler")
    assert "scheduler = 'euler'" in message(server, together, "sample")


def test_without_a_server_the_line_says_what_to_start(server: Client) -> None:
    with serving() as gone:
        url = gone.url
    text = message(server, sampling(server, url), "sample")
    assert text.startswith(f"engine = '{url}': Start it: sglang serve")
    assert "nothing answers there" in text


def test_a_server_that_fails_is_one_line_and_the_next_run_is_fine(server: Client, engine: EngineServer) -> None:
    engine.faults[IMAGES] = [status(400, {"detail": "Invalid size format"}), status(503, {}, Retry_After="0")]
    assert "(400): Invalid size format" in message(server, sampling(server, engine.url, seed=1), "sample")
    entry = server.succeed(sampling(server, engine.url, seed=1))
    assert np.array_equal(server.images(entry)[0], pixels(1, "a cat"))
    engine.key = "sk-never-shown"
    assert KEY in message(server, sampling(server, engine.url, seed=2), "sample")


def test_another_machine_has_to_be_named_in_the_environment(server: Client) -> None:
    with pytest.raises(RuntimeError, match=f"{HOSTS}=gpu-box"):
        server.run(sampling(server, "http://gpu-box.invalid:30000"))
    with pytest.raises(RuntimeError, match="it does not begin with http"):
        server.run(sampling(server, "gpu-box"))


def test_cancel_deletes_a_job_and_hangs_up_on_a_picture(server: Client, engine: EngineServer) -> None:
    engine.held = True
    job = sampling(server, engine.url, load={"makes": "video"}, seed=1)
    messages = asyncio.run(cancel_when(server, job, says(b"in progress")))
    assert messages[-1]["type"] == "execution_interrupted"
    texts = [each[8:] for each in messages if isinstance(each, bytes) and each[:4] == TEXT_EVENT]
    assert b"cancelled at" in texts[-1]
    assert engine.jobs == {}
    engine.faults[IMAGES] = [slow(60)]
    picture = sampling(server, engine.url, load={"makes": "images"}, seed=1)
    # The first message comes before the question is sent: a server that was not asked keeps its slowness for the next.
    waits = lambda event: says(b"picture 1 of 1")(event) and not says(b"asked for")(event)
    messages = asyncio.run(cancel_when(server, picture, waits))
    assert engine.faults[IMAGES] == []
    assert messages[-1]["type"] == "execution_interrupted"
    entry = server.succeed(sampling(server, engine.url, load={"makes": "images"}, seed=2))
    assert np.array_equal(server.images(entry)[0], pixels(2, "a cat"))
