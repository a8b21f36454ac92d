"""Serving engines: what is sent, what comes back, and what each way of failing says, against a server that fails so."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_server
import numpy as np
import pytest
import torch
from engine_server import MODEL, EngineServer, as_type, clip_pixels, pixels, serving, slow, status
from PIL import Image

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.engines import connection, decoding, images, requests, videos
from fastdiffusers.engines.generate import generate
from fastdiffusers.engines.requests import CLIPS, PICTURES
from fastdiffusers.engines.settings import HOSTS, KEY, Engine, check_host, parse_engine
from fastdiffusers.errors import FastDiffusersError, InputError
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.types import SampleRequest, SampleResult

IMAGES = "/v1/images/generations"
EDITS = "/v1/images/edits"
JOBS = "/v1/videos"
FOX = SampleRequest("a fox", seed=7)
SECRET = "sk-never-shown-1234"  # noqa: S105 - of no server


def _png_of(size: tuple[int, int], data: bytes) -> str:
    """A PNG whose head is good, in base64."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


HUGE, DAMAGED = _png_of((60000, 60000), zlib.compress(b"")), _png_of((8, 8), b"no stream of zlib's")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(connection, "LISTEN_SECONDS", 0.02)
    monkeypatch.setattr(videos, "POLL_SECONDS", 0.02)
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.delenv(HOSTS, raising=False)


@pytest.fixture(params=["sglang", "sglang-old", "vllm-omni"])
def server(request: pytest.FixtureRequest) -> Iterator[EngineServer]:
    with serving(request.param) as server:
        yield server


@pytest.fixture
def sglang() -> Iterator[EngineServer]:
    with serving("sglang") as server:
        yield server


def engine(server: EngineServer, **how: Any) -> Engine:
    return replace(parse_engine(server.url), **how)


def bytes_of(result: SampleResult) -> np.ndarray[Any, Any]:
    """uint8 [B, T, H, W, C]."""
    return (result.frames * 255).round().byte().numpy()


def failure(server: EngineServer, request: SampleRequest = FOX, **how: Any) -> str:
    """The one line that a run ends with."""
    with pytest.raises(FastDiffusersError) as raised:
        generate(engine(server, **how), request)
    for text in (str(raised.value), raised.value.in_short()):
        assert len(text.splitlines()) == 1
        assert len(text) < 700
    assert server.url in str(raised.value) or isinstance(raised.value, InputError)
    return str(raised.value)


def test_a_batch_is_a_request_for_each_with_the_seed_that_it_has_here(server: EngineServer) -> None:
    request = SampleRequest("a fox", "a dog", 4, 3.5, width=96, height=32, seed=2**64 - 1, batch=3)
    result = generate(engine(server, makes="images"), request)
    seeds = (2**64 - 1, 0, 1)
    assert result.seeds == seeds
    assert np.array_equal(bytes_of(result)[:, 0], np.stack([pixels(seed, "a fox", "96x32") for seed in seeds]))
    assert (result.latent, result.frame_rate, result.audio) == (None, None, None)
    asked = server.to(IMAGES)
    assert [each.fields["seed"] for each in asked] == list(seeds)
    for each in asked:
        assert {name: value for name, value in each.fields.items() if name != "seed"} == {
            "prompt": "a fox",
            "negative_prompt": "a dog",
            "num_inference_steps": 4,
            "guidance_scale": 3.5,
            "size": "96x32",
            "n": 1,
            "response_format": "b64_json",
            "output_format": "png",
        }
        assert "Authorization" not in each.headers
    facts = result.report.facts
    assert (facts["model"], facts["size"], facts["seeds"], facts["steps"]) == (MODEL, "96x32", list(seeds), 4)
    assert server.url in facts["engine"]
    assert any("num_inference_steps, guidance_scale, negative_prompt" in note for note in result.report.notes)


def test_what_is_not_given_is_left_to_the_server(server: EngineServer) -> None:
    result = generate(engine(server, makes="images"), FOX)
    (asked,) = server.to(IMAGES)
    assert asked.fields.keys() == {"prompt", "seed", "n", "response_format", "output_format"}
    assert np.array_equal(bytes_of(result)[0, 0], pixels(7, "a fox"))
    assert result.report.notes == []


