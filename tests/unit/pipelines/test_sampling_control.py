"""Cancelling, schedulers, previews, starting from pictures: and that none of it leaves a trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.optimizations.tuning import meters
from fastdiffusers.optimizations.tuning.meters import stopwatch
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.decoding import pipeline_vae
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.schedulers import SCHEDULERS, SHORT_NAMES, compatible_schedulers, fitting_scheduler
from fastdiffusers.pipelines.steps import Watch, estimate_finished
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest


class Interrupted(Exception):
    """Stands for ComfyUI's own interrupt exception, an ordinary Exception too."""


def small_request(**changes):
    return SampleRequest(**{"prompt": "a ship", "steps": 4, "width": 64, "height": 64, **changes})


def load(name):
    return loader.load(loader.resolve("tiny:" + name))


class CancelAtStep:
    def __init__(self, step):
        self.step, self.seen = step, []

    def callbacks(self):
        return Callbacks(on_progress=self.seen.append, check_cancel=self.check)

    def check(self):
        if self.seen and (self.seen[-1].stage, self.seen[-1].done) == ("denoise", self.step):
            raise Interrupted


@pytest.mark.parametrize("name", ["flux", "sdxl", "wan22-t2v"])
@pytest.mark.parametrize("step", [1, 3])
def test_cancel_keeps_its_type_never_decodes_and_the_next_run_equals_a_fresh_one(name, step):
    loaded = load(name)
    frames = {"num_frames": 5} if loaded.family.video else {}
    fresh = sampling.run(load(name), small_request(**frames))
    cancel = CancelAtStep(step)
    decoded = []
    scheduler = loaded.pipeline.scheduler
    with pytest.raises(Interrupted):
        sampling.run(loaded, small_request(**frames), cancel.callbacks(), decode=decoded.append)
    assert decoded == []
    assert [p.done for p in cancel.seen if p.stage == "denoise"] == list(range(1, step + 1))
    assert not any(p.stage == "decode" for p in cancel.seen)
    assert loaded.pipeline.scheduler is scheduler
    assert "step" not in vars(scheduler)
    assert "progress_bar" not in vars(loaded.pipeline)
    again = sampling.run(loaded, small_request(**frames))
    assert torch.equal(again.frames, fresh.frames)


def test_cancel_between_the_steps_and_the_decode():
    cancel = CancelAtStep(4)
    with pytest.raises(Interrupted):
        sampling.run(load("zimage"), small_request(), cancel.callbacks())
    assert not any(p.stage == "decode" for p in cancel.seen)


