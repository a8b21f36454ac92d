"""What this ComfyUI logs when a model does not fit is what doctor reads."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from fastdiffusers.commands.launch.comfyui_log import MIB, PartialLoad, read_log
from fastdiffusers.commands.launch.start_script import known_flags

if TYPE_CHECKING:
    from comfy_client import Client


class Model(nn.Module):
    """Four layers of 1 MiB each, as ComfyUI loads them."""

    def __init__(self) -> None:
        import comfy.ops

        super().__init__()
        layers = [comfy.ops.disable_weight_init.Linear(512, 512, bias=False) for _ in range(4)]
        self.layers = nn.Sequential(*layers)
        self.device = torch.device("cpu")


def test_a_partial_load_is_read(core: object, caplog: pytest.LogCaptureFixture) -> None:
    from comfy.model_patcher import ModelPatcher

    patcher = ModelPatcher(Model(), torch.device("cpu"), torch.device("cpu"))
    with caplog.at_level(logging.INFO):
        patcher.load(torch.device("cpu"), lowvram_model_memory=int(3.5 * MIB))
    (load,) = read_log(caplog.text).partial_loads
    assert load.loaded in (MIB, 2 * MIB, 3 * MIB)  # it keeps room for the layer that it fetches
    assert load == PartialLoad(load.loaded, 4 * MIB - load.loaded)


def test_what_it_writes_when_it_starts_is_read(server: Client, comfyui: Path) -> None:
    version = re.search(r'__version__ = "(.*)"', (comfyui / "comfyui_version.py").read_text(encoding="utf-8"))
    assert version is not None
    session = read_log(server.server.log())
    found = dict(session.versions)
    assert (found["ComfyUI"], found["pytorch"]) == (version[1], torch.__version__)
    assert session.vram_state == "DISABLED"
    assert session.attention != ""
    assert "probe_nodes.py" in [name for _, name in session.imports]
    assert session.failed_imports == ()


def test_its_flags_are_known(comfyui: Path) -> None:
    flags = known_flags(str(comfyui))
    assert {"--cpu", "--reserve-vram", "--cuda-malloc", "--disable-cuda-malloc", "--lowvram"} <= flags
    source = (comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    assert len(flags) == source.count("add_argument(")