def test_pictures_to_work_on_are_uploaded_without_loss(server: EngineServer) -> None:
    given = torch.from_numpy(np.stack([pixels(1, "one"), pixels(2, "two")])).float() / 255
    result = generate(engine(server, makes="images"), replace(FOX, prompt="größer ✓", images=tuple(given)))
    (asked,) = server.to(EDITS)
    assert [name for name, _ in asked.files] == ["image", "image"]
    for (_, data), picture in zip(asked.files, given, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), (picture * 255).round().byte().numpy())
    assert (asked.fields["prompt"], asked.fields["seed"]) == ("größer ✓", "7")
    assert np.array_equal(bytes_of(result)[0, 0], 255 - pixels(2, "two"))


@pytest.mark.parametrize("with_picture", [False, True])
def test_clips_are_jobs_with_progress(server: EngineServer, with_picture: bool) -> None:
    server.task, server.polls = "T2V", 3
    request = replace(FOX, num_frames=5, frame_rate=8.0, width=64, height=48, flow_shift=3.0, batch=2)
    if with_picture:
        request = replace(request, images=(torch.from_numpy(pixels(1, "one")).float() / 255,))
    ticks: list[Progress] = []
    result = generate(engine(server), request, callbacks=Callbacks(ticks.append))
    assert result.frames is not None
    assert tuple(result.frames.shape) == (2, 5, 48, 64, 3)
    assert (result.frame_rate, result.report.facts["size"]) == (8.0, "64x48x5")
    for index, asked in enumerate(server.to(JOBS)):
        assert int(asked.fields["seed"]) == 7 + index
        assert {int(asked.fields["num_frames"]), int(asked.fields["fps"])} == {5, 8}
        assert float(asked.fields["flow_shift"]) == 3.0
        is_form = asked.headers["Content-Type"].startswith("multipart/form-data")
        assert is_form == (with_picture or server.kind == "vllm-omni")
        assert [name for name, _ in asked.files] == ["input_reference"] * with_picture
        expected = clip_pixels(asked.fields)
        assert np.abs(bytes_of(result)[index].astype(int) - expected).mean() < 4, "but for what the codec loses"
    assert [tick.done for tick in ticks] == sorted(tick.done for tick in ticks)
    assert {40, 80, 100, 140, 180, 200} <= {tick.done for tick in ticks}
    assert {tick.total for tick in ticks} == {200}
    assert "clip 2 of 2: in progress" in {tick.message for tick in ticks}


def test_the_sound_of_a_video_comes_with_it(sglang: EngineServer) -> None:
    sglang.task, sglang.sound = "T2V", True
    result = generate(engine(sglang), replace(FOX, batch=2))
    assert result.audio is not None
    waves, rate = result.audio["waveform"], result.audio["sample_rate"]
    assert (rate, waves.shape[:2]) == (engine_server.SAMPLE_RATE, (2, 2))
    assert waves.shape[2] / rate == pytest.approx(engine_server.FRAMES / engine_server.RATE, abs=0.15)
    assert 0.3 < float(waves.abs().max()) < 0.7
    assert "sound" in result.report.facts


@pytest.mark.parametrize(("frames", "video"), [(None, False), (1, False), (5, True)])
def test_a_server_that_does_not_say_what_it_makes_is_asked_for_what_the_frames_say(
    frames: int | None, video: bool
) -> None:
    with serving("vllm-omni") as server:
        generate(engine(server), replace(FOX, num_frames=frames))
        assert bool(server.to(JOBS)) == video


def test_settings_are_named_as_not_had(sglang: EngineServer) -> None:
    settings = OptimizationSettings(attention="sage", torch_compile="on", compile=CompileSettings(mode="max-autotune"))
    report = generate(engine(sglang), FOX, settings).report
    named = {record.name: record.requested for record in report if record.failed}
    assert named == {"attention": "sage", "torch_compile": "on", "compile": "mode max-autotune"}
    assert "not had: attention sage" in report.as_text()
    assert generate(engine(sglang), FOX, OptimizationSettings()).report.headline == "engine SGLang-Diffusion"


