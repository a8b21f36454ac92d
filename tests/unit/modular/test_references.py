"""References of MiniMax-H3: the same bits as bare diffusers' ref2va, in their order, with what is refused of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.errors import InputError, MissingDependencyError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.conditions import references
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition, MaskCondition, Sound, VideoCondition
from fastdiffusers.pipelines.embeddings.given import Embeddings
from fastdiffusers.pipelines.generate import decode, generate
from fastdiffusers.pipelines.loading.loader import family_of_key, resolve
from fastdiffusers.pipelines.requested.before_load import check_before_load
from fastdiffusers.pipelines.requests import check_request, ready
from fastdiffusers.pipelines.types import LoraSpec, PipelineHandle, SampleRequest

h3: Any = pytest.importorskip("diffusers.modular_pipelines.minimax_h3", reason="this diffusers has no MiniMax-H3")

GPU = OptimizationSettings.plain(memory_mode="gpu")
RANDOM = torch.Generator().manual_seed(1)
PICTURE = torch.rand(48, 64, 3, generator=RANDOM)
OTHER = torch.rand(64, 40, 3, generator=RANDOM)
CLIP = torch.rand(34, 40, 64, 3, generator=RANDOM)
SOUND = Sound(torch.rand(1, 30_000, generator=RANDOM) - 0.5, 32_000)
REQUEST = SampleRequest("a cat", steps=3, width=32, height=32, seed=5)
HANDLE = PipelineHandle(resolve("tiny:minimax-h3", dtype="float32", device="cpu"))


def reference(frames: torch.Tensor, rate: float | None = None, sound: Sound | None = None) -> VideoCondition:
    return VideoCondition(frames if frames.ndim == 4 else frames[None], "reference", rate, sound)


def family() -> Any:
    return family_of_key(HANDLE.key)


def bare(given: list[Any], **inputs: Any) -> Any:
    """diffusers' own run of the embedded model, as its state."""
    return tiny.build("minimax-h3")(
        references=given,
        prompt="a cat",
        num_inference_steps=3,
        num_frames=124,
        output_type="np",
        generator=torch.Generator().manual_seed(5),
        **({"width": 32, "height": 32} | inputs),
    ).values


def theirs(frames: torch.Tensor, rate: float = 24.0, **sound: Any) -> Any:
    """A picture or a clip as diffusers' reference."""
    if frames.ndim == 3:
        return h3.MiniMaxH3ImageReference(to_pil(frames))
    eight_bits = (frames * 255).round().to(torch.uint8).numpy()
    return h3.MiniMaxH3VideoReference(eight_bits, fps=rate, **sound)


