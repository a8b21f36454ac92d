"""Benchmark Optimizations in a running ComfyUI: table, chart, settings that the sampler takes, store, cancel."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest

from fastdiffusers.scripts.comfyui_server import ServerError

if TYPE_CHECKING:
    from comfy_client import Client

TINY = "embedded tiny: "
SMALL = {"width": 32, "height": 32, "steps": 2}


def benchmark(server: Client, **widgets: Any) -> dict[str, Any]:
    """Load, measure, save the chart."""
    chosen = {"compare": "math", "runs": 3, **SMALL, **widgets}
    return {
        "load": server.node("FastDiffusersLoadPipeline", model=TINY + "flux"),
        "bench": server.node("FastDiffusersBenchmark", pipeline=["load", 0], **chosen),
        "save": server.node("SaveImage", images=["bench", 1], filename_prefix="chart"),
    }


def rows(server: Client) -> list[dict[str, Any]]:
    """What the pack remembers, in ComfyUI's user folder."""
    path = server.base / "user" / "fastdiffusers" / "measurements.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def test_the_chart_is_drawn_and_the_result_remembered(server: Client) -> None:
    prompt = benchmark(server, seed=1, compare="math: torch's plain attention")
    prompt["report"] = server.node("FastDiffusersShowReport", report=["bench", 3], format="table")
    entry = server.succeed(prompt)
    (chart,) = server.images(entry)
    assert chart.shape[1] == 1280
    assert len(np.unique(chart.reshape(-1, 3), axis=0)) > 10, "not a blank sheet"
    assert entry["outputs"]["bench"]["images"], "the node shows the chart itself"
    (table,), (shown,) = (entry["outputs"]["report"][name] for name in ("text", "shown"))
    assert table.splitlines()[0].startswith("setting")
    assert "\nplain: " in shown
    assert "\nmath: " in shown
    known = rows(server)
    assert {row["verdict"] for row in known} >= {"plain"}
    assert known[0]["situation"]["model"].startswith("tiny:flux@")


def test_the_sampler_takes_what_it_recommends(server: Client) -> None:
    prompt = benchmark(server, seed=2)
    prompt["sample"] = server.node(
        "FastDiffusersSampler", pipeline=["load", 0], prompt="a cat", settings=["bench", 0], **SMALL
    )
    prompt["report"] = server.node("FastDiffusersShowReport", report=["sample", 3], format="json")
    report = server.report(server.succeed(prompt))
    attention = next(record for record in report["optimizations"] if record["name"] == "attention")
    assert attention["requested"] in ("sdpa", "math"), "what was measured, not auto"


def test_nothing_to_compare_is_refused_before_anything_runs(server: Client) -> None:
    for more, words in (
        ({"compare": "plain"}, "nothing to compare"),
        ({"compare": "turbo"}, "no such setting"),
        ({"compare_also": "turbo"}, "no such setting"),
    ):
        with pytest.raises(ServerError, match=words):
            server.server.queue(benchmark(server, **more))


def test_a_preset_fills_in_the_work_and_the_loras_come_with_the_pipeline(server: Client) -> None:
    """The Wan 2.2 case in small: what is given goes first, the rest is the preset's."""
    prompt = benchmark(server, runs=1, steps=0, num_frames=1, preset="wan22-4step", remember=False)
    prompt["load"] = server.node("FastDiffusersLoadPipeline", model=TINY + "wan22-i2v")
    for before, name, expert in (("load", "high", "high"), ("high", "low", "low")):
        lora = {"lora_name": f"{TINY}wan {expert} noise", "strength": 1.0, "expert": expert}
        prompt[name] = server.node("FastDiffusersLoadLora", pipeline=[before, 0], **lora)
    prompt["bench"]["inputs"]["pipeline"] = ["low", 0]
    prompt["table"] = server.node("PreviewAny", source=["bench", 2])
    shown = json.dumps(server.succeed(prompt)["outputs"]["table"])
    assert "4 steps" in shown
    assert "tiny:wan-high-noise 1 (high noise), tiny:wan-low-noise 1 (low noise)" in shown
    assert shown.count("(x 2)") == 4, "two steps of each expert, for plain and for math"
    assert "few steps (4 steps" in shown.lower()
    assert "meant with a LoRA" not in shown
    assert "FastDiffusers, Benchmark Optimizations: " in server.server.log()


def test_a_preset_for_another_model_is_refused_before_it_loads(server: Client) -> None:
    message = server.error(server.run(benchmark(server, preset="wan22-4step", seed=9)))
    assert message["exception_message"].startswith("preset = 'wan22-4step': ")
    assert "it is for wan-i2v, wan-t2v, and this model is flux" in message["exception_message"]


async def _cancelled(server: Client, prompt: dict[str, Any]) -> tuple[str, list[str]]:
    """Cancel once the second round has begun: (how it ended, the texts that the node showed)."""
    texts: list[str] = []
    async with aiohttp.ClientSession() as session:
        url = f"{server.server.url}/ws?clientId=benchmark"
        async with session.ws_connect(url, max_msg_size=0) as socket:
            await asyncio.to_thread(server.server.queue, prompt, "benchmark")
            pressed = False
            while True:
                message = await asyncio.wait_for(socket.receive(), 120)
                if message.type is aiohttp.WSMsgType.BINARY:
                    texts.append(message.data[8:].decode(errors="replace"))
                    if "round 3" in texts[-1] and not pressed:
                        pressed = True
                        await asyncio.to_thread(server.server.interrupt)
                    continue
                event = json.loads(message.data)
                if event["type"] in ("execution_interrupted", "execution_error", "execution_success"):
                    return event["type"], texts


def test_cancel_keeps_what_was_measured(server: Client) -> None:
    prompt = benchmark(server, runs=100, steps=3, seed=3, width=48)
    end, texts = asyncio.run(_cancelled(server, prompt))
    assert end == "execution_interrupted"
    assert any(" left" in text for text in texts), "the plan's progress tells the time left"
    assert "note: cancelled" in texts[-1], "the node shows what was measured until then"
    assert len(texts[-1].splitlines()) <= 5, "the answer, plain and the best, not the table"
    assert any("cancelled at" in text for text in texts)
    shapes = {row["situation"]["shape"] for row in rows(server)}
    assert len(shapes) >= 2, "the cancelled one is remembered beside those of 32x32"
