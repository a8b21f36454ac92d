"""A batch of ComfyUI's on a cluster, without Ray: what travels, what the driver does with it, what comes together."""

from __future__ import annotations

import io
import json
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

sys.path.append(str(Path(__file__).parent))

from test_drive import PlayedFleet

from fastdiffusers.callbacks import SILENT, Callbacks, Progress
from fastdiffusers.cluster import parcel
from fastdiffusers.cluster.batch import BATCH, BatchWork, Errand, joined
from fastdiffusers.cluster.child import client, commands, driver, lines
from fastdiffusers.cluster.child.run import DriverEndedError, GoneError, Run
from fastdiffusers.cluster.connection import ClusterError, is_gone
from fastdiffusers.cluster.settings import ClusterSettings
from fastdiffusers.cluster.worker import as_text, kind_of
from fastdiffusers.errors import InputError, MissingDependencyError, ModelFileError
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings
from fastdiffusers.pipelines.conditions import kinds
from fastdiffusers.pipelines.embeddings.given import Embeddings
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import family_of_key, resolve
from fastdiffusers.pipelines.requested.item import item_of_batch
from fastdiffusers.pipelines.types import LoraSpec, PipelineHandle, SampleRequest, SampleResult
from fastdiffusers.report import OptimizationRecord, OptimizationReport

PLAIN = OptimizationSettings.plain()


def handle(name: str = "flux") -> PipelineHandle:
    return PipelineHandle(resolve(f"tiny:{name}", device="cpu", dtype="float32"))


def request(**more: Any) -> SampleRequest:
    return replace(SampleRequest("a fox", steps=2, width=64, height=64, seed=7), **more)


