"""Cancel in the middle of a run."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import psutil
import pytest

if TYPE_CHECKING:
    from comfy_client import Client

TINY = "embedded tiny: "
VIDEO_VAE = TINY + "video VAE"
TEXT_EVENT = (3).to_bytes(4, "big")
PREVIEW_EVENTS = ((1).to_bytes(4, "big"), (4).to_bytes(4, "big"))


async def cancel_when(server: Client, prompt: dict[str, Any], ripe: Callable[[Any], bool]) -> list[Any]:
    """Run a prompt, press Cancel at the first message that `ripe` picks, and return all messages until it is over."""
    messages: list[Any] = []
    async with aiohttp.ClientSession() as session:
        url = f"{server.server.url}/ws?clientId=watcher"
        async with session.ws_connect(url, max_msg_size=0) as socket:
            await asyncio.to_thread(server.server.queue, prompt, "watcher")
            pressed = False
            while True:
                message = await asyncio.wait_for(socket.receive(), 300)
                binary = message.type is aiohttp.WSMsgType.BINARY
                event = message.data if binary else json.loads(message.data)
                messages.append(event)
                if not pressed and ripe(event):
                    pressed = True
                    await asyncio.to_thread(server.server.interrupt)
                if not binary and event["type"] in ("execution_interrupted", "execution_error", "execution_success"):
                    return messages


def after_steps(steps: int) -> Callable[[Any], bool]:
    def ripe(event: Any) -> bool:
        data = event["data"] if isinstance(event, dict) and event["type"] == "progress" else None
        return data is not None and data["node"] == "sample" and data["value"] >= steps

    return ripe


def says(text: bytes) -> Callable[[Any], bool]:
    return lambda event: isinstance(event, bytes) and event[:4] == TEXT_EVENT and text in event


def test_cancel_shows_as_interrupted_and_leaves_the_pipeline_as_new(server: Client) -> None:
    small = {"width": 64, "height": 64, "seed": 9}
    fresh = server.images(server.succeed(server.sampling(TINY + "sd3", **small, steps=3)))
    long_run = server.sampling(TINY + "sd3", **small, steps=1000)
    messages = asyncio.run(cancel_when(server, long_run, after_steps(5)))
    assert messages[-1]["type"] == "execution_interrupted", messages[-1]["data"].get("exception_message")

    interrupted = next(m for m in messages if isinstance(m, dict) and m["type"] == "execution_interrupted")
    assert interrupted["data"]["node_id"] == "sample"
    texts = [m[8:] for m in messages if isinstance(m, bytes) and m[:4] == TEXT_EVENT]
    assert any(b"denoise" in text for text in texts), "the node says what it is doing"
    assert not any(b"decode" in text for text in texts), "nothing is decoded after a cancel"
    assert re.fullmatch(rb"sample(cancelled at \d\d:\d\d:\d\d, in denoise \d+/1000.*)", texts[-1]), texts[-1]
    assert any(isinstance(m, bytes) and m[:4] in PREVIEW_EVENTS for m in messages), "the node shows a preview"

    # Another graph on the same pipeline, so that ComfyUI cannot answer from its cache of outputs. A batch of two takes
    # other kernels than a single picture on some processors (4e-6 apart): rounding moves a value by one level at most.
    again = server.sampling(TINY + "sd3", **small, steps=3, batch_size=2)
    first = server.images(server.succeed(again))[:1]
    np.testing.assert_allclose(first.astype(int), fresh.astype(int), atol=1, rtol=0)


def test_cancel_while_code_is_compiled(server: Client) -> None:
    small = {"width": 64, "height": 64, "seed": 9, "steps": 3, "vae_tiling": "off", "attention": "sdpa"}
    fresh = server.images(server.succeed(server.sampling(TINY + "sd3", **small, torch_compile="off")))
    compiled = server.sampling(TINY + "sd3", **small, torch_compile="on")
    compiled["compile"] = server.node("FastDiffusersTorchCompileSettings", memory_check=False)
    compiled["sample"]["inputs"]["compile_settings"] = ["compile", 0]
    messages = asyncio.run(cancel_when(server, compiled, says(b"first run only")))
    assert messages[-1]["type"] == "execution_interrupted", messages[-1]["data"].get("exception_message")
    last = [m[8:].decode() for m in messages if isinstance(m, bytes) and m[:4] == TEXT_EVENT][-1]
    told = r"cancelled at \d\d:\d\d:\d\d, in compile \d/\d: transformer: .* so far \(first run only"
    assert re.search(told, last), last
    assert messages[-1]["data"]["node_id"] == "sample"
    again = server.sampling(TINY + "sd3", **small, torch_compile="off", prompt="a cat")
    again["sample"]["inputs"]["max_sequence_length"] = 0
    again["sample"]["inputs"]["seed"] = 10
    server.succeed(again)  # another seed first, so that ComfyUI cannot answer from its cache of outputs
    again["sample"]["inputs"]["seed"] = 9
    assert np.array_equal(server.images(server.succeed(again)), fresh)


@pytest.mark.parametrize("scope", ["blocks", "model"])
def test_cancel_while_a_decoder_is_compiled(server: Client, scope: str) -> None:
    """The video VAE, by its units and by whole slices."""

    def decode(batch: int = 1, **compile_widgets: Any) -> dict[str, Any]:
        size = {"width": 64, "height": 64, "length": 5, "batch_size": batch}
        prompt = {
            "latent": server.node("EmptyHunyuanLatentVideo", **size),
            "vae": server.node("FastDiffusersLoadVideoVAE", vae_name=VIDEO_VAE, dtype="float32"),
            "decode": server.node("FastDiffusersVAEDecode", samples=["latent", 0], vae=["vae", 0], tiling="whole"),
            "save": server.node("SaveImage", images=["decode", 0], filename_prefix="decoded"),
        }
        if compile_widgets:
            prompt["compile"] = server.node("FastDiffusersTorchCompileSettings", **compile_widgets)
            prompt["decode"]["inputs"]["compile_settings"] = ["compile", 0]
        return prompt

    fresh = server.images(server.succeed(decode()))
    process = psutil.Process(server.server._process.pid)
    before = {child.pid for child in process.children(recursive=True)}
    compiled = decode(scope=scope, memory_check=False)
    messages = asyncio.run(cancel_when(server, compiled, says(b"first run only")))
    assert messages[-1]["type"] == "execution_interrupted", messages[-1]["data"].get("exception_message")
    assert messages[-1]["data"]["node_id"] == "decode"
    assert {child.pid for child in process.children(recursive=True)} <= before
    again = server.images(server.succeed(decode(batch=2)))  # one that ComfyUI cannot answer from its cache of outputs
    assert np.array_equal(again[: len(fresh)], fresh)
    assert fresh.std() > 0
