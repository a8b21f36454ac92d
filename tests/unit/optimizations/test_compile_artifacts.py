"""Inductor itself, once: a second process finds the code that the first one has compiled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import json
import torch
from torch import nn
from fastdiffusers.optimizations.apply import active, apply
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings

class Attention(nn.Module):
    processor = object()
    def set_processor(self, processor): ...

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.attention = nn.Linear(16, 16), Attention()
    def forward(self, x):
        return torch.nn.functional.silu(self.linear(x)) + x

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x

class Pipeline:
    components = {"transformer": Denoiser()}

pipeline, x = Pipeline(), torch.randn(3, 16)
settings = OptimizationSettings.plain(torch_compile="on", compile=CompileSettings(headroom_gib=0))
with torch.no_grad():
    plain = pipeline.components["transformer"](x)
    report = apply(pipeline, settings, memory=lambda device: type("State", (), {"free": 2**40, "total": 2**40})())
    with active(pipeline, settings, report):
        result = pipeline.components["transformer"](x)
from torch._dynamo.utils import counters
record = report["torch_compile"]
print(json.dumps({
    "applied": record.applied, "reason": record.reason, "difference": float((result - plain).abs().max()),
    "hits": counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"],
    "misses": counters["inductor"]["fxgraph_cache_miss"],
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_a_second_process_starts_warm(tmp_path):
    environment = {**os.environ, "FASTDIFFUSERS_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)

    def process():
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    cold, warm = process(), process()
    assert cold["applied"] == warm["applied"] == "transformer (2 blocks), inductor", cold["reason"]
    assert cold["difference"] < 1e-5
    assert (cold["hits"], cold["misses"]) == (0, 1)
    assert warm["hits"] >= 1
    assert warm["misses"] == 0
    assert (tmp_path / "torch_compile").is_dir()
