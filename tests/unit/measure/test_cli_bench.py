"""`fastdiffusers bench`, as a user types it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from fastdiffusers import cli
from fastdiffusers.commands.options import lora_spec
from fastdiffusers.comparison.choices import CHOICES
from fastdiffusers.comparison.presets import preset
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.tuning.key import TuningKey
from fastdiffusers.optimizations.tuning.store import Row, default_store
from fastdiffusers.pipelines.types import LoraSpec

SMALL = ["--steps", "2", "--width", "32", "--height", "32"]


def bench(folder: Path, *options: str) -> int:
    return cli.main(["bench", "--model", "tiny:flux", "--output", str(folder / "out"), *SMALL, *options])


def test_it_writes_the_four_files_and_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, "--compare", "math,efficient", "--runs", "2") == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["chart.png", "report.md", "results.csv", "results.json"]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    names = [row["name"] for row in results["rows"]]
    assert names == ["plain", "math", "efficient"]
    assert results["rows"][0]["run"]["runs"] == 2
    assert results["facts"]["work"] == "32x32, 2 steps"
    assert set(results["rows"][0]["stages"]) >= {"first step", "steps", "decode"}
    assert len(list(csv.reader((out / "results.csv").open(encoding="utf-8")))) == 4
    assert "| plain |" in (out / "report.md").read_text(encoding="utf-8").replace("**", "")
    with Image.open(out / "chart.png") as chart:
        assert chart.width > 1000
    printed = capsys.readouterr().out
    assert "against plain" in printed
    assert "device: " in printed
    make = ["generate", "--model", "tiny:flux", "--prompt", "a fox", "--output", str(tmp_path / "fox.png"), *SMALL]
    assert cli.main([*make, "--recommended", str(out / "results.json")]) == 0
    table = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines() if "  " in line}
    expected = results["rows"][names.index(results["recommended"])]["settings"]["attention"]
    assert table["attention"] == [expected, expected]


@pytest.mark.parametrize(("asked", "does"), [("forget", "forgets"), ("show", "lists"), ("export", "copies")])
@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (("--model", "tiny:flux"), "model = 'tiny:flux'"),
        (("--output", "results"), "output = 'results'"),
        (("--lora", "tiny:flux"), "lora = "),
        (("--runs", "3"), "runs = 3"),
        (("--no-store",), "no-store = True"),
        (("--cluster", "local:2"), "cluster = 'local:2'"),
    ],
)
def test_what_was_measured_is_of_all_models(
    asked: str, does: str, beside: tuple[str, ...], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{asked}", *([str(tmp_path / "rows.jsonl")] if asked == "export" else [])]
    assert cli.main(["bench", *words, *beside]) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--{asked} {does} what is remembered of all models" in line
    assert named in line
    assert not (tmp_path / "rows.jsonl").exists()


def test_it_remembers_shows_exports_and_forgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, "--compare", "math", "--runs", "2", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert {row.settings for row in default_store().rows()} >= {()}
    assert cli.main(["bench", "--show"]) == 0
    assert "tiny:flux@" in capsys.readouterr().out
    assert cli.main(["bench", "--export", str(tmp_path / "copy.jsonl")]) == 0
    assert "measurements copied" in capsys.readouterr().out
    assert (tmp_path / "copy.jsonl").read_text(encoding="utf-8").count("\n") == len(default_store().rows())
    assert cli.main(["bench", "--forget"]) == 0
    assert default_store().rows() == []
    assert cli.main(["bench", "--show"]) == 0
    assert "nothing was measured yet" in capsys.readouterr().out


def test_the_preset_of_two_experts_with_their_loras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In small: the preset's steps, guidance and shift, and one LoRA on each expert."""
    loras = ["--lora", "tiny:wan-high-noise@high", "--lora", "tiny:wan-low-noise", "0.8", "low"]
    small = ["--num-frames", "1", "--width", "32", "--height", "32", "--runs", "1", "--compare", "math", "--no-store"]
    out = tmp_path / "out"
    command = ["bench", "--model", "tiny:wan22-i2v", "--preset", "wan22-4step", "--output", str(out), *small]
    assert cli.main([*command, *loras]) == 0
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert found["facts"]["LoRA"] == "tiny:wan-high-noise 1 (high noise), tiny:wan-low-noise 0.8 (low noise)"
    plain = found["rows"][0]
    assert [(expert["name"], expert["steps"]) for expert in plain["experts"]] == [("high noise", 2), ("low noise", 2)]
    assert plain["moved_bytes"] == {"on": 0, "off": 0}
    assert 0 < plain["vae"]["share"] < 1
    assert "encode" in plain["stages"]
    assert "lora 24 layers" in plain["active"]
    assert not [note for note in found["notes"] if "LoRA" in note]
    printed = capsys.readouterr().out
    assert "few steps (4 steps" in printed.lower()
    assert "moved on / off" in printed


def test_a_preset_without_its_loras_says_so() -> None:
    wan = preset("wan22-4step")
    assert wan.notes(()) == [
        "wan22-4step is meant with a LoRA for few steps, and the high-noise expert and the low-noise expert had none: "
        "the pictures are no guide"
    ]
    assert "the low-noise expert had none" in wan.notes([LoraSpec("a", 1.0, "high")])[0]
    assert wan.notes([LoraSpec("a")]) == []
    assert wan.notes([LoraSpec("a", 1.0, "high"), LoraSpec("b", 1.0, "low")]) == []


