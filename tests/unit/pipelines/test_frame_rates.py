"""Frame rates of models with sound: told to the model, or refused where picture and sound would go out of step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.commands.latent_file import write_latent
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.conditions.rates import check_frame_rate, keeps_its_rate
from fastdiffusers.pipelines.conditions.taking import call_takes
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.described import sounds_of_key, sounds_per_second
from fastdiffusers.pipelines.loading.loader import family_of_key, resolve
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requested.before_load import check_before_load
from fastdiffusers.pipelines.requests import ready
from fastdiffusers.pipelines.tiny import PIPELINE_CLASSES, build
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

REQUEST = SampleRequest("a cat")
H3 = pytest.mark.skipif(not hasattr(diffusers, "MiniMaxH3ModularPipeline"), reason="this diffusers has no MiniMax-H3")


@pytest.mark.parametrize("name", [name for name in PIPELINE_CLASSES if hasattr(diffusers, PIPELINE_CLASSES[name])])
def test_a_frame_rate_is_told_refused_or_of_no_matter(name: str) -> None:
    """Of every embedded model: one with sound has it in its call, or takes no other than its own."""
    family = family_of(PIPELINE_CLASSES[name])
    asked = replace(REQUEST, frame_rate=12.0)
    told = family.rate_argument in call_takes(PIPELINE_CLASSES[name])
    if family.sound and not told:
        with pytest.raises(InputError, match="out of step") as error:
            ready(family, asked)
        assert (error.value.name, error.value.value) == ("frame_rate", 12.0)
        assert f"{family.frame_rate:g}" in error.value.cure
        assert ready(family, replace(asked, frame_rate=family.frame_rate)).frame_rate == family.frame_rate
        return
    checked = ready(family, replace(asked, images=(torch.zeros(32, 32, 3),) if family.images == "required" else ()))
    assert checked.frame_rate == (12.0 if family.video else None)
    assert family.video or any("frame_rate ignored" in note for note in checked.notes)


@H3
def test_minimax_h3_keeps_its_rate_and_ltx2_does_not() -> None:
    assert keeps_its_rate(family_of("MiniMaxH3ModularPipeline"))
    assert not keeps_its_rate(family_of("LTX2Pipeline"))


@H3
def test_of_a_rate_that_is_a_guess_the_report_says_so() -> None:
    family = replace(family_of("MiniMaxH3ModularPipeline"), frame_rate_assumed=True)
    (note,) = check_frame_rate(family, replace(REQUEST, frame_rate=12.0))
    assert note.startswith("frame_rate: 12 for the frames alone")


@H3
def test_a_shell_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", "tiny:minimax-h3", "--prompt", "a", "--output", str(tmp_path / "a.mp4")]
    assert cli.main([*words, "--frame-rate", "12"]) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "--frame-rate = 12.0: minimax-h3 makes its sound for 24 frames per second" in line


@H3
def test_that_a_run_has_fewer_evaluations_than_steps_is_said() -> None:
    family = family_of("MiniMaxH3ModularPipeline")
    note = "steps: minimax-h3 makes {} evaluations of {} steps."
    assert note.format(3, 4) in ready(family, replace(REQUEST, steps=4)).notes
    assert note.format(family.steps - 1, family.steps) in ready(family, REQUEST).notes
    assert not any("evaluations" in note for note in ready(family_of("FluxPipeline"), REQUEST).notes)


@pytest.mark.parametrize("rate", ["24", "12"])
def test_the_sound_beside_a_latent_stays_in_step(rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is loaded: the model that is named here is not there."""
    latent, sound = tmp_path / "a.safetensors", {"waveform": torch.zeros(1, 2, 100), "sample_rate": 8000}
    write_latent(torch.zeros(1, 16, 2, 4, 4), latent, {"frame_rate": "24.0"}, sound)
    words = ["decode", "--latents", str(latent), "--model", str(tmp_path / "gone"), "--output", str(tmp_path / "a.mp4")]
    assert cli.main([*words, "--frame-rate", rate]) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert ("goes with 24 frames per second" in said) == (rate == "12")
    assert ("gone" in said) == (rate == "24")


def test_a_latents_rate_that_is_no_number_is_the_usual_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latent = tmp_path / "a.safetensors"
    write_latent(torch.zeros(1, 16, 2, 4, 4), latent, {"frame_rate": "fast"})
    words = ["decode", "--latents", str(latent), "--model", str(tmp_path / "gone"), "--output", str(tmp_path / "a.mp4")]
    assert cli.main(words) == cli.BAD_INPUT
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ltx2-t2v", "ltx2-i2v"])
def test_a_clip_too_short_for_its_sound_names_the_rates_that_work(name: str) -> None:
    key = resolve(f"tiny:{name}")
    family = family_of_key(key)
    pictures = (torch.zeros(64, 64, 3),) if family.images == "required" else ()
    asked = SampleRequest("a cat", steps=2, width=64, height=64, num_frames=9, frame_rate=500.0, images=pictures)
    said = "frame_rate = 500.0: 9 frames are then 0.018 s, too short for the sound that .* makes with them. "
    with pytest.raises(InputError, match=said + "Use at most 449 frames per second, or at least 11 frames"):
        check_before_load(key, ready(family, asked))
    for fits in (replace(asked, frame_rate=449.0), replace(asked, num_frames=17), replace(asked, frame_rate=None)):
        check_before_load(key, ready(family, fits))
    result = generate(PipelineHandle(key), replace(asked, frame_rate=449.0), OptimizationSettings.plain())
    assert result.audio is not None


def test_the_rate_of_the_sound_is_read_of_a_folder(tmp_path: Path) -> None:
    pipeline = build("ltx2-t2v")
    pipeline.save_pretrained(tmp_path / "ltx2")
    assert sounds_of_key(resolve(str(tmp_path / "ltx2"))) == sounds_per_second(pipeline)
    assert sounds_of_key(resolve("tiny:sdxl")) is None
