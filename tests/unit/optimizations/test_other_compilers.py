"""Somebody else's torch.compile: noticed, reported, left alone."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch._dynamo.config
from torch import nn

from fastdiffusers.commands import environment
from fastdiffusers.commands.launch.advice import LaunchFacts, launch_advice
from fastdiffusers.commands.launch.start_script import known_flags
from fastdiffusers.optimizations.apply import apply, revert
from fastdiffusers.optimizations.compile import compiled_elsewhere, switched_off
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings
from fastdiffusers.pipelines import tiny

COMPILING = OptimizationSettings(torch_compile="on", compile=CompileSettings(backend="eager"), memory_mode="gpu")


def test_plain_modules_and_our_own_are_nobody_elses() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert compiled_elsewhere(model) == ""
    model[1][0].compile(backend="eager")
    assert compiled_elsewhere(model) == "1.0"
    assert compiled_elsewhere(model, is_ours=lambda call: True) == ""
    assert compiled_elsewhere(torch.compile(nn.Linear(2, 2), backend="eager")) == "."


def test_a_part_that_something_else_compiled_is_left_as_it_is() -> None:
    pipeline = tiny.build("flux")
    block = pipeline.transformer.transformer_blocks[0]
    block.compile(backend="eager")
    foreign = block._compiled_call_impl
    record = apply(pipeline, COMPILING)["torch_compile"]
    assert (record.applied, record.failed) == ("off", True)
    assert "transformer_blocks.0 was compiled by something else" in record.reason
    revert(pipeline)
    assert block._compiled_call_impl is foreign


def test_a_vae_that_something_else_compiled_matters_only_where_ours_would_be_compiled() -> None:
    pipeline = tiny.build("flux")
    pipeline.vae.decoder.compile(backend="eager")
    assert apply(pipeline, COMPILING)["torch_compile"].applied != "off"
    too = CompileSettings(backend="eager", compile_vae=True)
    record = apply(pipeline, OptimizationSettings(torch_compile="on", compile=too))["torch_compile"]
    assert "decoder was compiled by something else" in record.reason
    revert(pipeline)


def test_our_own_compiled_code_is_applied_twice_without_complaint() -> None:
    pipeline = tiny.build("flux")
    assert apply(pipeline, COMPILING) == apply(pipeline, COMPILING)
    assert apply(pipeline, COMPILING)["torch_compile"].applied != "off"
    revert(pipeline)


@pytest.mark.parametrize("how", ["TORCHDYNAMO_DISABLE", "config", "stance"])
def test_compile_that_is_off_in_the_process_is_said(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert switched_off() == ""
    pipeline = tiny.build("flux")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", str(int(how == "TORCHDYNAMO_DISABLE")))
    with ExitStack() as stack:
        if how == "config":
            stack.enter_context(torch._dynamo.config.patch(disable=True))
        if how == "stance":
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        record = apply(pipeline, COMPILING)["torch_compile"]
        known = environment.compiler("cpu")
    assert (record.applied, record.failed) == ("off", True)
    assert record.reason.startswith("torch.compile is off in this process")
    assert (known["works"], known["reason"]) == (False, record.reason)


def test_doctor_knows_whether_comfyui_compiles_and_that_it_does_not_matter(tmp_path: Path) -> None:
    options = tmp_path / "comfy" / "cli_args.py"
    assert known_flags("") == frozenset()
    assert "--disable-comfy-compiler" not in known_flags(str(tmp_path))
    options.parent.mkdir()
    options.write_text('parser.add_argument("--disable-cuda-graphs")')
    assert "--disable-comfy-compiler" not in known_flags(str(tmp_path))
    options.write_text('parser.add_argument("--disable-comfy-compiler")')
    assert "--disable-comfy-compiler" in known_flags(str(tmp_path))
    assert launch_advice(LaunchFacts()) == []
    (advice,) = launch_advice(LaunchFacts(flags=known_flags(str(tmp_path))))
    assert advice.text.startswith("nothing to do about the Comfy Compiler")