@pytest.mark.parametrize(
    ("words", "file", "strength", "expert"),
    [
        (["a.safetensors"], "a.safetensors", 1.0, "both"),
        (["a.safetensors:0.5"], "a.safetensors", 0.5, "both"),
        (["a.safetensors@low"], "a.safetensors", 1.0, "low"),
        (["b@home/a.safetensors:-1e-1@high"], "b@home/a.safetensors", -0.1, "high"),
        (["C:/loras/a.safetensors"], "C:/loras/a.safetensors", 1.0, "both"),
        (["C:/loras/a:2.safetensors:2"], "C:/loras/a:2.safetensors", 2.0, "both"),
        (["a.safetensors", "0.5"], "a.safetensors", 0.5, "both"),
        (["a.safetensors", "0.5", "high"], "a.safetensors", 0.5, "high"),
        (["a.ckpt:0.5"], "a.ckpt:0.5", 1.0, "both"),
        (["tiny:wan-low-noise"], "tiny:wan-low-noise", 1.0, "both"),
    ],
)
def test_a_lora_on_the_command_line(words: list[str], file: str, strength: float, expert: str) -> None:
    path = file if file.startswith("tiny:") else str(Path(file).absolute())
    assert lora_spec(*words) == LoraSpec(path, strength, expert)


@pytest.mark.parametrize(
    "words",
    [["a.safetensors", "1", "both", "b.safetensors"], ["a.safetensors:1", "1"], ["a.safetensors@low", "1", "low"]],
)
def test_a_lora_with_too_many_words(words: list[str]) -> None:
    with pytest.raises(InputError, match="each once"):
        lora_spec(*words)


def test_no_store_remembers_nothing(tmp_path: Path) -> None:
    assert bench(tmp_path, "--compare", "math", "--runs", "1", "--no-store", "--quiet") == 0
    assert default_store().rows() == []


def test_what_is_shown_of_a_row_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    here = TuningKey("a card", "torch 2.13", "flux@1", "bfloat16", "none", "gpu", "1.05 Mpx")
    default_store().add(Row(here, (), "plain", run_seconds=6.57, step_seconds=0.23))
    compiled = (("torch_compile", "blocks inductor default"),)
    default_store().add(Row(here, compiled, "slower", gain=-0.22, run_seconds=8.0, reason="2.30 GiB left the device"))
    assert cli.main(["bench", "--show"]) == 0
    printed = capsys.readouterr().out
    assert "flux@1, 1.05 Mpx, bfloat16, gpu on a card" in printed
    assert "plain: plain  6.57 s per run  0.23 s per step" in printed
    assert "torch_compile blocks inductor default: slower +22% time  8 s per run" in printed
    assert "2.30 GiB left the device" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare", "plain"], "nothing to compare"),
        (["--compare", "turbo"], "no such setting"),
        (["--compare", "math+efficient"], "exclude each other"),
        (["--compare", "math", "--runs", "0"], "runs = 0"),
        (["--compare", "math", "--time-limit", "0"], "time-limit = 0"),
        (["--compare", "math", "--time-limit", "0.001"], "one plain run takes longer"),
        (["--preset", "wan99"], "no such preset"),
        (["--preset", "wan22-4step"], "preset = 'wan22-4step': it is for wan-i2v, wan-t2v, and this model is flux"),
        (["--compare", "math", "--lora", "nowhere.safetensors:0.5@high"], "nowhere.safetensors"),
        (["--compare", "math", "--lora", "a.safetensors:strong"], "lora strength = 'strong'"),
        (["--compare", "math", "--lora", "tiny:wan-high-noise@middle"], "expert = 'middle'"),
        (["--compare", "math", "--lora", "tiny:wan-high-noise:101"], "strength = 101"),
        (["--compare", "math", "--flow-shift", "0"], "flow-shift = 0"),
        (["--compare", "math", "--width", "-33"], "width = -33"),
        (["--compare", "math", "--image", "missing.png"], "no such file"),
        (["--compare", "math", "--model", "/no/such/model"], "model = "),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert bench(tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_and_a_place_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--output", str(tmp_path / "out")]) == 2
    assert "Give --model PATH" in capsys.readouterr().err
    assert cli.main(["bench", "--model", "tiny:flux"]) == 2
    assert "Give --output FOLDER" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", "--model", "tiny:flux", "--output", str(tmp_path / "file")]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(name in printed for name in CHOICES)
    assert "wan22-4step" in printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN_BENCH, str(tmp_path / "out")]
    environment = {**os.environ, "FASTDIFFUSERS_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    while line := process.stdout.readline():
        if "measuring" in line:
            break
    time.sleep(0.2)  # somewhere in a run; where does not matter
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert "cancelled" in results["notes"]
    assert results["rows"][0]["run"]["runs"] >= 2
    assert (tmp_path / "out" / "chart.png").is_file()
    assert "cancelled" in error.splitlines()[-1]
    assert "note: cancelled" in out


RUN_BENCH = """
import sys
import torch
torch.set_num_threads(1)
library = torch.library.Library("torchvision", "FRAGMENT")
library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
from fastdiffusers import cli
from fastdiffusers.optimizations.tuning import measure
original = measure.PairedMeasurement._rounds
def rounds(self, callbacks):
    runs = self._attempt
    def attempt(index, what, callbacks):
        found = runs(index, what, callbacks)
        if what.startswith("round 4"):
            print("measuring", flush=True)
        return found
    self._attempt = attempt
    original(self, callbacks)
measure.PairedMeasurement._rounds = rounds
measure.PairedMeasurement._narrow = lambda self: False  # else a quiet machine knows enough after three rounds, and ends
options = ["--compare", "math", "--steps", "2", "--width", "32", "--height", "32", "--runs", "100000"]
sys.exit(cli.main(["bench", "--model", "tiny:flux", "--output", sys.argv[1], *options]))
"""