def same(one: Any, other: Any) -> bool:
    """Whether two values are alike, tensors bit for bit and with their types."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_request_with_everything_in_it_travels_unchanged(tmp_path: Path) -> None:
    pictures = torch.rand(2, 8, 8, 3)
    control = kinds.ControlNetKey("tiny:flux", "", "FluxControlNetModel")
    whole = (
        replace(handle("wan22-t2v"), loras=(LoraSpec("/a.safetensors", 0.5, "high"),), memory_mode="gpu"),
        request(
            seed=2**64 - 1,
            images=tuple(pictures),  # two views of one tensor
            latent=torch.rand(1, 16, 4, 4).to(torch.bfloat16),
            positive=Embeddings(torch.rand(2, 5, 3), pooled=torch.rand(2, 4), crop=(1, 2)),
            conditions=(
                kinds.MaskCondition(torch.rand(1, 8, 8).round(), of_latent=True),
                kinds.ControlCondition(pictures, control, 0.5),
                kinds.VideoCondition(pictures, "control", 8.0),
                kinds.KeyframeCondition(pictures[:1].permute(0, 2, 1, 3), -1),
            ),
        ),
        OptimizationSettings(compile=CompileSettings(mode="max-autotune"), attention="sdpa"),
        "",
    )
    parcel.write(tmp_path / "p", whole)
    assert same(parcel.read(tmp_path / "p"), whole)


def test_what_cannot_travel_is_named(tmp_path: Path) -> None:
    with pytest.raises(parcel.ParcelError, match=r"value\[0\]\.vae cannot be sent .*SimpleNamespace"):
        parcel.write(tmp_path / "p", (replace(handle(), vae=SimpleNamespace()),))


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_half_a_parcel_is_none(tmp_path: Path, cut: int) -> None:
    parcel.write(tmp_path / "p", [torch.rand(3), "text"])
    (tmp_path / "p").write_bytes((tmp_path / "p").read_bytes()[:cut])
    with pytest.raises(parcel.ParcelError, match="p is no whole parcel"):
        parcel.read(tmp_path / "p")


@pytest.mark.parametrize(
    "error",
    [
        InputError("width", 7, "it must be a multiple of 16", "set it to 16"),
        ModelFileError("model", "/x", "it is not there"),
        MissingDependencyError("ray", "a cluster", "pip install 'ray>=2.50'"),
        ClusterError("no worker could start"),
    ],
)
def test_an_error_keeps_its_type_and_text_across_the_pipe(error: Exception) -> None:
    there = lines.error_of(json.loads(json.dumps(lines.error_line(error))))
    assert type(there) is type(error)
    assert str(there) == str(error)


def test_another_librarys_error_comes_as_its_first_line() -> None:
    there = lines.error_of(lines.error_line(ValueError("first\nsecond")))
    assert type(there) is ClusterError
    assert str(there) == "ValueError: first"


def test_a_preview_crosses_the_pipe() -> None:
    latent = torch.randn(4, 1, 6, 5)
    line = lines.progress_line(Progress("denoise", 1, 2, "", latent, "Wan21"), with_preview=True)
    there = lines.preview_of(json.loads(json.dumps(line)))
    assert there is not None
    assert torch.equal(there, latent.half())
    assert line["format"] == "Wan21"
    assert lines.preview_of(lines.progress_line(Progress("denoise", 1, 2, "", latent), with_preview=False)) is None


def test_an_item_has_its_own_seed_text_latent_and_mask() -> None:
    family = family_of_key(handle("sd3").key)
    latents, masks = torch.rand(2, 16, 8, 8), torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    batch = request(
        seed=2**64 - 1,
        batch=3,
        latent=latents,
        strength=0.5,
        positive=Embeddings(torch.rand(2, 5, 3)),
        conditions=(kinds.MaskCondition(masks, of_latent=True),),
    )
    items = [item_of_batch(family, batch, index) for index in range(3)]
    assert [item.seed for item in items] == [2**64 - 1, 0, 1]
    assert {item.batch for item in items} == {1}
    for index, item in enumerate(items):
        assert batch.positive is not None
        assert item.positive is not None
        assert item.latent is not None
        assert torch.equal(item.latent, latents[index % 2 : index % 2 + 1])
        assert torch.equal(item.positive.tokens, batch.positive.tokens[index % 2 : index % 2 + 1])
        (mask,) = item.conditions
        assert isinstance(mask, kinds.MaskCondition)
        assert torch.equal(mask.mask, masks[index % 2 : index % 2 + 1])


@pytest.mark.parametrize("name", ["sd3", "zimage"])
def test_items_of_a_batch_of_latents_are_those_of_the_batch(name: str) -> None:
    """With a mask for each; a batch that is made at once rounds otherwise."""
    family = family_of_key(handle(name).key)
    latents = torch.randn(2, family.latent_channels, 64 // family.latent_stride, 64 // family.latent_stride)
    masks = torch.zeros(2, 64, 64)
    masks[0, :32], masks[1, :, :32] = 1, 1
    mask = kinds.MaskCondition(masks, of_latent=True)
    batch = request(batch=2, latent=latents, strength=0.6, steps=4, conditions=(mask,))
    at_once = generate(handle(name), batch, PLAIN)
    for index in range(2):
        alone = generate(handle(name), item_of_batch(family, batch, index), PLAIN)
        assert at_once.latent is not None
        assert alone.latent is not None
        torch.testing.assert_close(alone.latent[0], at_once.latent[index], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(at_once.latent[0], at_once.latent[1], atol=0.1)


@dataclass
class Commands:
    """What the driver hears, as a test has it."""

    cancelled: set[int]
    ended: Any
    seconds: float = 0.0

    def cancels(self, run: int, within: float = 0.0) -> bool:
        return run in self.cancelled


def hears(*cancelled: int, ended: bool = False) -> Any:
    return Commands(set(cancelled), SimpleNamespace(is_set=lambda: ended))


def made(tmp_path: Path, script: Any, batch: SampleRequest, commands: Any = None, name: str = "flux") -> list[Any]:
    """What the driver says of a batch whose workers follow the script."""
    told: list[Any] = []
    parcel.write(tmp_path / BATCH, (handle(name), batch, PLAIN, ""))
    command = {"run": 3, "folder": str(tmp_path), "count": batch.batch, "model": "flux"}
    say = lambda **line: told.append(json.loads(json.dumps(line)))
    driver.make(command, ClusterSettings(), PlayedFleet(2, script), commands or hears(), say)  # type: ignore[arg-type]
    return told


def real_work(worker: str, errand: Errand) -> list[tuple[Any, ...]]:
    ticks: list[tuple[Any, ...]] = []
    callbacks = Callbacks(lambda progress: ticks.append(("tick", progress)))
    result, loading = BatchWork()(errand, callbacks, {"worker": worker, "threads": 1})
    return [*ticks, ("done", result, 1.0, loading)]


def test_a_batch_is_what_single_runs_are(tmp_path: Path) -> None:
    told = made(tmp_path, real_work, request(batch=3))
    assert told[0] == {"event": "accepted", "run": 3}
    assert told[-1] == {"event": "over", "run": 3, "how": "done"}
    there = {line["item"]: parcel.read(Path(line["file"])) for line in told if line["event"] == "made"}
    who = {line["item"]: line["worker"] for line in told if line["event"] == "made"}
    assert set(who.values()) == {"w1", "w2"}
    assert any("preview" in line for line in told if line["event"] == "tick")
    whole = joined([there[index] for index in range(3)], who, "local:2")
    assert whole.seeds == (7, 8, 9)
    assert whole.frames is not None
    assert whole.latent is not None
    for index in range(3):
        alone = generate(handle(), request(seed=7 + index), PLAIN)
        assert alone.frames is not None
        assert alone.latent is not None
        assert torch.equal(whole.frames[index], alone.frames[0])
        assert torch.equal(whole.latent[index], alone.latent[0])
    facts = whole.report.facts
    assert facts["seeds"] == [7, 8, 9]
    assert sorted(seed for seeds in facts["seeds by worker"].values() for seed in seeds) == [7, 8, 9]
    assert facts["cluster"] == "local:2"


def test_a_clip_keeps_its_frame_rate(tmp_path: Path) -> None:
    told = made(tmp_path, real_work, request(batch=2, num_frames=5), name="wan22-t2v")
    (first, second) = (parcel.read(Path(line["file"])) for line in told if line["event"] == "made")
    assert first.frames.shape[1] == second.frames.shape[1] == 5
    assert joined([first, second], {0: "a", 1: "b"}, "local").frame_rate == first.frame_rate


def test_a_worker_that_does_not_share_the_folder_sends_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))

    def elsewhere(worker: str, errand: Errand) -> list[tuple[Any, ...]]:
        content = (errand.place.parent / BATCH).read_bytes()
        return real_work(worker, replace(errand, place=Path("/not/here/1"), batch=content))

    told = made(tmp_path, elsewhere, request(batch=1))
    (line,) = (line for line in told if line["event"] == "made")
    there = parcel.read(Path(line["file"]))
    alone = generate(handle(), request(), PLAIN)
    assert there.frames.dtype == torch.float16
    assert torch.equal(there.frames, alone.frames.half())  # type: ignore[union-attr]
    assert torch.equal(there.latent, alone.latent)  # type: ignore[arg-type]
    whole = joined([there], {0: "far/1"}, "h:1")
    assert "its pictures came as 16-bit numbers: w1 does not share" in whole.report.notes[-1]


def test_one_image_that_fails_ends_the_run_with_one_line(tmp_path: Path) -> None:
    def script(worker: str, errand: Errand) -> list[tuple[Any, ...]]:
        if errand.index == 1:
            return [("failed", "item", "OutOfMemoryError: 80 GiB")]
        return [("tick", Progress("denoise", 1, 9))] * 1000

    over = made(tmp_path, script, request(batch=4))[-1]
    assert over["how"] == "failed"
    assert str(lines.error_of(over)) == "image 2 failed on w2: OutOfMemoryError: 80 GiB"


def test_a_full_disk_is_one_line_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def script(worker: str, errand: Errand) -> list[tuple[Any, ...]]:
        with monkeypatch.context() as patch:
            patch.setattr(safetensors.torch, "save_file", full)
            try:
                return real_work(worker, errand)
            except OSError as error:
                return [("failed", kind_of(error), as_text(error))]

    over = made(tmp_path, script, request(batch=2))[-1]
    assert over["how"] == "failed"
    text = str(lines.error_of(over))
    assert "No space left on device" in text
    assert text.endswith(f"Free some space in {tmp_path.parent} and run again")
    assert "\n" not in text


def test_a_model_that_no_worker_can_read_ends_the_run(tmp_path: Path) -> None:
    over = made(tmp_path, lambda *_: [("failed", "model", "it is not there")], request(batch=2))[-1]
    assert over["how"] == "failed"
    assert "it is not there" in str(lines.error_of(over))


def test_a_cancelled_run_is_said_to_be(tmp_path: Path) -> None:
    endless = lambda *_: [("tick", Progress("denoise", 1, 9))] * 1000
    assert made(tmp_path, endless, request(batch=2), hears(3)) == [{"event": "over", "run": 3, "how": "cancelled"}]
    commands = hears()

    def cancelling(worker: str, errand: Errand) -> list[tuple[Any, ...]]:
        commands.cancelled.add(3)
        return endless()

    assert made(tmp_path, cancelling, request(batch=2), commands)[-1]["how"] == "cancelled"


def test_the_end_of_its_input_ends_a_run(tmp_path: Path) -> None:
    with pytest.raises(commands.EndedError):
        made(tmp_path, lambda *_: [], request(batch=2), hears(ended=True))


def test_a_run_whose_folder_is_gone_was_cancelled_or_is_an_error(tmp_path: Path) -> None:
    told: list[Any] = []
    command = {"run": 3, "folder": str(tmp_path / "gone"), "count": 1, "model": "flux"}
    say: Any = lambda **line: told.append(line)
    with pytest.raises(FileNotFoundError):
        driver.make(command, ClusterSettings(), PlayedFleet(1, real_work), hears(), say)  # type: ignore[arg-type]
    late: Any = SimpleNamespace(cancelled=set(), cancels=lambda run: True)
    driver.make(command, ClusterSettings(), PlayedFleet(1, real_work), late, say)  # type: ignore[arg-type]
    assert told[-1] == {"event": "over", "run": 3, "how": "cancelled"}


def test_a_head_that_is_gone_for_good_ends_the_driver_with_one_line() -> None:
    answers = iter([True, True, False, True, True, True])
    told: list[Any] = []
    say: Any = lambda **line: told.append(line)
    driver.watch(lambda: next(answers), say, lambda: told.append("ended"), seconds=0.0)
    assert [next(answers, "all were asked")] == ["all were asked"]
    assert told[-1] == "ended"
    assert str(lines.error_of(told[0])) == "Ray's head has ended. Run again: it is started anew"
    assert (told[0]["run"], told[0]["how"]) == (0, "failed")


def test_ray_is_gone_with_its_processes_or_when_its_head_does_not_answer() -> None:
    def ray(port: int, status: int | None) -> Any:
        process = SimpleNamespace(process=SimpleNamespace(poll=lambda: status))
        node = SimpleNamespace(all_processes={"raylet": [process]})
        context = SimpleNamespace(gcs_address=f"127.0.0.1:{port}")
        internals = SimpleNamespace(worker=SimpleNamespace(_global_node=node))
        return SimpleNamespace(_private=internals, get_runtime_context=lambda: context)

    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        assert not is_gone(ray(port, None))
        assert is_gone(ray(port, -9))
    assert is_gone(ray(port, None))


def test_lines_are_read_until_the_input_ends() -> None:
    text = b'{"do": "make", "run": 1}\n{"do": "cancel", "run": 1}\n{"do": "make", "run": 2}\n'
    heard = commands.Commands(io.BytesIO(text), lambda: None, end_seconds=10**6)
    assert [heard.next(), heard.next(), heard.next()] == [{"do": "make", "run": 1}, {"do": "make", "run": 2}, None]
    assert heard.cancelled == {1}
    assert heard.ended.is_set()


def test_what_workers_report_otherwise_is_said() -> None:
    def item(seed: int, attention: str, *notes: str) -> SampleResult:
        record = OptimizationRecord("attention", "auto", attention, "measured" if attention == "sage" else "")
        facts = {"device": "cuda:0", "seconds": {"denoise": 1.0}, "worker": "w", "model": "flux"}
        report = OptimizationReport([record], list(notes), facts)
        sound = {"waveform": torch.full((1, 2, 4), float(seed)), "sample_rate": 8}
        return SampleResult(None, torch.full((1, 4, 2, 2), seed), None, (seed,), [0.5], {"denoise": 0.5}, report, sound)

    whole = joined([item(1, "sdpa", "both"), item(2, "sage", "both", "one")], {0: "a/1", 1: "b/2"}, "h:1")
    assert whole.report.notes == ["both", "image 2: one", "image 2 (b/2): attention sage: measured"]
    assert whole.report.facts["seeds by worker"] == {"a/1": [1], "b/2": [2]}
    assert "worker" not in whole.report.facts
    assert whole.frames is None
    assert whole.latent is not None
    assert whole.latent[:, 0, 0, 0].tolist() == [1, 2]
    assert whole.audio is not None
    assert whole.audio["waveform"][:, 0, 0].tolist() == [1, 2]
    assert whole.stage_seconds == {"denoise": 1.0}


def test_what_cannot_be_done_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    client.check(handle(), request())
    with pytest.raises(InputError, match="has a card of its own"):
        client.check(replace(handle(), key=replace(handle().key, device="cuda:1")), request())
    with pytest.raises(InputError, match="width"):
        client.check(handle(), request(width=-63))
    with pytest.raises(InputError):
        client.check(replace(handle(), loras=(LoraSpec("/not/there.safetensors"),)), request())
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ray>=2.50'"):
        client.check(handle(), request())
    assert client.running() is None


def test_a_worker_shows_the_first_frame_of_a_clip() -> None:
    from fastdiffusers.cluster.worker import small

    clip = torch.randn(4, 3, 6, 5)
    assert torch.equal(small(clip), clip[:, :1].half())
    assert torch.equal(small(clip[:, 0]), clip[:, 0].half())
    assert small(None) is None


def test_silent_callbacks_ask_for_no_preview() -> None:
    assert SILENT.previews is False
    assert BatchWork.previews is True


class PlayedDriver:
    """A driver that says what its script has for it; `runs` of 1 or more is one that is there."""

    def __init__(self, folder: Path, script: list[Any], runs: int = 0) -> None:
        self.folder, self.script, self.runs = folder, script, runs
        self.heard: list[str] = []
        self.process = SimpleNamespace(kill=lambda: self.heard.append("killed"))

    def say(self, do: str, **line: Any) -> bool:
        self.heard.append(do)
        return True

    def next(self, seconds: float) -> Any:
        return self.script.pop(0) if self.script else {}

    def why_ended(self) -> str:
        return "it was ended by signal 9"


def run_of(driver: PlayedDriver, callbacks: Callbacks = SILENT) -> SampleResult:
    played: Any = driver
    return Run(played, ClusterSettings(workers=2), callbacks).make((handle(), request(), PLAIN, ""), 2)


class Cancelled(BaseException):
    """What a host's interrupt is."""


