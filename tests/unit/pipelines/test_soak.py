"""Many prompts with changing seeds on one pipeline: memory, open files and threads stay where they are."""

from __future__ import annotations

import gc
import os
import threading

import psutil
import pytest

from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

PROMPTS = int(os.environ.get("FASTDIFFUSERS_SOAK", "60"))
"""Runs in all; a quarter of them warms up. FASTDIFFUSERS_SOAK=1000 tries longer."""
MEMORY = 24 * 2**20
"""Bytes that may come and go. A leak of one latent and one picture a run would be more than this in a thousand runs."""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [OptimizationSettings.plain(), OptimizationSettings()], ids=["plain", "default"])
def test_many_prompts_leave_memory_files_and_threads_flat(settings: OptimizationSettings) -> None:
    handle = PipelineHandle(loader.resolve("tiny:flux", device="cpu"))
    process = psutil.Process()
    memory, files, threads, objects = [], [], [], []
    for number in range(PROMPTS):
        request = SampleRequest(f"prompt {number} " + "word " * (number % 7), steps=1, width=64, height=64, seed=number)
        generate(handle, request, settings)
        if number >= PROMPTS // 4 and number % 5 == 0:
            gc.collect()
            memory.append(process.memory_info().rss)
            files.append(process.num_fds())
            threads.append(threading.active_count())
            objects.append(len(gc.get_objects()))
    CACHE.clear()
    assert max(files) == min(files), files
    assert max(threads) == min(threads), threads
    assert memory[-1] - memory[0] < MEMORY, memory
    assert objects[-1] - objects[0] < PROMPTS, objects
