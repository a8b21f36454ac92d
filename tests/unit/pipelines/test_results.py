"""What pipelines return, in every form that classes of diffusers give it, as frames and sound."""

from __future__ import annotations

import contextlib
import inspect
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.utils import BaseOutput
from other_pipelines import build, loaded
from PIL import Image

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import sampling
from fastdiffusers.pipelines.classes.outputs import CLIPS, PICTURES, SOUNDS, returned_fields
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.results import frames_of, refuse_without_picture
from fastdiffusers.pipelines.sound import sample_rate, sound_of
from fastdiffusers.pipelines.types import LoadKey, PipelineHandle, SampleRequest
from fastdiffusers.report import OptimizationReport

BYTES = torch.randint(0, 256, (2, 5, 6, 7, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CLIP = BYTES[..., :3].float() / 255
"""[B, T, H, W, C]: no two axes are alike but for what could be told apart by nothing."""

LAYERS = BYTES.float() / 255


def pil(frame: torch.Tensor) -> Image.Image:
    return Image.fromarray(frame.numpy())


FORMS = {
    "torch [B, T, C, H, W]": ("frames", CLIP.permute(0, 1, 4, 2, 3), CLIP),
    "torch [B, C, T, H, W]": ("video", CLIP.permute(0, 4, 1, 2, 3), CLIP),
    "torch [B, T, H, W, C], as LTX-2's HDR": ("frames", CLIP, CLIP),
    "numpy [B, T, H, W, C]": ("frames", CLIP.numpy(), CLIP),
    "numpy [T, H, W, C], a clip without a batch": ("video", CLIP[0].numpy(), CLIP[:1]),
    "torch [T, C, H, W], a clip without a batch": ("video", CLIP[0].permute(0, 3, 1, 2), CLIP[:1]),
    "clips as lists of PIL": ("frames", [[pil(f) for f in clip] for clip in BYTES[..., :3]], CLIP),
    "one clip as a list of PIL": ("videos", [pil(f) for f in BYTES[0, ..., :3]], CLIP[:1]),
    "clips as a list of tensors": ("frames", [clip.permute(0, 3, 1, 2) for clip in CLIP], CLIP),
    "numpy bytes": ("frames", BYTES[..., :3].numpy(), CLIP),
    "torch [B, C, H, W]": ("images", CLIP[0].permute(0, 3, 1, 2), CLIP[0][:, None]),
    "numpy [B, H, W, C]": ("image", CLIP[0].numpy(), CLIP[0][:, None]),
    "torch [C, H, W]": ("images", CLIP[0, 0].permute(2, 0, 1), CLIP[:1, :1]),
    "PIL": ("rgb", [pil(frame) for frame in BYTES[0, ..., :3]], CLIP[0][:, None]),
    "layers with alpha": (
        "images",
        [c.permute(0, 3, 1, 2).float() / 255 for c in BYTES],
        BYTES.flatten(0, 1)[:, None] / 255,
    ),
    "PIL with alpha": ("images", [[pil(frame) for frame in BYTES[0]]], LAYERS[0][:, None]),
    "depth": ("prediction", CLIP[0, ..., :1].numpy(), CLIP[0][:, None, ..., :1].expand(-1, -1, -1, -1, 3)),
    "normals": ("prediction", CLIP[0].numpy() * 2 - 1, CLIP[0][:, None]),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_result_gives_the_same_frames(name: str) -> None:
    field, value, expected = FORMS[name]
    report = OptimizationReport()
    frames = frames_of([BaseOutput(**{field: value})], report)
    assert frames.dtype == torch.float32
    assert frames.shape == expected.shape
    torch.testing.assert_close(frames, expected, atol=1e-6 if name == "normals" else 0, rtol=0)
    assert bool(report.notes) == (name == "normals")


def test_a_tuple_and_several_calls_are_results_too() -> None:
    picture = CLIP[0, :1].permute(0, 3, 1, 2)
    frames = frames_of([(picture, None), (picture + 0.25, None)], OptimizationReport())
    assert torch.equal(frames, torch.stack((CLIP[0, :1], CLIP[0, :1] + 0.25)))


def test_pictures_of_several_sizes_are_all_there_and_the_report_says_how() -> None:
    report = OptimizationReport()
    frames = frames_of([BaseOutput(images=[pil(BYTES[0, 0]), pil(BYTES[0, 1, :4, :5, :3])])], report)
    assert frames.shape == (2, 1, 6, 7, 4)
    assert torch.equal(frames[1, 0, :4, :5, :3], CLIP[0, 1, :4, :5])
    assert bool((frames[1, 0, :4, :5, 3] == 1).all())
    assert not bool(frames[1, 0, 4:].any())
    assert any("differ in size" in note for note in report.notes)


def test_what_comes_beside_the_picture_is_named() -> None:
    report = OptimizationReport()
    output = BaseOutput(rgb=CLIP[0].numpy(), depth=[CLIP[0].numpy()], nsfw_content_detected=[False, True])
    assert frames_of([output], report) is not None
    assert any("depth" in note for note in report.notes)
    assert any("checker" in note for note in report.notes)


def test_a_result_that_is_no_picture_is_said() -> None:
    report = OptimizationReport()
    assert frames_of([BaseOutput(images=torch.rand(1, 16, 8, 8))], report) is None
    assert report.notes


def test_every_class_of_diffusers_gives_what_is_known_or_is_refused_before_it_loads() -> None:
    refused, known = [], 0
    for name in dir(diffusers):
        if name.endswith("Pipeline") and isinstance(getattr(diffusers, name), type):
            fields = returned_fields(getattr(diffusers, name))
            known += bool(set(fields) & {*CLIPS, *PICTURES, *SOUNDS})
            with contextlib.suppress(InputError):
                refuse_without_picture(family_of(name))
                continue
            refused.append(name)
    assert known > 200
    assert {"KandinskyV22PriorPipeline", "StableCascadePriorPipeline", "FluxPriorReduxPipeline"} < set(refused)
    assert not {"WanPipeline", "StableAudioPipeline", "KandinskyV22CombinedPipeline"} & set(refused)


def test_a_prior_is_refused_before_anything_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loader, "family_of_key", lambda key: family_of("KandinskyV22PriorPipeline"))
    with pytest.raises(InputError, match="image_embeds"):
        generate(PipelineHandle(LoadKey(str(tmp_path))), SampleRequest("a fox"), OptimizationSettings.plain())


def test_sound_alone_is_refused_where_it_is_of_no_use() -> None:
    refuse_without_picture(family_of("StableAudioPipeline"))
    with pytest.raises(InputError, match="sound alone"):
        refuse_without_picture(family_of("StableAudioPipeline"), sound_counts=False)


def part(**config: int) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(**config))


@pytest.mark.parametrize(
    ("pipeline", "rate"),
    [
        (SimpleNamespace(vocoder=part(output_sampling_rate=24000, sampling_rate=16000)), 24000),
        (SimpleNamespace(vocoder=part(sampling_rate=16000)), 16000),
        (SimpleNamespace(vocoder=part(), audio_vae=part(sample_rate=44100)), 44100),  # Kandinsky 6
        (SimpleNamespace(sound_tokenizer=part(sampling_rate=48000), vae=part()), 48000),  # Cosmos 3
        (SimpleNamespace(vae=part(sampling_rate=44100)), 44100),
        (SimpleNamespace(vae=part(), sample_rate=32000), 32000),
        (SimpleNamespace(vae=part()), None),
    ],
)
@pytest.mark.parametrize("field", SOUNDS)
@pytest.mark.parametrize("form", [(2, 100), (2, 1, 100), (1, 100)])
def test_sound_is_found_under_every_name_with_the_rate_of_what_makes_it(pipeline, rate, field, form) -> None:
    assert sample_rate(pipeline) == rate
    loaded = SimpleNamespace(pipeline=pipeline, family=SimpleNamespace(known=False))
    report, waveform = OptimizationReport(), torch.rand(form)
    sound = sound_of(loaded, [BaseOutput(**{field: waveform.numpy()})], None, report, batch=form[0])
    if rate is None:
        assert sound is None
        assert "samples a second" in report.notes[0]
        return
    assert sound["sample_rate"] == rate
    assert torch.equal(sound["waveform"], waveform.reshape(form[0], 1, 100))


def test_two_channels_without_a_batch_are_one_sound() -> None:
    loaded = SimpleNamespace(pipeline=SimpleNamespace(sample_rate=8000), family=SimpleNamespace(known=False))
    waveform = torch.rand(2, 50)
    sound = sound_of(loaded, [BaseOutput(sound=waveform)], None, OptimizationReport(), batch=1)
    assert torch.equal(sound["waveform"], waveform[None])


def test_the_fields_are_read_from_the_call_itself() -> None:
    assert returned_fields(diffusers.StableDiffusionPipeline) == ("images", "nsfw_content_detected")
    assert "return_dict" in inspect.signature(diffusers.StableDiffusionPipeline.__call__).parameters


def test_a_size_that_a_pipeline_makes_something_else_of_is_said() -> None:
    """Chroma's makes multiples of 16, without a word."""
    held = loaded(build("chroma"))
    result = sampling.run(held, SampleRequest("a fox", steps=1, width=72, height=64))
    rows, columns = result.frames.shape[2:4]
    assert (columns, rows) != (72, 64)
    assert f"size: {columns}x{rows} instead of 72x64, as ChromaPipeline itself makes of it." in result.report.notes
    assert result.report.facts["size"] == f"{columns}x{rows}"
    result = sampling.run(held, SampleRequest("a fox", steps=1, width=64, height=64))
    assert not any(note.startswith("size") for note in result.report.notes)
