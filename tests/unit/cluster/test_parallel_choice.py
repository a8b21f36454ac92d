"""What is asked before any process is started: whether one picture can be made over several cards at all."""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.callbacks import SILENT
from fastdiffusers.cluster.parallel import choice
from fastdiffusers.cluster.parallel import client as together
from fastdiffusers.cluster.parallel.choice import parallel_settings, placed, uneven, way_for, without_branches
from fastdiffusers.cluster.parallel.probation import Probation
from fastdiffusers.cluster.parallel.remembered import Remembered, how_split
from fastdiffusers.cluster.settings import ClusterSettings, parse_cluster
from fastdiffusers.commands.latent_file import read_latent
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.optimizations.tuning.store import default_store
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition
from fastdiffusers.pipelines.loading.described import denoiser_of_key
from fastdiffusers.pipelines.loading.loader import family_of_key, resolve
from fastdiffusers.pipelines.types import LoadKey, PipelineHandle, SampleRequest, SampleResult
from fastdiffusers.report import OptimizationReport

FAST = ("--steps", "1", "--width", "64", "--height", "64", "--dtype", "float32", "--device", "cpu")


@pytest.fixture(autouse=True)
def _starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever gets as far as starting a process has not been declined."""

    def never(*_: Any) -> None:
        raise AssertionError("a process would have been started")

    monkeypatch.setattr(together.client, "generate_on", never)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this machine one with so many cards, for who only counts them."""
    for family in ("flux", "sdxl", "wan22-t2v"):
        denoiser_of_key(key(family))  # diffusers asks for cards while it is imported

    def set_cards(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)

    return set_cards


def key(family: str, device: str = "cpu") -> LoadKey:
    return replace(resolve(f"tiny:{family}", device="cpu", dtype="float32"), device=device)


