"""LTX-2, which makes a picture and its sound at once: exact, a sound for each item of a batch, nothing left behind."""

from __future__ import annotations

import copy
import inspect

import numpy
import pytest
import torch

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import latents, sampling, steps, tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.decoding import pipeline_vae
from fastdiffusers.pipelines.generate import decode, encode, generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

PICTURE = torch.rand(70, 100, 3, generator=torch.Generator().manual_seed(1))
WIDTH, HEIGHT, FRAMES, STEPS, SEED = 64, 96, 9, 3, 2**63 + 5
RATE = 24_000
CALL = {"spatio_temporal_guidance_blocks": (1,)}
"""The tiny model has two blocks: block 28 or 29, which the real ones use for this guidance, is not in it."""

pytestmark = pytest.mark.skipif(
    not hasattr(__import__("diffusers"), "LTX2Pipeline"), reason="this release of diffusers has no LTX-2"
)


def request_for(name, **changes):
    values = {
        "prompt": "a ship in the fog",
        "steps": STEPS,
        "width": WIDTH,
        "height": HEIGHT,
        "num_frames": FRAMES,
        "seed": SEED,
        "images": (PICTURE,) if name == "ltx2-i2v" else (),
    }
    return SampleRequest(**{**values, **changes})


def bare_call(pipeline, batch=1, **changes):
    """(frames [B, T, H, W, 3], waveform [B, 2, samples]) of the plain call that a user of diffusers would write."""
    arguments = {
        "prompt": "a ship in the fog",
        "num_inference_steps": STEPS,
        "width": WIDTH,
        "height": HEIGHT,
        "num_frames": FRAMES,
        "num_videos_per_prompt": batch,
        "generator": [torch.Generator().manual_seed(SEED + index) for index in range(batch)],
        "output_type": "pt",
        **CALL,
    }
    if "image" in inspect.signature(pipeline.__call__).parameters:
        arguments["image"] = to_pil(PICTURE)
        arguments["use_cross_timestep"] = False  # as LTX-2.0 was trained, and the embedded model is one
    output = pipeline(**{**arguments, **changes})
    return output.frames.permute(0, 1, 3, 4, 2), output.audio


def assert_is_a_picture_and_a_sound(frames, waveform):
    assert frames.std() > 0.05, "a uniform picture would equal anything"
    assert waveform.std(-1).min() > 0.05, "silence would equal anything"