def test_an_error_inside_the_model_keeps_its_type_and_leaves_the_cached_pipeline_usable(monkeypatch):
    handle = PipelineHandle(loader.resolve("tiny:sd3"))
    plain = OptimizationSettings.plain()
    expected = generate(handle, small_request(), plain)
    with CACHE.use(handle.key) as loaded:
        pipeline = loaded.pipeline
    original = pipeline.transformer.forward
    calls = []

    def fails_at_the_second_step(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    monkeypatch.setattr(pipeline.transformer, "forward", fails_at_the_second_step)
    with pytest.raises(torch.OutOfMemoryError):
        generate(handle, small_request(), plain)
    monkeypatch.undo()
    assert CACHE.keys() == (handle.key,)
    assert torch.equal(generate(handle, small_request(), plain).frames, expected.frames)


def test_memory_that_runs_out_in_the_decode_is_met_with_tiles_and_reported(monkeypatch):
    handle = PipelineHandle(loader.resolve("tiny:flux"))
    settings = OptimizationSettings.plain()
    request = small_request(width=512, height=512, steps=1)
    expected = generate(handle, request, settings)
    with CACHE.use(handle.key) as loaded:
        vae = loaded.pipeline.vae
    original = vae.decoder.forward
    calls = []

    def fails_once(*args, **kwargs):
        calls.append(None)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    monkeypatch.setattr(vae.decoder, "forward", fails_once)
    result = generate(handle, request, settings)
    assert len(calls) > 2, "the second attempt was not tiled"
    assert "tile" in result.report["vae_tiling"].applied
    assert torch.equal(result.latent, expected.latent)
    assert result.frames.shape == expected.frames.shape
    assert not vae.use_tiling


def test_progress_counts_every_step_and_previews_are_in_comfyui_s_convention():
    for name in ("flux", "flux2-klein", "sdxl", "qwenimage", "wan22-t2v"):
        loaded = load(name)
        seen = []
        request = small_request(num_frames=5 if loaded.family.video else None)
        result = sampling.run(loaded, request, Callbacks(seen.append))
        steps = [p for p in seen if p.stage == "denoise"]
        assert [(p.done, p.total) for p in steps] == [(i, 4) for i in (1, 2, 3, 4)]
        assert all(p.preview_latent.shape == result.latent.shape[1:] for p in steps)
        # The last step ends at no noise: its estimate is the result.
        torch.testing.assert_close(steps[-1].preview_latent, result.latent[0], atol=1e-4, rtol=1e-4)
        assert seen[-1].stage == "decode"
        assert seen[-1].done == seen[-1].total


SCHEDULER_CASES = [
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    ("DDIMScheduler", {"prediction_type": "sample"}),
    ("DDPMScheduler", {}),
]


@pytest.mark.parametrize(("name", "config"), SCHEDULER_CASES)
def test_the_estimate_is_the_schedulers_own(name, config):
    import diffusers

    scheduler = getattr(diffusers, name)(**config, **({"clip_sample": False} if name.startswith("DD") else {}))
    scheduler.set_timesteps(5)
    sample = torch.randn(1, 4, 8, 8) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps[:3]:
        scheduler.scale_model_input(sample, timestep)
        output = torch.randn(1, 4, 8, 8)
        step = scheduler.step(output, timestep, sample)
        estimate = estimate_finished(scheduler, output, timestep, sample)
        torch.testing.assert_close(estimate, step.pred_original_sample, atol=1e-3, rtol=1e-3)
        sample = step.prev_sample


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_the_estimate_recovers_a_known_picture_from_an_exact_prediction(name):
    import diffusers

    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(6)
    clean, noise = torch.randn(2, 1, 4, 8, 8)
    for index, timestep in enumerate(scheduler.timesteps[:5]):
        sigma = scheduler.sigmas[index]
        alpha = 1 / (1 + sigma**2) ** 0.5
        sample = alpha * clean + sigma * alpha * noise
        scheduler.step(noise, timestep, sample)
        torch.testing.assert_close(estimate_finished(scheduler, noise, timestep, sample), clean, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["flux", "sdxl", "sd3", "qwenimage", "zimage", "wan22-t2v"])
def test_every_scheduler_that_is_called_compatible_runs_and_the_own_one_comes_back(name):
    loaded = load(name)
    original = loaded.pipeline.scheduler
    own = type(original).__name__
    request = small_request(num_frames=5 if loaded.family.video else None, decode=False)
    expected = sampling.run(loaded, request)
    listed = compatible_schedulers(original, loaded.family)
    assert listed[0] == own
    assert len(listed) > 1
    for scheduler in listed[1:]:
        result = sampling.run(loaded, small_request(**{**vars_of(request), "scheduler": scheduler, "steps": 6}))
        assert result.latent.isfinite().all(), scheduler
        assert not torch.equal(result.latent, expected.latent)
        assert loaded.pipeline.scheduler is original
    assert torch.equal(sampling.run(loaded, request).latent, expected.latent)


def vars_of(request):
    return {"num_frames": request.num_frames, "decode": request.decode}


def test_an_incompatible_scheduler_is_refused_with_a_list_before_any_step():
    loaded = load("flux")
    seen = []
    with pytest.raises(InputError, match="FlowMatchLCMScheduler") as caught:
        sampling.run(loaded, small_request(scheduler="EulerDiscreteScheduler"), Callbacks(seen.append))
    assert "scheduler = 'EulerDiscreteScheduler'" in str(caught.value)
    assert not any(p.stage == "denoise" for p in seen)
    with pytest.raises(InputError, match="mu"):
        sampling.run(loaded, small_request(scheduler="FlowMatchHeunDiscreteScheduler"))
    assert set(SCHEDULERS) >= set(compatible_schedulers(loaded.pipeline.scheduler, loaded.family))


def test_a_scheduler_whose_package_is_missing_is_refused_and_not_offered(monkeypatch):
    import diffusers
    from diffusers.utils import DummyObject, requires_backends

    class DPMSolverSDEScheduler(metaclass=DummyObject):
        """What diffusers puts in the place of a class that it could not import."""

        _backends = ("torch", "no_such_package")

        def __init__(self, *args, **kwargs):
            requires_backends(self, self._backends)

    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", DPMSolverSDEScheduler)
    loaded = load("sdxl")
    assert "DPMSolverSDEScheduler" not in compatible_schedulers(loaded.pipeline.scheduler, loaded.family)
    with pytest.raises(InputError, match="it needs no_such_package") as caught:
        sampling.run(loaded, small_request(scheduler="DPMSolverSDEScheduler"))
    assert "EulerDiscreteScheduler" in str(caught.value)


@pytest.mark.parametrize("name", ["flux", "sdxl", "sd3", "qwenimage", "zimage"])
def test_starting_from_a_picture_or_a_latent_shares_the_models_and_leaks_nothing(name):
    loaded = load(name)
    plain = sampling.run(loaded, small_request())
    picture = plain.frames[0, 0]
    from_picture = sampling.run(loaded, small_request(images=(picture,), strength=0.5, batch=2))
    assert from_picture.latent.shape == (2, *plain.latent.shape[1:])
    assert len(from_picture.step_seconds) == 2
    near = sampling.run(loaded, small_request(latent=plain.latent, strength=0.03, steps=40))
    far = sampling.run(loaded, small_request(latent=plain.latent, strength=0.9, steps=40, seed=7))
    distance = lambda result: (result.latent - plain.latent).abs().mean() / plain.latent.std()
    assert distance(near) < 0.05 < distance(far)
    assert torch.equal(sampling.run(loaded, small_request()).frames, plain.frames)


def test_step_times_on_cuda_come_from_events_one_step_behind(monkeypatch):
    """The bookkeeping alone: events that record when they are waited for."""

    class Event:
        now, waited = 0.0, []

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            Event.now += 500.0
            self.time = Event.now

        def synchronize(self):
            Event.waited.append(self.time)

        def elapsed_time(self, other):
            return other.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    watch = Watch(stopwatch(torch.device("cuda")))
    watch.loop_begins()
    watch.loop_begins()
    assert [watch.step_ends(torch.zeros(1), 9) for _ in range(3)] == [1, 2, 3]
    assert Event.waited == [500.0, 1000.0, 1500.0], "each step waits for the one before it"
    assert watch.step_seconds == [0.5, 0.5, 0.5]


def test_the_last_step_is_timed_where_a_run_is_ahead_of_its_device_and_shorter_than_its_schedule(monkeypatch):
    class Ahead(meters.WallStopwatch):
        ahead = True

    monkeypatch.setattr(meters, "stopwatch", lambda device: Ahead())
    loaded, seen = load("flux"), []
    request = small_request(images=(torch.rand(32, 32, 3),), strength=0.5)
    result = sampling.run(loaded, request, Callbacks(seen.append))
    ticks = [p for p in seen if p.stage == "denoise"]
    assert len(result.step_seconds) == 2
    assert [(p.done, p.total, len(p.step_seconds)) for p in ticks] == [(1, 4, 0), (2, 4, 1), (2, 2, 2)]


def test_a_pipeline_without_a_progress_bar_is_watched_all_the_same():
    watch = Watch(stopwatch(torch.device("cpu")))
    assert watch.step_ends(torch.zeros(1), 1) == 1
    assert len(watch.step_seconds) == 1
    assert watch.text_seconds > 0


def test_broken_numbers_are_reported_and_never_reach_the_picture(monkeypatch):
    loaded = load("sdxl")
    original = loaded.pipeline.unet.forward

    def overflows(*args, **kwargs):
        return (original(*args, **kwargs)[0] * float("nan"),)

    monkeypatch.setattr(loaded.pipeline.unet, "forward", overflows)
    result = sampling.run(loaded, small_request(steps=1))
    assert result.frames.isfinite().all()
    notes = [note for note in result.report.notes if "NaN" in note]
    assert len(notes) == 2
    assert all("dtype is float32" in note and "without LoRAs" in note for note in notes)
    half = sampling.run(replace(loaded, key=replace(loaded.key, dtype="float16")), small_request(steps=1))
    assert all("Use dtype bfloat16" in note for note in half.report.notes if "NaN" in note)


def test_an_unknown_class_runs_through_its_signature_and_decodes_itself():
    from diffusers import StableDiffusionXLPipeline

    class NovelPipeline(StableDiffusionXLPipeline):
        pass

    known = load("sdxl")
    expected = sampling.run(known, small_request(guidance=3.0))
    novel = load("sdxl")
    novel.pipeline.__class__ = NovelPipeline
    novel.family = family_of(novel.pipeline)
    assert not novel.family.known
    assert novel.family.name == "NovelPipeline"
    assert novel.family.guidance_argument == "guidance_scale"
    result = sampling.run(novel, small_request(guidance=3.0))
    assert torch.equal(result.frames, expected.frames)
    assert any("own layout" in note for note in result.report.notes)
    with pytest.raises(InputError, match="not known"):
        pipeline_vae.decode(novel, result.latent)


def test_text_only_and_edit_models_say_what_they_take():
    loaded = load("wan22-t2v")
    with pytest.raises(InputError, match="text-only"):
        sampling.run(loaded, small_request(images=(torch.rand(8, 8, 3),)))
    with pytest.raises(InputError, match="works on a picture"):
        sampling.run(load("wan22-i2v"), small_request())


def test_an_empty_prompt_makes_a_picture_as_diffusers_itself_does():
    loaded = load("flux")
    result = sampling.run(loaded, small_request(prompt="", steps=2, seed=5))
    assert result.report.notes == []
    generator = torch.Generator("cpu").manual_seed(5)
    size = {"height": result.frames.shape[2], "width": result.frames.shape[3]}
    guidance = loaded.family.guidance
    with torch.inference_mode():
        bare = loaded.pipeline(
            "", num_inference_steps=2, guidance_scale=guidance, generator=generator, output_type="pt", **size
        )
    assert torch.equal(result.frames[:, 0], bare.images.permute(0, 2, 3, 1).float())


def test_a_single_step_that_would_be_nan_is_refused():
    with pytest.raises(InputError, match="Use 2 or more") as caught:
        sampling.run(load("qwenimage"), small_request(steps=1))
    assert caught.value.name == "steps"


def test_negative_prompts_act_where_the_family_has_them_and_are_reported_where_not():
    for name, acts in (("sdxl", True), ("qwenimage", True), ("flux", False), ("flux2-klein", False)):
        loaded = load(name)
        without = sampling.run(loaded, small_request(guidance=3.0))
        with_one = sampling.run(loaded, small_request(guidance=3.0, negative_prompt="blurred, dark"))
        assert torch.equal(without.latent, with_one.latent) is not acts, name
        assert any("negative_prompt ignored" in note for note in with_one.report.notes) is not acts
    off = sampling.run(load("sdxl"), small_request(guidance=1.0, negative_prompt="dark"))
    assert any("switches it off" in note for note in off.report.notes)


def test_wan_with_one_expert_takes_no_second_guidance():
    pipeline = tiny.build("wan22-t2v")
    pipeline.register_to_config(boundary_ratio=None)
    loaded = load("wan22-t2v")
    loaded.pipeline, loaded.family = pipeline, family_of(pipeline)
    result = sampling.run(loaded, small_request(num_frames=5, guidance_2=2.0, decode=False))
    assert any("guidance_2 ignored" in note for note in result.report.notes)


def test_a_guidance_that_is_off_is_off_for_both_experts():
    loaded = load("wan22-t2v")
    results = [
        sampling.run(loaded, small_request(num_frames=5, guidance=1.0, guidance_2=second, decode=False))
        for second in (4.0, None)
    ]
    assert torch.equal(results[0].latent, results[1].latent)
    said = [any("guidance_2 ignored: guidance = 1" in note for note in each.report.notes) for each in results]
    assert said == [True, False]
    acting = sampling.run(loaded, small_request(num_frames=5, guidance=2.0, guidance_2=4.0, decode=False))
    assert (acting.report.facts["guidance"], acting.report.facts["guidance_2"]) == (2.0, 4.0)
    assert not any("guidance_2" in note for note in acting.report.notes)


def test_a_scheduler_that_needs_more_steps_says_how_many():
    with pytest.raises(
        InputError, match=r"it makes 4 steps or more\. Use 4 steps or more, .model default. or one of: "
    ) as error:
        fitting_scheduler(load("sdxl").pipeline.scheduler, family_of("StableDiffusionXLPipeline"), "pndm", 2)
    assert "shapes" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "short", "long"),
    [
        ("sdxl", "euler", "EulerDiscreteScheduler"),
        ("sdxl", "dpm++ 2m", "DPMSolverMultistepScheduler"),
        ("sdxl", "euler a", "EulerAncestralDiscreteScheduler"),
        ("zimage", "euler", "FlowMatchEulerDiscreteScheduler"),
        ("wan22-t2v", "unipc", "UniPCMultistepScheduler"),
    ],
)
def test_a_short_name_is_the_class_of_the_models_kind(name, short, long):
    frames = {"num_frames": 5} if name.startswith("wan") else {}
    results = [sampling.run(load(name), small_request(scheduler=each, **frames)).latent for each in (short, long)]
    assert torch.equal(*results)


