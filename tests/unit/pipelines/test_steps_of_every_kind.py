"""Pipelines that loop in their own ways are counted, cancelled and give what a bare call gives.

Every way in which a class of diffusers calls `progress_bar` and its scheduler is here: `with`, `for`, keywords, nested,
by hand; copies of the scheduler, several schedulers, none; pipelines inside a pipeline; batches that a class does not
make.
"""

from __future__ import annotations

import copy
import re
import threading
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.errors import InputError
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.schedulers import pipelines_of, schedulers_of
from fastdiffusers.pipelines.steps import watched
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey, SampleRequest

STEPS = 3


def loaded(pipeline: Any) -> LoadedPipeline:
    return LoadedPipeline(LoadKey("tiny:x"), pipeline, family_of(pipeline), torch.device("cpu"), torch.float32)


class Ticks:
    """What was said about the denoising, (steps done, in all), and a cancel after one of the steps."""

    def __init__(self, cancel_at: int = 10**9) -> None:
        self.seen: list[tuple[int, int]] = []
        self.cancel_at = cancel_at
        self.callbacks = Callbacks(self.note)

    def note(self, progress: Progress) -> None:
        if progress.stage == "denoise":
            self.seen.append((progress.done, progress.total))
            if progress.done >= self.cancel_at:
                raise KeyboardInterrupt