@pytest.mark.parametrize("name", tiny.TINY_SOUND_FAMILIES)
def test_picture_and_sound_equal_a_bare_call_and_the_latent_decodes_to_the_same(name):
    handle = PipelineHandle(loader.resolve("tiny:" + name))
    result = generate(handle, request_for(name), OptimizationSettings.plain())
    frames, waveform = bare_call(tiny.build(name))
    assert_is_a_picture_and_a_sound(frames, waveform)

    assert torch.equal(result.frames, frames)
    assert torch.equal(result.audio["waveform"], waveform)
    assert result.audio["waveform"].dtype == torch.float32
    assert result.audio["sample_rate"] == RATE
    # 25 audio latents a second, 4 columns each but for 3 that a causal decoder leaves out, 240 samples a column.
    assert waveform.shape == (1, 2, (round(FRAMES / 24 * 25) * 4 - 3) * 240)
    assert result.frame_rate == 24.0
    assert result.latent.shape == (1, 128, 2, HEIGHT // 32, WIDTH // 32)
    again, _ = decode(handle, result.latent, OptimizationSettings.plain())
    assert torch.equal(again, frames)
    pictures = {"encode"} if name.endswith("i2v") else set()
    assert set(result.stage_seconds) == {"text encode", "denoise", "decode", "decode sound"} | pictures
    assert len(result.step_seconds) == STEPS
    assert str(RATE) in result.report.facts["sound"]


@pytest.mark.parametrize("name", tiny.TINY_SOUND_FAMILIES)
def test_low_precision_equals_a_bare_call_too(name):
    loaded = loader.load(loader.resolve("tiny:" + name, dtype="bfloat16"))
    result = sampling.run(loaded, request_for(name))
    frames, waveform = bare_call(tiny.build(name, dtype=torch.bfloat16))
    assert frames.dtype == torch.bfloat16  # diffusers scales to 0..1 in it; here that is done in float32
    assert torch.equal(result.frames.to(frames.dtype), frames)
    assert torch.equal(result.audio["waveform"], waveform.float())
    assert torch.equal(pipeline_vae.decode(loaded, result.latent), result.frames)


def test_a_batch_of_two_has_a_sound_each_and_equals_the_bare_batch():
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    result = sampling.run(loaded, request_for("ltx2-t2v", batch=2))
    frames, waveform = bare_call(tiny.build("ltx2-t2v"), batch=2)
    assert torch.equal(result.frames, frames)
    assert torch.equal(result.audio["waveform"], waveform)
    assert not torch.equal(waveform[0], waveform[1])
    second = sampling.run(loaded, request_for("ltx2-t2v", seed=SEED + 1))
    torch.testing.assert_close(second.frames[0], result.frames[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(second.audio["waveform"][0], waveform[1], atol=1e-2, rtol=0)


def test_a_batch_from_one_first_frame_starts_every_item_with_it():
    from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf

    loaded = loader.load(loader.resolve("tiny:ltx2-i2v"))
    result = sampling.run(loaded, request_for("ltx2-i2v", batch=2))
    from PIL.Image import fromarray

    compressed = fromarray(apply_image_conditioning_crf(numpy.array(to_pil(PICTURE)), 33))
    frames, waveform = bare_call(tiny.build("ltx2-i2v"), batch=2, image=[compressed] * 2, image_crf=0)
    assert torch.equal(result.frames, frames)
    assert torch.equal(result.audio["waveform"], waveform)
    single, _ = bare_call(tiny.build("ltx2-i2v"))
    torch.testing.assert_close(result.frames[:1], single, atol=1e-4, rtol=0)
    assert torch.equal(result.latent[0, :, 0], result.latent[1, :, 0])


def test_frame_rate_and_negative_prompt_reach_the_model():
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    result = sampling.run(loaded, request_for("ltx2-t2v", frame_rate=12.0, negative_prompt="noise", guidance=2.5))
    bare = tiny.build("ltx2-t2v")
    frames, waveform = bare_call(bare, frame_rate=12.0, negative_prompt="noise", guidance_scale=2.5)
    assert torch.equal(result.frames, frames)
    assert torch.equal(result.audio["waveform"], waveform)
    assert result.frame_rate == 12.0
    assert waveform.shape[-1] / RATE == pytest.approx(FRAMES / 12, abs=0.06)
    other, _ = bare_call(bare, guidance_scale=2.5)
    assert not torch.equal(other, frames)


def test_guidance_off_runs_the_model_once_per_step():
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    calls = []
    handle = loaded.pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    result = sampling.run(loaded, request_for("ltx2-t2v", guidance=1.0, negative_prompt="noise"))
    handle.remove()
    assert calls == [1] * STEPS
    assert any("negative_prompt ignored" in note for note in result.report.notes)
    off = {"audio_guidance_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0}
    off |= {"modality_scale": 1.0, "audio_modality_scale": 1.0}
    frames, waveform = bare_call(tiny.build("ltx2-t2v"), guidance_scale=1.0, **off)
    assert torch.equal(result.frames, frames)
    assert torch.equal(result.audio["waveform"], waveform)


def test_without_a_decode_there_is_still_the_sound():
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    result = sampling.run(loaded, request_for("ltx2-t2v", decode=False))
    _, waveform = bare_call(tiny.build("ltx2-t2v"))
    assert result.frames is None
    assert torch.equal(result.audio["waveform"], waveform)


def test_a_sound_that_is_not_finite_is_silent_and_reported():
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    loaded.pipeline.vocoder.conv_out.weight.data.fill_(float("nan"))
    result = sampling.run(loaded, request_for("ltx2-t2v"))
    assert result.audio["waveform"].abs().max() == 0
    assert any("sound" in note and "NaN" in note for note in result.report.notes)
    assert torch.equal(result.frames, bare_call(tiny.build("ltx2-t2v"))[0])


@pytest.mark.parametrize("mode", ["model_offload", "group_offload_leaf", "group_offload_block"])
def test_an_offloaded_model_gives_the_same_picture_and_sound(mode):
    handle = PipelineHandle(loader.resolve("tiny:ltx2-t2v"))
    result = generate(handle, request_for("ltx2-t2v"), OptimizationSettings.plain(memory_mode=mode))
    frames, waveform = bare_call(tiny.build("ltx2-t2v"))
    if mode != "model_offload":  # which there is no second device for here
        assert mode in result.report["memory_mode"].applied, result.report["memory_mode"]
    assert torch.equal(result.frames, frames)
    assert torch.equal(result.audio["waveform"], waveform)


@pytest.mark.parametrize("name", tiny.TINY_SOUND_FAMILIES)
def test_previews_and_progress_do_not_change_the_result(name):
    loaded = loader.load(loader.resolve("tiny:" + name))
    seen = []
    result = sampling.run(loaded, request_for(name), Callbacks(seen.append))
    frames, waveform = bare_call(tiny.build(name))
    assert torch.equal(result.frames, frames)
    assert torch.equal(result.audio["waveform"], waveform)
    denoise = [progress for progress in seen if progress.stage == "denoise"]
    assert [progress.done for progress in denoise] == list(range(1, STEPS + 1))
    assert all(progress.total == STEPS and progress.preview_format == "LTXV" for progress in denoise)
    stepped = 1 if name == "ltx2-i2v" else 2  # the first frame is given
    assert {progress.preview_latent.shape for progress in denoise} == {(128, stepped, HEIGHT // 32, WIDTH // 32)}
    assert {"decode sound"} < {progress.stage for progress in seen}


def test_a_copy_of_a_watched_scheduler_steps_for_itself_and_unwatched():
    from diffusers import DDIMScheduler

    class Pipeline:
        scheduler = DDIMScheduler()

    pipeline, seen = Pipeline(), []
    with steps.watched(pipeline, torch.device("cpu"), lambda done, total, estimate: seen.append(done)):
        twin = copy.deepcopy(pipeline.scheduler)
        assert inspect.signature(pipeline.scheduler.step) == inspect.signature(DDIMScheduler().step)
        for scheduler in (pipeline.scheduler, twin):
            scheduler.set_timesteps(2)
        sample = torch.ones(1, 2)
        assert torch.equal(
            twin.step(sample, twin.timesteps[0], sample)[0],
            pipeline.scheduler.step(sample, twin.timesteps[0], sample)[0],
        )
        assert twin.step.__self__ is twin
    assert seen == [1]
    assert "step" not in vars(pipeline.scheduler)


def test_conversions_are_inverse_and_an_encoded_clip_is_what_the_vae_encodes():
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    family, vae = loaded.family, loaded.pipeline.vae
    latent = torch.randn(2, 128, 3, 3, 2)
    packed = latents.pack(latents.from_comfy(latent, family, vae), family)
    assert torch.equal(packed, type(loaded.pipeline)._pack_latents(latent))
    assert torch.equal(latents.to_comfy(packed, family, vae, WIDTH, HEIGHT), latent)

    pixels = torch.rand(1, FRAMES, HEIGHT, WIDTH, 3)
    encoded, _ = encode(PipelineHandle(loaded.key), pixels, OptimizationSettings.plain())
    with torch.no_grad():
        mode = vae.encode(pixels.permute(0, 4, 1, 2, 3) * 2 - 1).latent_dist.mode()
    assert encoded.shape == (1, 128, 2, HEIGHT // 32, WIDTH // 32)
    assert torch.equal(encoded, loaded.pipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std))


def test_a_vae_that_is_told_the_noise_level_is_told_that_there_is_none(monkeypatch):
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    vae, told = loaded.pipeline.vae, []
    original = vae.decode
    vae.register_to_config(timestep_conditioning=True)
    monkeypatch.setattr(vae, "decode", lambda z, temb=None, **rest: told.append(temb) or original(z, **rest))
    pipeline_vae.decode(loaded, torch.randn(2, 128, 2, 3, 2))
    assert torch.equal(told[0], torch.zeros(2))


def test_sizes_and_frames_are_brought_to_what_fits_and_what_cannot_be_is_refused():
    handle = PipelineHandle(loader.resolve("tiny:ltx2-t2v"))
    asked = request_for("ltx2-t2v", num_frames=10, width=72)
    notes = generate(handle, asked, OptimizationSettings.plain()).report.notes
    assert [note for note in notes if note.startswith("num_frames: 9 instead of 10")]
    assert [note for note in notes if note.startswith("width: 64 instead of 72")]
    wrong = {"num_frames": (0, "8n \\+ 1"), "width": (0, "multiples of 32"), "max_sequence_length": (100, "128")}
    for field, (value, reason) in wrong.items():
        with pytest.raises(InputError, match=reason):
            generate(handle, request_for("ltx2-t2v", **{field: value}), OptimizationSettings.plain())


def test_the_variant_says_which_version_of_the_model_it_is():
    pipeline = tiny.build("ltx2-i2v")
    assert dict(family_of(pipeline).extra)["use_cross_timestep"] is False
    assert family_of(pipeline).steps == 40
    pipeline.transformer.register_to_config(cross_attn_mod=True)
    assert (family_of(pipeline).steps, family_of(pipeline).extra) == (30, ())


@pytest.mark.parametrize("name", tiny.TINY_SOUND_FAMILIES)
def test_build_is_deterministic_small_and_survives_a_folder(name, tmp_path):
    built = tiny.build(name)
    assert type(built).__name__ == tiny.PIPELINE_CLASSES[name]
    loaded = loader.load(loader.resolve(str(tiny.save(name, tmp_path / name))))
    assert type(loaded.pipeline) is type(built)
    sizes = 0
    for part, model in built.components.items():
        if isinstance(model, torch.nn.Module):
            state, found = model.state_dict(), getattr(loaded.pipeline, part).state_dict()
            assert state.keys() == found.keys()
            assert all(torch.equal(value, found[key]) for key, value in state.items()), part
            sizes += sum(value.nbytes for value in state.values())
    assert sizes < 10e6
    assert loaded.pipeline.tokenizer("a ship").input_ids == built.tokenizer("a ship").input_ids


def test_a_diffusers_without_it_says_so(monkeypatch):
    monkeypatch.setitem(tiny.PIPELINE_CLASSES, "ltx2-t2v", "LTX9Pipeline")
    with pytest.raises(InputError, match=r"LTX9Pipeline\. Update diffusers"):
        tiny.build("ltx2-t2v")


def tiled(vae, tile, overlap):
    vae.enable_tiling(tile, tile, None, tile - overlap, tile - overlap)


@pytest.mark.parametrize("rows_and_columns", [(5, 7), (7, 4), (4, 7), (8, 6), (1, 3)])
def test_tiles_decode_every_size_although_the_decoder_mirrors_at_edges(rows_and_columns):
    """Tiles of 4 cells that advance by 3: with 4 or 7 cells, the last one begins at the last cell."""
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    vae = loaded.pipeline.vae
    latent = torch.randn(1, 128, 2, *rows_and_columns, generator=torch.Generator().manual_seed(0))
    whole = pipeline_vae.decode(loaded, latent) if min(rows_and_columns) > 1 else None
    tiled(vae, 128, 32)
    frames = pipeline_vae.decode(loaded, latent)
    assert frames.shape == (1, 9, rows_and_columns[0] * 32, rows_and_columns[1] * 32, 3)
    assert frames.isfinite().all()
    if whole is not None:
        likeness = torch.corrcoef(torch.stack([frames.flatten(), whole.flatten()]))[0, 1]
        assert likeness > 0.6, "every tile shows its part of the picture, where it belongs; elsewhere it is 0.3"
    if rows_and_columns == (5, 7):
        with pytest.raises(RuntimeError, match="Padding size"):  # what it is for: diffusers alone cannot
            vae.decode(latent)


def test_where_diffusers_can_decode_in_tiles_the_result_is_its_own():
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    vae = loaded.pipeline.vae
    latent = torch.randn(1, 128, 2, 5, 6)
    tiled(vae, 128, 32)
    native = latent * vae.latents_std.view(1, -1, 1, 1, 1) + vae.latents_mean.view(1, -1, 1, 1, 1)
    with torch.no_grad():
        expected = vae.decode(native, return_dict=False)[0]
    frames = pipeline_vae.decode(loaded, latent)
    assert torch.equal(frames, (expected * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1))


def test_tiles_that_advance_by_one_cell_are_refused_with_the_cure():
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v"))
    tiled(loaded.pipeline.vae, 64, 32)
    with pytest.raises(InputError, match="larger tiles"):
        pipeline_vae.decode(loaded, torch.randn(1, 128, 2, 5, 6))