def test_every_short_name_stands_for_classes_that_are_offered():
    assert {name for names in SHORT_NAMES.values() for name in names if name} <= set(SCHEDULERS)
    with pytest.raises(InputError, match="Use euler"):
        sampling.run(load("sdxl"), small_request(scheduler="eulr"))


def test_a_run_that_ends_in_nan_is_made_again_before_anything_is_decoded(monkeypatch):
    """The first run's latent is not worth a decode: only that of the run with the plain attention is decoded."""
    from fastdiffusers.optimizations import attention
    from fastdiffusers.pipelines import generate as generating

    loaded = load("sdxl")
    plain = sampling.run(loaded, small_request())
    broken, decoded, own = [True], [], generating._decode
    monkeypatch.setattr(attention, "can_give_up", lambda pipeline: broken[0])
    monkeypatch.setattr(attention, "give_up", lambda pipeline, reason: broken.__setitem__(0, False))
    kept = lambda *arguments, **options: decoded.append(arguments[1]) or own(*arguments, **options)
    monkeypatch.setattr(generating, "_decode", kept)
    spoil = lambda model, inputs, output: (output[0] * float("nan"),) if broken[0] else output
    hook = loaded.pipeline.unet.register_forward_hook(spoil)
    handle = PipelineHandle(loaded.key)
    result = generating.run_loaded(loaded, handle, small_request(), OptimizationSettings.plain())
    hook.remove()
    assert len(decoded) == 1
    assert torch.equal(decoded[0], plain.latent)
    assert torch.equal(result.frames, plain.frames)
