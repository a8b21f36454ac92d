"""The benchmarks of whole models: their lists, quantized twins beside the plain pipeline, and the cold start."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdiffusers.benchmarks import cold_start, compare_settings, gpu_all, overhead, quantized
from fastdiffusers.benchmarks.quantized import OwnMemory, parse_names, quantization_of
from fastdiffusers.comparison.architectures import ARCHITECTURES
from fastdiffusers.comparison.choices import PLAIN
from fastdiffusers.comparison.presets import MODEL_BENCHMARKS
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.compile import CACHE_VARIABLES
from fastdiffusers.optimizations.quantization.schemes import SCHEMES
from fastdiffusers.optimizations.tuning.meters import PeakMemory
from fastdiffusers.pipelines.types import LoadKey, SampleRequest


@pytest.mark.parametrize("name", gpu_all.MODELS)
def test_every_list_can_be_compared(name: str) -> None:
    benchmark, request = MODEL_BENCHMARKS[name], SampleRequest("a fox")
    names = parse_names(benchmark.compare)
    assert names[0] == PLAIN
    assert len(names) == benchmark.compare.count(",") + 2
    full, small = benchmark.apply(request), benchmark.small(request)
    assert full.steps is not None
    assert small.steps is not None
    assert full.steps >= small.steps >= 2
    assert (small.width, small.height) == (64, 64)
    assert (full.num_frames, small.num_frames) in ((None, None), (81, 5))
    assert ARCHITECTURES[benchmark.families[0]]


def test_a_card_measures_every_model() -> None:
    assert set(gpu_all.MODELS) == set(MODEL_BENCHMARKS)


def test_quantized_names_come_last_and_are_checked_like_the_others() -> None:
    assert parse_names("fp8+compile, compile,fp8,fp8") == [PLAIN, "compile", "fp8+compile", "fp8"]
    assert parse_names("int8") == [PLAIN, "int8"]
    assert (quantization_of("uint4+compile"), quantization_of("compile")) == ("uint4", "")
    for wrong in ("fp8+nonsense", "fp8+cudnn+flash", ""):
        with pytest.raises(InputError):
            parse_names(wrong)
    assert set(quantized.QUANTIZATIONS.values()) <= set(SCHEMES)


def test_a_row_is_not_charged_for_the_pipelines_that_wait() -> None:
    plain, small = LoadKey("m"), LoadKey("m", quantization="sdnq-int8")
    twins: Any = SimpleNamespace(sizes={plain: 100, small: 50}, running=plain)
    meter: Any = SimpleNamespace(peak=lambda: PeakMemory(170, 180, 999))
    assert OwnMemory(meter, twins).peak() == PeakMemory(120, 130, 999)
    twins.running = small
    assert OwnMemory(meter, twins).peak() == PeakMemory(70, 80, 999)


def test_plain_and_quantized_rows_and_the_reasons_of_those_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torchao")
    names = "tiling,flash,fp8,int8-torchao,int8-torchao+tiling"
    options = ["--device", "cpu", "--runs", "1", "--steps", "2", "--compare", names, "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmark", "z_image_1024", *options])
    compare_settings.main()
    (path,) = tmp_path.glob("z_image_1024_*.json")
    data = json.loads(path.read_text())
    rows = {row["name"]: row for row in data["rows"]}
    assert list(rows) == [PLAIN, "tiling", "flash", "fp8", "int8-torchao", "int8-torchao+tiling"]
    assert "cpu has no fp8 matrix products" in rows["fp8"]["problem"]
    assert rows["flash"]["problem"]
    for name in ("int8-torchao", "int8-torchao+tiling"):
        assert rows[name]["run"]["runs"] == 1
        assert 20 < rows[name]["quality"]["psnr_db"] < 120
    assert rows["tiling"]["quality"]["identical"]  # one tile: the plain pipeline was not quantized
    assert "int8 in" in data["quantized"]["int8-torchao"]["layers"]["transformer"]
    assert data["facts"]["work"] == "64x64, 2 steps"


def test_what_the_pack_costs_is_read_from_the_clock_that_was_chosen() -> None:
    ticks = itertools.count()
    clock: Any = SimpleNamespace(mark=lambda: next(ticks), between=lambda start, end: float(end - start))
    row = overhead.measure_size("tiny", "cpu", 1, clock)
    assert (row["bare_s"], row["pack_s"], row["overhead_ms"]) == (1.0, 1.0, 0.0)


def test_a_first_compiled_picture_and_a_warm_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "WARM", 1)
    found = cold_start.first_and_warm("compile", "cpu", "float32", full=False, backend="eager", steps=1)
    assert found["first_extra_s"] == pytest.approx(found["first_s"] - found["warm_s"])
    assert found["warm_s"] > 0


def test_each_process_begins_with_what_the_one_before_has_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        folder = Path(env["FASTDIFFUSERS_CACHE"])
        assert not set(CACHE_VARIABLES) & set(env)
        seen.append((command[command.index("--process") + 1], folder.exists()))
        if folder.parent.is_dir():
            folder.mkdir(exist_ok=True)
        if command[-1] == "--fail":
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: the reason")
        return subprocess.CompletedProcess(command, 0, 'chatter\n{"first_s": 3.0, "warm_s": 1.0}\n', "")

    monkeypatch.setenv(CACHE_VARIABLES[0], "/elsewhere")
    monkeypatch.setattr(cold_start.subprocess, "run", run)
    rows = cold_start.measure(["compile"], [])
    assert seen == [(PLAIN, False), ("compile", False), ("compile", True)]
    assert [row["artifacts"] for row in rows] == ["", "nothing kept", "second process"]
    assert rows[1]["first_s"] == 3.0
    assert cold_start.in_a_process("compile", Path("/nowhere"), ["--fail"], None) == {
        "problem": "ValueError: the reason"
    }