PICTURE = torch.zeros(8, 8, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": "euler"},
        {"strength": 0.5, "images": (PICTURE,)},
        {"last_image": PICTURE},
        {"latent": torch.zeros(1, 4, 8, 8)},
        {"max_sequence_length": 64},
        {"guidance_2": 3.0},
        {"decode": False},
        {"flow_shift": 3.0},
        {"conditions": (object(),)},
        {"argument": "eta"},
        {"width": 64},
        {"steps": 0},
        {"seed": -1},
        {"batch": 65},
        {"prompt": "a\0b"},
        {"prompt": "\ud800"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_no_field_says_is_refused_before_anything_is_made(changes: dict[str, Any], sglang: EngineServer) -> None:
    given = ArgumentCondition(changes["argument"], 0.5) if "argument" in changes else None
    message = failure(sglang, replace(FOX, **(changes if given is None else {"conditions": (given,)})))
    assert message.startswith(("height" if "width" in changes else next(iter(changes))) + " = ")
    assert "Condition" not in message
    assert all(asked.method == "GET" for asked in sglang.asked)


@pytest.mark.parametrize(
    "changes",
    [{"images": (PICTURE, PICTURE)}, {"frame_rate": 23.976}, {"guidance_2": 3.0}, {"last_image": PICTURE}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_no_field_says_of_a_clip_is_refused(changes: dict[str, Any], sglang: EngineServer) -> None:
    sglang.task = "I2V"
    assert failure(sglang, replace(FOX, **changes)).startswith(next(iter(changes)))


def test_any_size_passes_the_checks_of_a_model_that_nobody_knows() -> None:
    odd = replace(FOX, width=853, height=479, steps=3, guidance=0.0)
    assert check_request(PICTURES, odd) == []
    assert check_request(CLIPS, replace(odd, num_frames=80, frame_rate=16.0)) == []


def test_another_size_than_asked_for_is_named(sglang: EngineServer) -> None:
    sglang.faults[IMAGES] = [lambda handler: handler.images([engine_server.png(pixels(7, "a fox", "64x64"))])]
    report = generate(engine(sglang), replace(FOX, width=60, height=64)).report
    assert "size: 64x64 came instead of 60x64: the server's model makes that." in report.notes


@pytest.mark.parametrize("task", ["T2I", "T2V"])
def test_what_is_finished_of_a_batch_is_kept_when_the_server_fails(task: str, sglang: EngineServer) -> None:
    sglang.task = task
    sglang.faults[IMAGES if task == "T2I" else JOBS] = [None, None, status(400, {"detail": "this one cannot be drawn"})]
    result = generate(engine(sglang), replace(FOX, batch=4))
    what = "pictures" if task == "T2I" else "clips"
    assert result.missing.startswith(f"{what} 3 to 4 of 4 are missing: engine {sglang.url}")
    assert "this one cannot be drawn" in result.missing
    assert result.missing in result.report.notes
    assert result.frames is not None
    assert len(result.frames) == 2
    assert result.seeds == (7, 8)
    assert result.report.facts["seeds"] == [7, 8]
    sglang.faults[IMAGES if task == "T2I" else JOBS] = [status(400, {"detail": "none of them"})]
    assert "none of them" in failure(sglang, replace(FOX, batch=2))
    assert generate(engine(sglang), replace(FOX, batch=2)).missing == ""


def test_a_busy_server_is_asked_again(server: EngineServer) -> None:
    server.faults[IMAGES] = [status(503, {"detail": "loading"}, Retry_After="0"), status(429, "slow down"), None]
    ticks: list[Progress] = []
    result = generate(engine(server, makes="images"), FOX, callbacks=Callbacks(ticks.append))
    assert np.array_equal(bytes_of(result)[0, 0], pixels(7, "a fox"))
    assert len(server.to(IMAGES)) == 3
    assert any("busy (503)" in tick.message for tick in ticks)


def test_a_server_that_stays_busy_is_taken_at_its_word(sglang: EngineServer) -> None:
    sglang.faults[IMAGES] = [status(503, {"detail": "Diffusion engine not initialized."})] * 9
    assert "(503): Diffusion engine not initialized" in failure(sglang)
    assert len(sglang.to(IMAGES)) == len(connection.PAUSES) + 1


def test_a_busy_server_is_no_silent_one_where_time_is_short(sglang: EngineServer) -> None:
    sglang.faults[IMAGES] = [status(503, {"detail": "loading"})] * 9
    assert "(503): loading" in failure(sglang, patience=1.5)


def test_a_server_that_fails_is_no_wrong_address(sglang: EngineServer) -> None:
    sglang.faults["GET /v1/models"] = [status(500, {"detail": "out of memory"})]
    assert "/v1/models failed (500): out of memory" in failure(sglang)


HTML = b"<!DOCTYPE html><html><body>Welcome to the router</body></html>"
LONG = "x" * 5000
ANSWERS = [
    ("400", status(400, {"detail": "Invalid size format: '1x'."}), "(400): Invalid size format: '1x'"),
    ("422", status(422, {"detail": [{"loc": ["body", "n"], "msg": "too many"}]}), "(422): n: too many"),
    ("500", status(500, {"error": {"message": "CUDA out of\nmemory"}}), "(500): CUDA out of memory"),
    ("text", status(500, "Internal Server Error"), "(500): Internal Server Error"),
    ("long", status(400, {"detail": LONG}), "xxx..."),
    ("502", as_type("text/html", HTML, 502), "failed (502)"),
    ("html", as_type("text/html", HTML), "text/html, not JSON"),
    ("deep", as_type("application/json", b"[" * 100_000), "no JSON object"),
    ("list", as_type("application/json", b"[]"), "no JSON object"),
    ("none", status(200, {"data": []}), "0 came"),
    ("null", status(200, {"data": None}), "no came"),
    ("url", status(200, {"data": [{"url": "/v1/images/x/content"}]}), "no b64_json"),
    ("base64", status(200, {"data": [{"b64_json": "%%%"}]}), "cannot be read: what came is no base64 text. Run"),
    (
        "no-picture",
        status(200, {"data": [{"b64_json": "AAAA"}]}),
        "the 3 bytes that came are no whole PNG, JPEG or WebP",
    ),
    ("huge", status(200, {"data": [{"b64_json": HUGE}]}), "more than is read"),
    (
        "damaged",
        status(200, {"data": [{"b64_json": DAMAGED}]}),
        "that came are no whole PNG, JPEG or WebP file. Run it",
    ),
    ("truncated", engine_server.truncated_png, "that came are no whole PNG, JPEG or WebP file. Run it again."),
    ("hang-up", engine_server.hang_up, "the connection broke"),
    ("compressed", status(200, {}, Content_Encoding="gzip"), "compressed"),
    ("redirect", status(307, {}, Location="http://example.com/v1/images/generations"), "not followed"),
    ("moved", status(301, {}, Location="/elsewhere"), "not followed"),
]


@pytest.mark.parametrize(("fault", "says"), [(fault, says) for _, fault, says in ANSWERS], ids=[a[0] for a in ANSWERS])
def test_a_wrong_answer_is_one_line(fault: engine_server.Fault, says: str, sglang: EngineServer) -> None:
    sglang.faults[IMAGES] = [fault]
    assert says in failure(sglang)
    assert len(sglang.to(IMAGES)) == 1


def test_pillow_reading_files_that_are_cut_off_changes_nothing(
    sglang: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    sglang.faults[IMAGES] = [engine_server.truncated_png]
    assert "cannot be read" in failure(sglang)


def test_transparency_comes_through(sglang: EngineServer) -> None:
    clear = np.concatenate([pixels(7, "a fox"), pixels(8, "a fox")[..., :1]], -1)
    sglang.faults[IMAGES] = [lambda handler: handler.images([engine_server.png(clear)])]
    assert np.array_equal(bytes_of(generate(engine(sglang), FOX))[0, 0], clear)


@pytest.mark.parametrize("fault", ["announced", "endless"])
def test_an_answer_may_not_be_of_any_size(fault: str, sglang: EngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_ANSWER", 1 << 20)
    huge = as_type("application/json", b" " * (1 << 21))
    sglang.faults[IMAGES] = [huge if fault == "announced" else engine_server.endless]
    assert "more than 1 MiB" in failure(sglang)


def test_a_picture_may_not_have_any_number_of_pixels(sglang: EngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST_PIXELS", 64 * 48 - 1)
    assert "the picture is 64x48" in failure(sglang)
    monkeypatch.setattr(decoding, "MOST_CLIP_PIXELS", 64 * 48 * 2)
    sglang.task = "T2V"
    assert "more pixels than are read" in failure(sglang)


def test_a_slow_server_is_given_up_in_time_and_hung_up_on(sglang: EngineServer) -> None:
    sglang.faults[IMAGES] = [slow(30)]
    assert "no answer within 1 s" in failure(sglang, patience=1.0)
    wait_until(lambda: sglang.hung_up)


def wait_until(condition: Any) -> None:
    done = threading.Event()
    for _ in range(500):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("it never came")


class StopError(Exception):
    """What a host raises to cancel."""


def test_cancel_hangs_up_on_a_picture(sglang: EngineServer, caplog: pytest.LogCaptureFixture) -> None:
    sglang.faults[IMAGES] = [slow(30)]

    def check() -> None:
        if sglang.waiting.is_set():
            raise StopError

    with pytest.raises(StopError), caplog.at_level("INFO"):
        generate(engine(sglang), FOX, callbacks=Callbacks(check_cancel=check))
    wait_until(lambda: sglang.hung_up)
    assert "no way to cancel a picture" in caplog.text
    assert np.array_equal(bytes_of(generate(engine(sglang), FOX))[0, 0], pixels(7, "a fox"))


def test_cancel_deletes_the_job_of_a_clip(server: EngineServer, caplog: pytest.LogCaptureFixture) -> None:
    server.held = True
    ticks: list[Progress] = []

    def check() -> None:
        if any("in progress" in tick.message for tick in ticks):
            raise StopError

    with pytest.raises(StopError), caplog.at_level("INFO"):
        generate(engine(server, makes="video"), FOX, callbacks=Callbacks(ticks.append, check))
    assert server.jobs == {}
    assert len(server.to(f"{JOBS}/video_gen_0", "DELETE")) == 1
    assert "job video_gen_0 was given up: the server cancels it" in caplog.text


def test_a_cancel_that_the_server_refuses_is_said(sglang: EngineServer, caplog: pytest.LogCaptureFixture) -> None:
    sglang.held, sglang.task = True, "T2V"
    sglang.faults[f"DELETE {JOBS}/video_gen_0"] = [status(409, {"detail": "Cancellation in progress."})]
    with caplog.at_level("INFO"):
        assert "was not done within 1 s" in failure(sglang, patience=1.0)
    assert "the server answers 409 Cancellation in progress" in caplog.text


JOB = f"GET {JOBS}/video_gen_0"
CONTENT = f"{JOBS}/video_gen_0/content"
FAILED = {"id": "video_gen_0", "status": "failed", "error": {"code": 503, "message": "EngineDeadError: no card"}}


@pytest.mark.parametrize(
    ("path", "faults", "says"),
    [
        (JOB, [None, status(404, {"detail": "Video not found"})], "it has lost job video_gen_0"),
        (JOB, [None, status(503, FAILED)], "job video_gen_0 failed: EngineDeadError: no card"),
        (JOB, [status(200, {**FAILED, "status": "cancelled", "error": None})], "job video_gen_0 cancelled"),
        (JOB, [status(500, "oops")], "job video_gen_0 failed (500): oops"),
        (JOB, [engine_server.hang_up] * 9, "the connection broke"),
        (JOBS, [status(400, {"detail": "input_reference is required"})], "(400): input_reference is required"),
        (JOBS, [status(200, {"id": "../../etc/passwd", "status": "queued"})], "gave no job"),
        (JOBS, [status(200, {"id": "..", "status": "queued"})], "gave no job"),
        (JOBS, [as_type("text/html", HTML)], "gave no job"),
        (CONTENT, [as_type("text/html", HTML)], "is text/html, not video/mp4"),
        (CONTENT, [as_type("video/mp4", b"not a video at all")], "the 18 bytes that came are no whole mp4 file. Run"),
        (CONTENT, [status(404, {"detail": "Generation is still in-progress"})] * 9, "still in-progress"),
        (CONTENT, [status(302, {}, Location="http://example.com/clip.mp4")], "not followed"),
    ],
)
def test_a_job_that_goes_wrong_is_one_line(path: str, faults: list[Any], says: str, sglang: EngineServer) -> None:
    sglang.task = "T2V"
    sglang.faults[path] = list(faults)
    assert says in failure(sglang)


def test_a_job_survives_a_broken_connection_a_busy_server_and_a_late_file(server: EngineServer) -> None:
    server.faults[JOB] = [engine_server.hang_up] * 2 + [status(503, {"detail": "busy"})] * 6
    server.faults[CONTENT] = [status(404, {"detail": "Generation is still in-progress"})]
    assert generate(engine(server, makes="video"), FOX).frames is not None


def test_a_video_that_is_cut_off_is_not_shown(sglang: EngineServer) -> None:
    sglang.task = "T2V"
    sglang.faults[CONTENT] = [
        lambda handler: handler.send(200, "video/mp4", handler._mp4({"seed": 7, "prompt": ""})[:-900])
    ]
    message = failure(sglang)
    assert "cannot be read" in message or "not whole" in message


def test_nothing_there_says_how_to_start_one() -> None:
    with serving() as server:
        gone = engine(server)
    with pytest.raises(InputError, match=r"nothing answers there .*sglang serve .*vllm serve") as raised:
        generate(gone, FOX)
    assert gone.url in str(raised.value)


def test_a_server_that_is_neither_has_to_be_named() -> None:
    with serving("other") as server:
        assert "does not say that it is SGLang-Diffusion or vLLM-Omni" in failure(server)
        assert generate(replace(engine(server), server="vllm-omni"), FOX).frames is not None


def test_the_model_of_the_server_is_the_one_that_was_asked_for(sglang: EngineServer) -> None:
    assert f"the server has {MODEL}" in failure(sglang, model="Qwen/Qwen-Image")
    generate(engine(sglang, model=MODEL), FOX)
    assert sglang.to(IMAGES)[0].fields["model"] == MODEL


def test_a_server_for_something_else_than_pictures_is_refused(sglang: EngineServer) -> None:
    sglang.task = "I2M"
    assert "its model makes no pictures" in failure(sglang)


class TestKey:
    def test_it_goes_into_the_header_alone(self, server: EngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(KEY, SECRET)
        server.key = SECRET
        result = generate(engine(server, makes="images"), FOX)
        assert all(asked.headers["Authorization"] == f"Bearer {SECRET}" for asked in server.asked)
        assert SECRET not in json.dumps(result.report.as_dict()) + repr(engine(server))
        assert all(SECRET not in json.dumps(asked.fields) + asked.path for asked in server.asked)

    @pytest.mark.parametrize("given", ["", "sk-another-one"])
    def test_a_missing_or_wrong_one_is_one_line_without_it(
        self, given: str, sglang: EngineServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(KEY, given)
        sglang.key = SECRET
        message = failure(sglang)
        assert ("does not take that key" if given else "wants an API key") in message
        assert KEY in message
        assert SECRET not in message
        assert not given or given not in message

    def test_what_the_server_repeats_of_it_is_not_shown(
        self, sglang: EngineServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(KEY, SECRET)
        sglang.faults[IMAGES] = [status(400, {"detail": f"bad key {SECRET}"})]
        assert "bad key (key)" in failure(sglang)

    @pytest.mark.parametrize("key", ["with space", "line\r\nX-Other: 1", "schlüssel"])
    def test_one_that_no_header_takes_is_not_sent(
        self, key: str, sglang: EngineServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(KEY, key)
        message = failure(sglang)
        assert message.startswith(f"{KEY} = '(not shown)'")
        assert sglang.asked == []

    def test_it_does_not_travel_unencrypted_to_another_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(KEY, SECRET)
        with pytest.raises(InputError, match="unencrypted") as raised:
            generate(parse_engine("http://gpu-box.invalid:30000"), FOX)
        assert SECRET not in str(raised.value)


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "url"),
        [
            (" http://127.0.0.1:30000/ ", "http://127.0.0.1:30000"),
            ("http://127.0.0.1:30000/v1", "http://127.0.0.1:30000"),
            ("https://GPU-box.example/serving/v1/", "https://gpu-box.example/serving"),
            ("http://[::1]:8091", "http://[::1]:8091"),
        ],
    )
    def test_is_read(self, text: str, url: str) -> None:
        assert parse_engine(text).url == url

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "127.0.0.1:30000",
            "ftp://127.0.0.1",
            "file:///etc/passwd",
            "http://",
            "http://:80",
            "http://127.0.0.1:70000",
            "http://127.0.0.1:0",
            "http://[::1",
            "http://a b",
            "http://host/?key=1",
            "http://host/#x",
            "http://host/a\nb",
            "http://host\r\nX: 1",
            "http://hö.st",
            "http://a..b:30000",
            "http://.:30000",
            f"http://{'a' * 70}.com:80",
        ],
    )
    def test_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(InputError, match="engine = "):
            parse_engine(text)

    @pytest.mark.parametrize("scheme", ["https://", "", "//"])
    def test_with_a_password_is_refused_without_showing_it(self, scheme: str) -> None:
        with pytest.raises(InputError) as raised:
            parse_engine(f"{scheme}user:{SECRET}@host:30000")
        assert SECRET not in str(raised.value)
        assert KEY in str(raised.value)

    @pytest.mark.parametrize(
        ("url", "here"),
        [
            ("http://localhost:1", True),
            ("http://127.8.9.1:1", True),
            ("http://[::1]:1", True),
            ("http://192.168.0.1:1", False),
            ("http://localhost.example.com", False),
            ("http://127.0.0.1.example.com", False),
        ],
    )
    def test_of_this_machine(self, url: str, here: bool) -> None:
        assert parse_engine(url).is_here == here

    def test_a_workflow_reaches_other_machines_that_the_environment_names(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = parse_engine("http://gpu-box:30000")
        with pytest.raises(InputError, match=f"{HOSTS}=gpu-box"):
            check_host(other)
        monkeypatch.setenv(HOSTS, "another, GPU-box")
        check_host(other)
        monkeypatch.setenv(HOSTS, "gpu-box:30001")
        with pytest.raises(InputError):
            check_host(other)
        check_host(parse_engine("http://localhost:30000"))


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        """A certificate for 127.0.0.1 that signed itself, with its key, in one file."""
        file = tmp_path / "server.pem"
        name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        words = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            *name,
        ]
        try:
            subprocess.run(
                [*words, "-keyout", tmp_path / "key", "-out", tmp_path / "cert"], check=True, capture_output=True
            )
        except FileNotFoundError:
            pytest.skip("no openssl is installed")
        file.write_bytes((tmp_path / "key").read_bytes() + (tmp_path / "cert").read_bytes())
        return file

    def test_a_certificate_is_verified(self, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(tls=certificate) as server:
            monkeypatch.setenv("SSL_CERT_FILE", "")
            assert "its certificate cannot be verified" in failure(server)
            assert server.asked == []
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            monkeypatch.setenv(KEY, SECRET)
            result = generate(engine(server), FOX)
            assert np.array_equal(bytes_of(result)[0, 0], pixels(7, "a fox"))

    def test_a_server_without_it_says_so(self, sglang: EngineServer) -> None:
        with pytest.raises(InputError, match="it speaks no TLS there"):
            generate(parse_engine(sglang.url.replace("http:", "https:")), FOX)

    def test_a_server_with_it_behind_http_is_one_line(self, certificate: Path) -> None:
        with serving(tls=certificate) as server, pytest.raises(FastDiffusersError) as raised:
            generate(parse_engine(server.url.replace("https:", "http:")), FOX)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("video", [False, True])
def test_what_a_guidance_does_to_a_negative_prompt_is_not_claimed_of_an_unknown_model(video: bool) -> None:
    request = SampleRequest("a fox", negative_prompt="a dog", guidance=0)
    assert requests.check(request, video) == []
    assert "guidance_scale, negative_prompt" in requests.unconfirmed(requests.fields(request, 0, video))