@pytest.mark.parametrize("family", ["zimage", "sd3", "sdxl"])
def test_a_model_without_a_plan_is_declined_with_the_reason(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", "--model", f"tiny:{family}", "--prompt", "a fox", *FAST]
    report = tmp_path / "report.json"
    more = ["--parallel", "ulysses", "--parallel-devices", "2", "--report", str(report)]
    assert cli.main([*common, "--output", str(tmp_path / "two.safetensors"), *more]) == 0
    assert cli.main([*common, "--output", str(tmp_path / "one.safetensors"), "--quiet"]) == 0
    record = json.loads(report.read_text())["optimizations"][-1]
    assert (record["name"], record["requested"], record["applied"], record["failed"]) == (
        *("parallel", "ulysses", "off"),
        True,
    )
    assert "has no context-parallel plan for" in record["reason"]
    assert f"not had: parallel ulysses, off instead: {record['reason']}" in capsys.readouterr().out
    made = [read_latent(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    one, two = (each if isinstance(each, torch.Tensor) else each[0] for each in made)
    assert torch.equal(one, two)


def test_a_model_with_a_plan_is_not_declined() -> None:
    for family in ("flux", "wan22-t2v", "qwenimage"):
        sized, why = placed(parallel_settings("ulysses", 2, cpus=1), key(family))
        assert why == ""
        assert (sized.workers, sized.cpus, sized.parallel) == (2, 1, "ulysses")


@pytest.mark.parametrize(
    ("family", "options", "why"),
    [
        ("flux-random", [], "flux takes its guidance as an input: there is no second branch"),
        ("sdxl", ["--guidance", "1"], "with guidance = 1 there is no second branch"),
        ("zimage", [], "with guidance = 0 there is no second branch"),
    ],
)
def test_a_run_without_guidance_is_declined_with_the_reason(
    family: str, options: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", "--model", f"tiny:{family}", "--prompt", "a fox", *FAST, *options]
    report = tmp_path / "report.json"
    more = ["--parallel", "cfg", "--parallel-devices", "2", "--report", str(report)]
    assert cli.main([*common, "--output", str(tmp_path / "two.safetensors"), *more]) == 0
    record = json.loads(report.read_text())["optimizations"][-1]
    assert (record["name"], record["requested"], record["applied"], record["reason"]) == ("parallel", "cfg", "off", why)
    assert f"not had: parallel cfg, off instead: {why}" in capsys.readouterr().out


def test_a_true_guidance_beside_the_models_own_has_two_branches() -> None:
    family = family_of_key(key("flux-random"))
    guided = SampleRequest("a fox", negative_prompt="a dog", conditions=(ArgumentCondition("true_cfg_scale", 3),))
    assert without_branches(family, guided) == ""
    assert without_branches(family, replace(guided, conditions=())).endswith("there is no second branch")


def test_that_auto_cannot_be_had_is_said_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["generate", "--model", "tiny:flux-random", "--prompt", "a fox", *FAST]
    more = ["--parallel", "auto", "--parallel-devices", "2", "--output", str(tmp_path / "one.safetensors")]
    assert cli.main([*common, *more]) == 0
    said = "note: parallel auto is off: it takes two cards or more, and there are none to use."
    assert said in capsys.readouterr().out.splitlines()


def test_guidance_has_two_branches(cards: Callable[[int], None]) -> None:
    with pytest.raises(InputError, match=r"guidance has two branches, one for each of two cards\. Use 2, or leave"):
        parallel_settings("cfg", 3)
    cards(4)
    sized, why = placed(parallel_settings("cfg", None), key("sdxl", "auto"))
    assert (sized.workers, why) == (2, "")
    # A model with a plan has branches, too.
    assert placed(parallel_settings("cfg", 2), key("wan22-t2v", "auto"))[1] == ""


def test_auto_takes_the_branches_where_there_is_no_plan(cards: Callable[[int], None]) -> None:
    cards(4)
    auto = parallel_settings("auto", None)
    _, why = placed(auto, key("flux", "auto"), "flux takes its guidance as an input")
    assert "attention heads of FluxTransformer2DModel cannot be shared equally by 4" in why
    sized, why = placed(auto, key("sdxl", "auto"))
    assert (sized.workers, sized.parallel, why) == (2, "auto", "")
    _, why = placed(auto, key("sdxl", "auto"), "with guidance = 1 there is no second branch")
    assert "has no context-parallel plan for UNet2DConditionModel" in why
    sdxl, flux = (denoiser_of_key(key(family)) for family in ("sdxl", "flux"))
    assert sdxl is not None
    assert flux is not None
    assert way_for("auto", *sdxl, 2) == ("cfg", "")
    assert way_for("auto", *flux, 2) == ("ulysses", "")
    assert way_for("auto", *sdxl, 4)[1].startswith("diffusers")
    assert way_for("cfg", *flux, 2) == ("cfg", "")


@pytest.mark.parametrize("verdict", ["slower", "noise", "faster"])
def test_what_auto_has_found_here_not_to_pay_starts_nothing(verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sized = ClusterSettings("local", 2, 1, parallel="auto")
    monkeypatch.setattr(together, "placed", lambda *_: (sized, ""))
    handle, request = PipelineHandle(key("sdxl")), SampleRequest("a fox", steps=1, width=64, height=64)
    plain = OptimizationSettings.plain()
    how = how_split("cfg", 2, cards=False, guided=True)
    probation = Probation()
    probation.whole, probation.split, probation.verdict = [1.0] * 3, [1.5] * 3, verdict
    Remembered(handle, replace(request), plain, how).keep(probation)
    alone = lambda: SampleResult(None, None, None, (), [], {}, OptimizationReport())
    made = lambda request: together.generate_together(sized, handle, request, plain, SILENT, Path(), alone)
    if verdict == "faster":
        with pytest.raises(AssertionError, match="would have been started"):
            made(request)
        return
    record = made(request).report["parallel"]
    day = default_store().rows()[-1].when[:10]
    said = {"slower": "slower", "noise": "no difference beyond the noise"}[verdict]
    assert (record.applied, record.failed) == ("off", False)
    assert record.reason == f"{said} on {day}: 1 s a step on one card, 1.5 s on all"
    with pytest.raises(AssertionError, match="would have been started"):
        made(replace(request, width=512, height=512))  # it is not known of this size


def test_heads_that_cannot_be_shared_are_a_reason() -> None:
    _, why = placed(parallel_settings("ulysses", 7), key("flux"))
    assert why.endswith("attention heads of FluxTransformer2DModel cannot be shared equally by 7 processes")


@pytest.mark.parametrize(
    ("family", "size", "count", "said"),
    [
        ("flux", (80, 80, 1), 2, "the 25 tokens of 80x80 cannot be shared equally by 2 processes; 80x96 is the next"),
        ("flux", (16, 16, 1), 4, "the 1 token of 16x16 cannot be shared equally by 4 processes; 32x32 is the next"),
        ("flux", (64, 64, 1), 2, ""),
        ("wan22-t2v", (48, 48, 9), 2, "the 27 tokens of 48x48 cannot"),
        ("wan22-t2v", (48, 48, 5), 2, ""),
    ],
)
def test_tokens_that_cannot_be_shared_name_the_next_size_that_can(
    family: str, size: tuple[int, int, int], count: int, said: str
) -> None:
    found = uneven(family_of_key(key(family)), *size, count)
    assert found.startswith(said)
    assert bool(found) is bool(said)


def test_what_is_made_by_several_processes_is_not_called_a_cluster() -> None:
    assert parallel_settings("ulysses", 2).called == "parallel ulysses over 2 processes"
    assert parse_cluster("local:2").called == "cluster local:2"


def test_auto_takes_two_cards(cards: Callable[[int], None]) -> None:
    assert placed(parallel_settings("auto", 2), key("flux"))[1].startswith("it takes two cards or more")
    for count, taken in ((0, False), (1, False), (2, True)):
        cards(count)
        sized, why = placed(parallel_settings("auto", None), key("flux", "auto"))
        assert (why == "") is taken
        assert not taken or (sized.workers, sized.cpus) == (count, None)


def test_ulysses_takes_every_card_or_as_many_as_are_named(cards: Callable[[int], None]) -> None:
    cards(4)
    assert placed(parallel_settings("ulysses", None), key("flux", "cuda:0"))[0].workers == 4
    assert placed(parallel_settings("ulysses", 2), key("flux", "auto"))[0].workers == 2
    with pytest.raises(InputError, match="this machine has 4 card"):
        placed(parallel_settings("ulysses", 5), key("flux", "auto"))
    with pytest.raises(InputError, match="takes the first ones"):
        placed(parallel_settings("ulysses", 2), key("flux", "cuda:1"))
    # On the processor, cards do not count.
    assert placed(parallel_settings("ulysses", 8, cpus=1), key("wan22-t2v"))[0].workers in (None, 8)
    cards(1)
    assert placed(parallel_settings("ulysses", None), key("flux", "auto"))[1] == "there is 1 card to use"


def test_without_cards_the_number_of_processes_has_to_be_said(cards: Callable[[int], None]) -> None:
    cards(0)
    _, why = placed(parallel_settings("ulysses", None), key("flux", "auto"))
    assert why.startswith("there are no cards to use, and how many processes of the processor to use is not said")


def test_a_torch_that_was_built_without_it_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert choice.refusal(key("flux"), 2, cards=False) == "this torch was built without torch.distributed"


@pytest.mark.parametrize("devices", [1, 0, -1, 65])
def test_a_number_out_of_range_is_one_line(devices: int) -> None:
    with pytest.raises(InputError, match="over 2 to 64 cards"):
        parallel_settings("ulysses", devices)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--parallel-devices", "2"], "it goes with --parallel"),
        (["--parallel", "ulysses", "--parallel-devices", "1"], "over 2 to 64 cards"),
        (["--parallel", "ring"], "invalid choice"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--model", "tiny:flux", "--prompt", "a fox", "--output", str(tmp_path / "x.png"), *FAST]
    assert cli.main([*words, *options]) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said
    assert "\n" not in said


def test_a_file_of_prompts_is_for_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\n")
    words = ["generate", "--model", "tiny:flux", "--prompts", str(tmp_path / "prompts.txt")]
    rest = ["--output", str(tmp_path / "all"), "--parallel", "ulysses"]
    assert cli.main([*words, *rest]) == 2
    assert "it makes one picture, not a file of prompts. Use --cluster." in capsys.readouterr().err
    at_a_server = ["generate", "--engine", "http://127.0.0.1:9", *words[3:]]
    assert cli.main([*at_a_server, *rest]) == 2
    assert "not a file of prompts. Leave it out." in capsys.readouterr().err


def test_a_servers_cards_are_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--engine", "http://127.0.0.1:1", "--prompt", "a fox", "--output", str(tmp_path / "a.png")]
    assert cli.main([*words, "--parallel", "ulysses"]) == 2
    assert "a server's cards are its own to use. Leave it or --engine out." in capsys.readouterr().err


def test_a_full_temporary_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiffusers.cluster.batch import BATCH
    from fastdiffusers.cluster.connection import ClusterError
    from fastdiffusers.cluster.parallel import processes

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place, own = tmp_path / "run_1", tmp_path / "own"
    for folder in (place, own):
        folder.mkdir()
    (place / BATCH).write_bytes(b"batch")
    monkeypatch.setattr(processes.parcel, "write", full)
    maker: Any = SimpleNamespace(make=lambda *_, **__: object())
    commands: Any = SimpleNamespace(cancelled=set(), ended=threading.Event(), cancels=lambda run: False)
    others: Any = SimpleNamespace(pids=[1], tell=lambda **_: None)
    say: Any = lambda **_: None
    with pytest.raises(ClusterError) as caught:
        processes._lead_one({"run": 1, "folder": str(place)}, maker, commands, say, others, own)
    assert str(caught.value) == (
        f"the result cannot be handed over in {place}: No space left on device. Free some space there, or name a "
        "folder with more in TMPDIR, and run again"
    )


def test_it_does_not_need_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name.startswith("fastdiffusers.cluster.parallel.")]:
        monkeypatch.delitem(sys.modules, name)
    import importlib

    assert importlib.import_module("fastdiffusers.cluster.parallel.processes").main
