"""Cancel in the middle of a run."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np

if TYPE_CHECKING:
    from comfy_client import Client

TINY = "embedded tiny: "
TEXT_EVENT = (3).to_bytes(4, "big")
PREVIEW_EVENTS = ((1).to_bytes(4, "big"), (4).to_bytes(4, "big"))


async def cancel_after(server: Client, prompt: dict[str, Any], steps: int) -> list[Any]:
    """Run a prompt, press Cancel after some steps of its sampler, and return all messages until it is over."""
    messages: list[Any] = []
    async with aiohttp.ClientSession() as session:
        url = f"{server.server.url}/ws?clientId=watcher"
        async with session.ws_connect(url, max_msg_size=0) as socket:
            await asyncio.to_thread(server.server.queue, prompt, "watcher")
            pressed = False
            while True:
                message = await asyncio.wait_for(socket.receive(), 300)
                if message.type is aiohttp.WSMsgType.BINARY:
                    messages.append(message.data)
                    continue
                event = json.loads(message.data)
                messages.append(event)
                data = event["data"]
                if event["type"] == "progress" and data["node"] == "sample" and data["value"] >= steps and not pressed:
                    pressed = True
                    await asyncio.to_thread(server.server.interrupt)
                if event["type"] in ("execution_interrupted", "execution_error", "execution_success"):
                    return messages


def test_cancel_shows_as_interrupted_and_leaves_the_pipeline_as_new(server: Client) -> None:
    small = {"width": 64, "height": 64, "seed": 9}
    fresh = server.images(server.succeed(server.sampling(TINY + "sd3", **small, steps=3)))
    long_run = server.sampling(TINY + "sd3", **small, steps=1000)
    messages = asyncio.run(cancel_after(server, long_run, steps=5))
    assert messages[-1]["type"] == "execution_interrupted", messages[-1]["data"].get("exception_message")

    interrupted = next(m for m in messages if isinstance(m, dict) and m["type"] == "execution_interrupted")
    assert interrupted["data"]["node_id"] == "sample"
    texts = [m[8:] for m in messages if isinstance(m, bytes) and m[:4] == TEXT_EVENT]
    assert any(b"denoise" in text for text in texts), "the node says what it is doing"
    assert not any(b"decode" in text for text in texts), "nothing is decoded after a cancel"
    assert any(isinstance(m, bytes) and m[:4] in PREVIEW_EVENTS for m in messages), "the node shows a preview"

    # Another graph on the same pipeline, so that ComfyUI cannot answer from its cache of outputs. A batch of two takes
    # other kernels than a single picture on some processors (4e-6 apart): rounding moves a value by one level at most.
    again = server.sampling(TINY + "sd3", **small, steps=3, batch_size=2)
    first = server.images(server.succeed(again))[:1]
    np.testing.assert_allclose(first.astype(int), fresh.astype(int), atol=1, rtol=0)