def cancelling(after: int) -> Callbacks:
    """Callbacks that cancel when they are asked for the so manieth time."""
    asked = iter(range(after))

    def check() -> None:
        if next(asked, None) is None:
            raise Cancelled

    return Callbacks(check_cancel=check)


def test_a_driver_that_has_ended_is_one_line_or_started_anew(tmp_path: Path) -> None:
    with pytest.raises(DriverEndedError, match=r"cluster local:2 has ended: it was ended by signal 9\. Run again"):
        run_of(PlayedDriver(tmp_path, [{"event": "ready"}, {"event": "accepted", "run": 1}, None]))
    for lines_of_it in ([None], [{"event": "gone"}]):
        with pytest.raises(GoneError):
            run_of(PlayedDriver(tmp_path, lines_of_it, runs=3))
    error = InputError("cluster", "local:2", "this machine has 1 card(s)", "use local:1")
    with pytest.raises(InputError, match="has 1 card"):
        run_of(PlayedDriver(tmp_path, [{"event": "over", "run": 0, "how": "failed", **lines.error_line(error)}]))
    assert list(tmp_path.iterdir()) == [], "nothing of a run is left"


def test_a_cancel_waits_for_the_workers_but_not_for_a_start(tmp_path: Path) -> None:
    starting = PlayedDriver(tmp_path, [])
    with pytest.raises(Cancelled):
        run_of(starting, cancelling(3))
    assert starting.heard == ["make", "cancel"]
    tick = {
        "event": "tick",
        "run": 5,
        "item": 0,
        "worker": "w",
        "stage": "denoise",
        "done": 1,
        "total": 9,
        "message": "",
    }
    script = [{"event": "accepted", "run": 5}, tick, tick, tick, {"event": "over", "run": 5, "how": "cancelled"}, tick]
    there = PlayedDriver(tmp_path, script, runs=4)
    with pytest.raises(Cancelled):
        run_of(there, cancelling(2))
    assert there.heard == ["make", "cancel"]
    assert there.script == [tick], "it was listened to until it had stopped"