class Looping(DiffusionPipeline):
    """One small layer, denoised in the way that `loop` names."""

    loop = "with"

    def __init__(self, layer: torch.nn.Module, scheduler: Any, scheduler_2: Any = None) -> None:
        super().__init__()
        self.register_modules(layer=layer, scheduler=scheduler)
        if scheduler_2 is not None:
            self.register_modules(scheduler_2=scheduler_2)

    def progress_bar(self, iterable=None, total=None, desc=None, leave=True):  # as Marigold's pipelines have it
        return super().progress_bar(iterable, total)

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=STEPS, generator=None, output_type="pil"):
        latent = torch.randn(1, 4, 4, 3, generator=generator)
        latent = getattr(self, f"loop_{self.loop}")(self.scheduler, latent, num_inference_steps)
        return BaseOutput(images=latent.sigmoid().numpy())

    def step(self, scheduler: Any, latent: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return scheduler.step(self.layer(latent), t, latent, return_dict=False)[0]

    def loop_with(self, scheduler, latent, steps):
        scheduler.set_timesteps(steps)
        with self.progress_bar(total=steps) as bar:
            for t in scheduler.timesteps:
                latent = self.step(scheduler, latent, t)
                bar.update()
        return latent

    def loop_for(self, scheduler, latent, steps):
        scheduler.set_timesteps(steps)
        for t in self.progress_bar(scheduler.timesteps):
            latent = self.step(scheduler, latent, t)
        return latent

    def loop_by_hand(self, scheduler, latent, steps):
        scheduler.set_timesteps(steps)
        bar = self.progress_bar(total=steps)
        for t in scheduler.timesteps:
            latent = self.step(scheduler, latent, t)
            bar.set_postfix(t=int(t))
            bar.update(1)
        bar.close()
        return latent

    def loop_nested(self, scheduler, latent, steps):
        for _ in self.progress_bar(range(2), leave=True, desc="predictions"):
            scheduler.set_timesteps(steps)
            for t in self.progress_bar(scheduler.timesteps, leave=False, desc="steps"):
                latent = self.step(scheduler, latent, t)
        return latent

    def loop_copy(self, scheduler, latent, steps):
        return self.loop_with(copy.deepcopy(scheduler), latent, steps)

    def loop_saved_state(self, scheduler, latent, steps):
        scheduler.set_timesteps(steps)
        state = copy.deepcopy(scheduler.__dict__)
        with self.progress_bar(total=steps) as bar:
            for t in scheduler.timesteps:
                scheduler.__dict__.update(state)
                latent = self.step(scheduler, latent, t)
                state = copy.deepcopy(scheduler.__dict__)
                bar.update()
        return latent

    def loop_no_scheduler(self, scheduler, latent, steps):
        with self.progress_bar(total=steps) as bar:
            for _ in range(steps):
                latent = latent - 0.1 * self.layer(latent)
                bar.update()
        return latent


LOOPS = [name.removeprefix("loop_") for name in vars(Looping) if name.startswith("loop_")]


def looping(loop: str) -> Looping:
    torch.manual_seed(0)
    pipeline = Looping(torch.nn.Linear(3, 3), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.loop = loop
    return pipeline


@pytest.mark.parametrize("loop", LOOPS)
def test_every_kind_of_loop_is_counted_and_gives_what_a_bare_call_gives(loop: str) -> None:
    pipeline, ticks = looping(loop), Ticks()
    bare = pipeline("a fox", generator=torch.Generator().manual_seed(7))
    before = set(vars(pipeline)) | {"_interrupt"}
    result = sampling.run(loaded(pipeline), SampleRequest("a fox", steps=STEPS, seed=7), ticks.callbacks)
    assert torch.equal(result.frames[:, 0], torch.from_numpy(bare.images))
    turns = STEPS * (2 if loop == "nested" else 1)
    assert len(result.step_seconds) == turns
    assert [done for done, _ in ticks.seen] == list(range(1, turns + 1))
    assert ticks.seen[-1] == (turns, turns)
    assert all(done <= total for done, total in ticks.seen)
    assert set(vars(pipeline)) == before
    if loop in ("copy", "no_scheduler"):
        assert result.latent is None
        assert any("no latent" in note for note in result.report.notes)
    else:
        assert torch.allclose(result.latent.sigmoid()[:, None], result.frames)


@pytest.mark.parametrize("loop", LOOPS)
def test_every_kind_of_loop_is_cancelled_after_the_step(loop: str) -> None:
    pipeline, ticks = looping(loop), Ticks(cancel_at=2)
    with pytest.raises(KeyboardInterrupt):
        sampling.run(loaded(pipeline), SampleRequest("a fox", steps=STEPS), ticks.callbacks)
    assert ticks.seen[-1][0] == 2
    assert "progress_bar" not in vars(pipeline)
    assert "step" not in vars(pipeline.scheduler)


def test_no_class_of_diffusers_calls_its_bar_in_another_way() -> None:
    """What the bar is called with anywhere: the loops above cover it."""
    folder = Path(diffusers.__file__).parent / "pipelines"
    keywords: set[str] = set()
    for file in folder.rglob("pipeline_*.py"):
        for call in re.findall(r"self\.progress_bar\(([^()]*(?:\([^()]*\)[^()]*)*)\)", file.read_text("utf-8")):
            keywords |= set(re.findall(r"(\w+)=", call))
    assert {"total", "leave", "desc"} <= keywords <= {"total", "leave", "desc", "iterable"}


class TwoStages(DiffusionPipeline):
    """Two pipelines in one, as Kandinsky and Stable Cascade are combined; only the second has the known scheduler."""

    def __init__(self, layer: torch.nn.Module, scheduler: Any, prior_scheduler: Any) -> None:
        super().__init__()
        self.register_modules(layer=layer, scheduler=scheduler, prior_scheduler=prior_scheduler)
        self.prior_pipe = Looping(layer, prior_scheduler)
        self.decoder_pipe = Looping(layer, scheduler)

    def __call__(self, prompt, num_inference_steps=STEPS, generator=None, output_type="pil"):
        self.prior_pipe(prompt, 2, generator)
        return self.decoder_pipe(prompt, num_inference_steps, generator)


def test_pipelines_inside_a_pipeline_are_watched_with_schedulers_of_this_run() -> None:
    torch.manual_seed(0)
    pipeline = TwoStages(torch.nn.Linear(3, 3), DDIMScheduler(), FlowMatchEulerDiscreteScheduler())
    for part in pipelines_of(pipeline):
        part.set_progress_bar_config(disable=True)
    own = schedulers_of(pipeline)
    assert len(own) == 2
    bare = pipeline("a fox", generator=torch.Generator().manual_seed(7))
    ticks = Ticks()
    result = sampling.run(loaded(pipeline), SampleRequest("a fox", steps=STEPS, seed=7), ticks.callbacks)
    assert torch.equal(result.frames[:, 0], torch.from_numpy(bare.images))
    assert len(result.step_seconds) == 2 + STEPS
    assert ticks.seen[-1] == (2 + STEPS, 2 + STEPS)
    assert [id(scheduler) for scheduler in schedulers_of(pipeline)] == [id(scheduler) for scheduler in own]
    assert pipeline.decoder_pipe.scheduler is pipeline.scheduler


def test_a_pipeline_without_one_scheduler_takes_no_other() -> None:
    pipeline = looping("no_scheduler")
    pipeline.scheduler = None
    assert sampling.run(loaded(pipeline), SampleRequest("a fox", steps=STEPS)).frames is not None
    with pytest.raises(InputError, match="fixed roles"):
        sampling.run(loaded(pipeline), SampleRequest("a fox", steps=STEPS, scheduler="euler"))


def test_what_a_pipeline_has_changed_in_its_scheduler_is_kept() -> None:
    """Stable Diffusion corrects the `steps_offset` of old checkpoints, which say nothing of it."""
    pipeline = looping("with")
    config = {**pipeline.scheduler.config, "steps_offset": 1}
    pipeline.scheduler._internal_dict = FrozenDict(config)
    bare = pipeline("a fox", generator=torch.Generator().manual_seed(7))
    result = sampling.run(loaded(pipeline), SampleRequest("a fox", steps=STEPS, seed=7))
    assert torch.equal(result.frames[:, 0], torch.from_numpy(bare.images))


def skyreels() -> Any:
    """SkyReels' Diffusion Forcing around a tiny Wan: it steps a copy of its scheduler for every latent frame."""
    wan = tiny.build("wan22-t2v")
    torch.manual_seed(0)
    config = wan.transformer.config
    network = diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=1,
    ).eval()
    parts = {"text_encoder": wan.text_encoder, "tokenizer": wan.tokenizer, "vae": wan.vae, "transformer": network}
    scheduler = diffusers.UniPCMultistepScheduler(
        flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    pipeline = diffusers.SkyReelsV2DiffusionForcingPipeline(**parts, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_pipeline_that_copies_its_scheduler_keeps_its_result() -> None:
    pipeline = skyreels()
    request = SampleRequest("a fox", steps=2, width=32, height=32, num_frames=9, guidance=1.0, seed=3)
    result = sampling.run(loaded(pipeline), request)
    bare = pipeline(
        "a fox",
        num_inference_steps=2,
        width=32,
        height=32,
        num_frames=9,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    )
    assert torch.equal(result.frames, torch.from_numpy(bare.frames))
    assert result.latent is None
    assert len(result.step_seconds) >= 2


class OneGenerator(Looping):
    """Makes batches, but refuses a list of generators, as Wan VACE does."""

    def __call__(self, prompt, num_inference_steps=STEPS, generator=None, output_type="pil", num_images_per_prompt=1):
        if isinstance(generator, list):
            raise ValueError("Passing a list of generators is not yet supported.")
        return super().__call__(prompt, num_inference_steps, generator)


@pytest.mark.parametrize("kind", [OneGenerator, Looping])
@pytest.mark.parametrize("loop", ["with", "copy"])
def test_a_batch_that_a_class_does_not_make_is_made_one_by_one(kind: type, loop: str) -> None:
    pipeline, ticks = looping(loop), Ticks()
    pipeline.__class__ = kind
    result = sampling.run(loaded(pipeline), SampleRequest("a cat", steps=2, batch=2, seed=5), ticks.callbacks)
    for index in range(2):
        bare = pipeline("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(5 + index))
        assert torch.equal(result.frames[index], torch.from_numpy(bare.images))
    assert result.latent is None if loop == "copy" else result.latent.shape[0] == 2
    assert ticks.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert any("one by one" in note for note in result.report.notes)


class DrawsForAll(Looping):
    """Makes batches, and draws noise for all items at once before the loop, as EasyAnimate's inpainting does."""

    def __call__(self, prompt, num_inference_steps=STEPS, generator=None, output_type="pil", num_images_per_prompt=1):
        drawn = torch.randn(num_images_per_prompt, 4, 4, 3)
        generators = generator if isinstance(generator, list) else [generator]
        made = super().__call__(prompt, num_inference_steps, generators[0])
        return BaseOutput(images=made.images + drawn.numpy())


@pytest.mark.parametrize("loop", ["with", "copy"])
def test_a_batch_for_whose_items_a_class_draws_at_once_is_made_one_by_one(loop: str) -> None:
    pipeline, ticks = looping(loop), Ticks()
    pipeline.__class__ = DrawsForAll
    result = sampling.run(loaded(pipeline), SampleRequest("a cat", steps=2, batch=2, seed=5), ticks.callbacks)
    for index in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(5 + index)
            bare = pipeline("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(5 + index))
        assert torch.equal(result.frames[index], torch.from_numpy(bare.images))
    assert len(result.step_seconds) == 4, "the step of the first attempt is forgotten"
    assert ticks.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert any(note.startswith("DrawsForAll draws random numbers for a whole batch") for note in result.report.notes)
    single = sampling.run(loaded(pipeline), SampleRequest("a cat", steps=2, seed=5))
    assert torch.equal(single.frames[0], result.frames[0])
    assert not any("one by one" in note for note in single.report.notes)


def test_an_error_of_the_model_is_not_taken_for_one_about_generators() -> None:
    class Broken(OneGenerator):
        def loop_with(self, *args: Any) -> Any:
            raise ValueError("something else")

    pipeline = looping("with")
    pipeline.__class__ = Broken
    with pytest.raises(ValueError, match="something else"):
        sampling.run(loaded(pipeline), SampleRequest("a cat", steps=2, batch=2))


def test_a_bar_leaves_no_thread_behind(tiny_pipeline: Any) -> None:
    """tqdm's monitor is one per class of bars, and would hold what the class holds: the pipeline."""
    pipeline = tiny_pipeline("flux")
    before = set(threading.enumerate())
    with watched(pipeline, torch.device("cpu"), lambda *_: None):
        for _ in pipeline.progress_bar(range(2)):
            pass
        with pipeline.progress_bar(total=2) as bar:
            bar.update()
    assert set(threading.enumerate()) == before
