"""xFormers in a running ComfyUI, by the stand-in package: active, failing in the middle of a run, and put back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from comfy_client import TINY, Client

STAND_INS = Path(__file__).parents[1] / "stand_ins"
SMALL = {"width": 64, "height": 64, "steps": 3, "seed": 5, "torch_compile": "off", "vae_tiling": "off"}


@pytest.fixture(scope="module", params=["", "nan@6"])
def attending(comfyui: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Client, str]]:
    from fastdiffusers.scripts.comfyui_server import ComfyServer

    path = os.pathsep.join([str(STAND_INS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    environment["ATTENTION_STAND_IN_FAULT"] = request.param
    with ComfyServer(None, comfyui, environment=environment) as server:
        yield Client(server), request.param


def test_a_graph_attends_through_xformers_or_says_why_not(attending: tuple[Client, str]) -> None:
    client, fault = attending
    pictures, records = [], []
    for attention in ("xformers", "sdpa"):
        entry = client.succeed(client.sampling(TINY + "flux", attention=attention, **SMALL))
        pictures.append(client.images(entry).astype(int))
        found = client.report(entry)["optimizations"]
        records.append(next(record for record in found if record["name"] == "attention"))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert records[0]["applied"] == ("sdpa" if fault else "xformers")
    assert ("NaN or infinity" in records[0]["reason"]) == bool(fault)
    assert (records[1]["applied"], records[1]["reason"]) == ("sdpa", "")
