"""Watching a denoising run from outside: its steps, their times, and what the picture looks like so far.

The watcher stands in front of the two things that every pipeline calls, whatever its class: `scheduler.step` once per
step, and `progress_bar` once, where the loop begins. `callback_on_step_end` would show the noisy latent only, and some
pipelines have none.
"""

from __future__ import annotations

import functools
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .schedulers import is_flow

if TYPE_CHECKING:
    import torch

OnStep = Callable[[int, int, "torch.Tensor | None"], None]
"""(steps done, steps in all, estimate of the finished latent in the family's layout)."""


@dataclass
class Watch:
    """What was seen.

    Attributes:
        device: of the denoiser; on CUDA the times come from events, so that nothing waits for the card.
        latent: the last step's result, in the family's layout.
        text_seconds: from the call to the beginning of the loop: prompts, and reference images, encoded.
    """

    device: torch.device
    latent: torch.Tensor | None = None
    text_seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)
    _marks: list[Any] = field(default_factory=list)

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of each step; complete after the run. The first holds what is done only once, compiling say."""
        if self.device.type != "cuda" or not self._marks:
            return [after - before for before, after in zip(self._marks, self._marks[1:], strict=False)]
        self._marks[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in zip(self._marks, self._marks[1:], strict=False)]

    def loop_begins(self) -> None:
        """Note where the first loop begins; pipelines with several stages have more."""
        if self._marks:
            return
        self.text_seconds = time.perf_counter() - self._started
        self._marks = [self._mark()]

    def step_ends(self, latent: torch.Tensor) -> int:
        """Note a step's result; returns how many are done."""
        if not self._marks:  # a pipeline without a progress bar
            self.loop_begins()
        self.latent = latent
        self._marks.append(self._mark())
        if self.device.type == "cuda":
            self._marks[-2].synchronize()  # stay one step ahead of the card, so that progress and cancel are real
        return len(self._marks) - 1

    def keep_latents(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """For `callback_on_step_end`: what the pipeline goes on with, where that is more than the scheduler gave."""
        self.latent = tensors["latents"]
        return tensors

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


@contextmanager
def watched(pipeline: Any, device: torch.device, on_step: OnStep, previews: bool = True) -> Iterator[Watch]:
    """Watch one call of `pipeline`; pipeline and scheduler are as before afterwards.

    Args:
        on_step: called after every step; it may raise to stop the run.
        previews: estimate the finished latent for `on_step`, a few small operations per step.
    """
    watch = Watch(device)
    scheduler = pipeline.scheduler

    def after_step(model_output: Any, timestep: Any, sample: Any, latent: Any) -> None:
        done = watch.step_ends(latent)
        estimate = estimate_finished(scheduler, model_output, timestep, sample) if previews else None
        on_step(done, max(done, len(scheduler.timesteps)), estimate)

    @contextmanager
    def progress_bar(iterable: Any = None, total: int | None = None) -> Iterator[Any]:
        watch.loop_begins()
        yield _NoBar()

    scheduler.step = _WatchedStep(scheduler, after_step)
    pipeline.progress_bar = progress_bar
    try:
        yield watch
    finally:
        del scheduler.step, pipeline.progress_bar


class _WatchedStep:
    """`scheduler.step`, and a look at what it did.

    A pipeline may copy its scheduler, as LTX-2 does for the sound: the copy gets its own step, unwatched.
    """

    def __init__(self, scheduler: Any, after: Callable[[Any, Any, Any, Any], None]) -> None:
        self._scheduler, self._step, self._after = scheduler, scheduler.step, after
        functools.update_wrapper(self, self._step)  # pipelines look at the signature

    def __call__(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        output = self._step(model_output, timestep, sample, *args, **kwargs)
        self._after(model_output, timestep, sample, output[0])
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = memo[id(self._scheduler)]  # copied before what it holds
        return types.MethodType(type(owner).step, owner)


class _NoBar:
    """Takes the place of a drawn progress bar."""

    def update(self, count: int = 1) -> None:
        return None


def estimate_finished(scheduler: Any, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor | None:
    """The noise-free latent that the model sees in the current step, from the scheduler's state just after it.

    With a noisy sample = alpha * clean + sigma * noise and the model's prediction of noise, clean, velocity or flow,
    solved for clean. Returns None where alpha and sigma cannot be told from the scheduler.
    """
    levels = _noise_level(scheduler, timestep, sample)
    if levels is None or output.shape != sample.shape:
        return None
    alpha, sigma = levels
    if is_flow(scheduler):
        return sample - sigma * output
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if prediction == "sample":
        return output
    if prediction == "epsilon":
        return (sample - sigma * output) / alpha
    if prediction == "v_prediction":
        # v = alpha * noise - sigma * clean holds for alpha^2 + sigma^2 = 1; other samples are scaled to that first.
        norm = (alpha**2 + sigma**2) ** 0.5
        return (alpha / norm) * (sample / norm) - (sigma / norm) * output
    return None


def _noise_level(scheduler: Any, timestep: Any, sample: torch.Tensor) -> tuple[Any, Any] | None:
    """(alpha, sigma) of the step that was just taken."""
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if sigmas is not None and index:
        sigma = sigmas[index - 1]  # not as a number: that would wait for the card
        if is_flow(scheduler):
            return 1.0 - sigma, sigma
        if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0:
            return 1.0, sigma  # the samples grow with the noise (Euler, Heun, LMS)
        alpha = 1.0 / (1.0 + sigma**2) ** 0.5
        return alpha, sigma * alpha
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None:
        return None
    import torch

    product = products.to(sample.device)[torch.as_tensor(timestep, device=sample.device).long()]
    return product**0.5, (1.0 - product) ** 0.5