HEARD = {"audio": SOUND.waveform, "sample_rate": 32_000}
CASES = {
    "pictures in images": ((PICTURE, OTHER), (), [theirs(PICTURE), theirs(OTHER)]),
    "one picture as a condition": ((), (reference(PICTURE),), [theirs(PICTURE)]),
    "all, images first": (
        (OTHER,),
        (reference(CLIP, 30.0, SOUND), reference(PICTURE)),
        [theirs(OTHER), theirs(CLIP, 30.0, **HEARD), theirs(PICTURE)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_references_equals_bare_diffusers(case: str) -> None:
    images, conditions, given = CASES[case]
    result = generate(HANDLE, replace(REQUEST, images=images, conditions=conditions), GPU)
    state = bare(given)
    assert result.frames is not None
    assert result.latent is not None
    assert torch.equal(result.frames, torch.as_tensor(numpy.asarray(state["videos"])))
    assert result.audio is not None
    assert torch.equal(result.audio["waveform"], state["audio"])
    assert len(result.report.facts["references"].split("; ")) == len(given)


def test_a_picture_alone_stays_the_first_frame() -> None:
    result = generate(HANDLE, replace(REQUEST, images=(PICTURE,), last_image=OTHER), GPU)
    state = bare(None, image=to_pil(PICTURE), last_image=to_pil(OTHER))
    assert result.frames is not None
    assert torch.equal(result.frames, torch.as_tensor(numpy.asarray(state["videos"])))
    assert "references" not in result.report.facts


def test_a_run_with_references_after_a_cancelled_one_is_as_a_fresh_one_and_its_latent_decodes() -> None:
    asked = replace(REQUEST, conditions=(reference(CLIP, 24.0, SOUND), reference(PICTURE)))

    class Cancelled(BaseException):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done:
            raise Cancelled

    first = generate(HANDLE, asked, GPU)
    with pytest.raises(Cancelled):
        generate(HANDLE, replace(asked, conditions=asked.conditions[::-1]), GPU, Callbacks(on_progress=stop))
    again = generate(HANDLE, asked, replace(GPU, memory_mode="auto"))
    assert first.latent is not None
    assert torch.equal(again.latent, first.latent)
    assert again.audio is not None
    assert torch.equal(again.audio["waveform"], first.audio["waveform"])
    assert torch.equal(decode(HANDLE, first.latent, GPU)[0], first.frames)
    turned = generate(HANDLE, replace(asked, conditions=asked.conditions[::-1], decode=False), GPU)
    assert not torch.equal(turned.latent, first.latent), "their order counts"


def test_a_batch_is_made_one_by_one_each_with_its_seed_and_sound() -> None:
    asked = replace(REQUEST, steps=2, conditions=(reference(PICTURE),))
    both = generate(HANDLE, replace(asked, batch=2), GPU)
    second = generate(HANDLE, replace(asked, seed=6), GPU)
    assert both.frames is not None
    assert both.frames.shape == (2, 124, 32, 32, 3)
    assert torch.allclose(both.frames[1], second.frames[0], atol=1e-5)
    assert both.audio is not None
    assert second.audio is not None
    assert torch.allclose(both.audio["waveform"][1], second.audio["waveform"][0], atol=1e-5)
    assert any("made one by one" in note for note in both.report.notes)


def test_what_becomes_of_references_is_said() -> None:
    asked = replace(REQUEST, width=None, height=None, images=(OTHER,), conditions=(reference(CLIP, 12.0),))
    made = ready(family(), asked)
    assert (made.images, made.width, made.height) == ((), family().width, family().height), "they bind no size"
    assert "images: 1 reference; a picture alone, beside no reference, is minimax-h3's first frame." in made.notes
    assert "reference_video: the first 56 of its 68 frames at 24 per second are encoded." in made.notes
    long = reference(CLIP.repeat(4, 1, 1, 1), None, Sound(torch.zeros(6, 600), 100))
    notes = check_request(family(), replace(REQUEST, conditions=(long,)))
    assert notes[:4] == [
        "reference_video: 24 frames per second assumed, since it has no rate.",
        "reference_video: the first 124 of its 136 frames are encoded.",
        "reference_video: the first 2 of its sound's 6 channels are used.",
        "reference_video: of its sound's 6 s the first 5.17 are used.",
    ]
    text = Embeddings(torch.zeros(1, 4, 32), tags=torch.ones(4, dtype=torch.long))
    notes = check_request(family(), replace(REQUEST, positive=text, conditions=(reference(PICTURE),)))
    assert any("positive says nothing of the pictures" in note for note in notes)


NARROW = torch.zeros(16, 80, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": (PICTURE,) * 10}, "references = '10 pictures': minimax-h3 takes at most 9"),
        ({"conditions": (reference(CLIP),) * 4}, "references = '4 clips': minimax-h3 takes at most 3"),
        (
            {"images": (PICTURE,) * 9, "conditions": (reference(CLIP),) * 3 + (reference(PICTURE),)},
            "references = '10 pictures'",
        ),
        ({"images": (PICTURE, OTHER), "last_image": OTHER}, "last_image = 'given': beside references"),
        ({"images": (PICTURE, NARROW)}, r"images\[1\] = '80x16': minimax-h3 reads pictures and clips from 1:4 to 4:1"),
        ({"images": (PICTURE, PICTURE[0])}, r"images\[1\] = 'shape"),
        ({"conditions": (reference(CLIP[:12]),)}, r"reference_video = '12 frames': .*at least 13 frames at 24"),
        ({"conditions": (reference(CLIP[:13], 30.0),)}, "'13 frames at 30 per second'"),
        ({"conditions": (reference(PICTURE), reference(CLIP, 0.5))}, r"reference_video\[1\] = '0.5 frames per second'"),
        ({"conditions": (reference(CLIP, 24.0, Sound(torch.full((1, 9), float("nan")), 9)),)}, "NaN or infinite"),
        ({"conditions": (reference(CLIP, 24.0, Sound(torch.zeros(9), 9)),)}, "sound of shape"),
        ({"conditions": (reference(PICTURE),), "strength": 0.5}, "strength = 0.5"),
        ({"conditions": (reference(PICTURE), MaskCondition(PICTURE[..., 0]))}, "takes no mask with a reference"),
        ({"conditions": (reference(PICTURE), VideoCondition(CLIP))}, "video = 'a clip': minimax-h3 takes no clip"),
        ({"conditions": (ArgumentCondition("references", [1]),)}, "Use Video Condition with the role reference"),
        ({"images": (PICTURE, OTHER), "num_frames": 100}, r"num_frames = 100: minimax-h3 makes 17n \+ 5"),
    ],
)
def test_what_cannot_be_references_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        check_request(family(), replace(REQUEST, **changes))
    assert "\n" not in str(error.value)


def test_what_the_model_has_no_part_for_is_refused_before_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ready(family(), replace(REQUEST, images=(PICTURE, OTHER)))
    check_before_load(HANDLE.key, asked)
    with pytest.raises(
        InputError, match=r"lora = 'style 1': with references minimax-h3 runs its denoiser transformer_ref"
    ):
        check_before_load(HANDLE.key, asked, [LoraSpec("style.safetensors")])
    heard = ready(family(), replace(REQUEST, conditions=(reference(CLIP, 24.0, replace(SOUND, sample_rate=44_100)),)))
    monkeypatch.setattr(references.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"sound of 44100 Hz, where the model has 32000, needs .*torchaudio"
    ):
        check_before_load(HANDLE.key, heard)
    folder = tiny.save("minimax-h3", tmp_path / "h3")
    check_before_load(resolve(str(folder), device="cpu"), asked)
    index = folder / "modular_model_index.json"
    entries = json.loads(index.read_text())
    del entries["transformer_ref"]
    index.write_text(json.dumps(entries))
    without = resolve(str(folder), device="cpu")
    check_before_load(without, ready(family(), replace(REQUEST, images=(PICTURE,))))
    with pytest.raises(InputError, match=r"references = 2: .*transformer_ref, which this model does not hold"):
        check_before_load(without, asked)


def test_a_clip_that_is_longer_than_the_result_gives_what_it_would_as_a_whole() -> None:
    """Only the frames that the result needs are handed over, whatever the rate."""
    clip = torch.rand(60, 4, 4, 3, generator=RANDOM)
    step = h3.before_encoder.MiniMaxH3Ref2VASetupStep
    for rate in (1.0, 5.0, 7.3, 23.976, 30.0, 60.0):
        asked = ready(
            replace(family(), min_frames=22), replace(REQUEST, num_frames=22, conditions=(reference(clip, rate),))
        )
        (given,) = references.reference_values(family(), asked, lambda frame, size: to_pil(frame))
        whole = [to_pil(frame) for frame in clip]
        ours, bares = (
            step._normalize_video_condition(each, rate, 22, 4, 4, 99, 24.0) for each in (given.frames, whole)
        )
        assert numpy.array_equal(ours, bares), rate