def test_a_progress_bar_that_cancels_stops_the_workers_too(tmp_path: Path) -> None:
    """ComfyUI's raises in the middle of showing; workers that went on would lose the next run."""
    tick = {"event": "tick", "run": 5, "item": 0, "worker": "w", "stage": "denoise", "done": 1, "total": 9}
    over = {"event": "over", "run": 5, "how": "cancelled"}
    script = [{"event": "accepted", "run": 5}, tick | {"message": ""}, tick | {"message": ""}, over]
    there = PlayedDriver(tmp_path, script, runs=4)

    def shown(progress: Progress) -> None:
        if progress.stage == "denoise":
            raise Cancelled

    with pytest.raises(Cancelled):
        run_of(there, Callbacks(on_progress=shown))
    assert there.heard == ["make", "cancel"]
    assert there.script == [], "it was listened to until it had stopped"
    assert list(tmp_path.iterdir()) == []

    def never(progress: Progress) -> None:
        raise Cancelled

    starting = PlayedDriver(tmp_path, [])
    with pytest.raises(Cancelled):
        run_of(starting, Callbacks(on_progress=never))
    assert starting.heard == ["make", "cancel"]


def test_a_run_that_is_over_is_not_cancelled(tmp_path: Path) -> None:
    failed = {"event": "over", "run": 2, "how": "failed", **lines.error_line(ClusterError("image 1 failed on w: no"))}
    for last, error in ((failed, ClusterError), (failed | {"run": 0}, ClusterError), (None, DriverEndedError)):
        driver = PlayedDriver(tmp_path, [{"event": "accepted", "run": 2}, last], runs=1)
        with pytest.raises(error):
            run_of(driver)
        assert driver.heard == ["make"]


def test_what_other_runs_left_is_passed_over_and_failures_are_raised(tmp_path: Path) -> None:
    old = {"event": "over", "run": 1, "how": "done"}
    failed = {"event": "over", "run": 2, "how": "failed", **lines.error_line(ClusterError("image 1 failed on w: no"))}
    with pytest.raises(ClusterError, match="image 1 failed on w: no"):
        run_of(PlayedDriver(tmp_path, [old, {"event": "accepted", "run": 2}, failed], runs=1))
