"""Watching a denoising run from outside: its steps, their times, and what the picture looks like so far.

The watcher stands in front of the two things that pipelines call, whatever their class: `scheduler.step` once per step,
and `progress_bar`, where a loop begins. A pipeline that steps copies of its scheduler, or none, is counted by its
progress bar alone. `callback_on_step_end` would show the noisy latent only, and some pipelines have none.
"""

from __future__ import annotations

import functools
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..optimizations.components import is_modular_class
from .modular.blocks import blocks_of, loop_blocks
from .schedulers import is_flow, pipelines_of, schedulers_of

if TYPE_CHECKING:
    import torch

    from ..optimizations.tuning.meters import Stopwatch
    from .conditions.blend import Blend
    from .requested.random_numbers import StepNoise

OnStep = Callable[[int, int, "torch.Tensor | None"], None]
"""(steps done, steps in all, estimate of the finished latent in the family's layout)."""


@dataclass
class Watch:
    """What was seen.

    Attributes:
        stopwatch: of the device that computes; where its marks are ahead of the device, no step waits for its own.
        latent: the last step's result, in the family's layout; None where only a progress bar was seen.
        encodes: beginning and end of each call of the VAE's encoder.
        keep: what puts the kept part of a latent back after every step; None where nothing is kept.
        noise: what schedulers draw without a generator; None for PyTorch's own random numbers as they are.
    """

    stopwatch: Stopwatch
    latent: torch.Tensor | None = None
    encodes: list[tuple[Any, Any]] = field(default_factory=list)
    keep: Blend | None = None
    noise: StepNoise | None = None
    _before_loop: float = 0.0
    loop_start: int = 0
    """Steps that were done when the current loop began: a pipeline may have several, one after another or nested."""
    _started: float = field(default_factory=time.perf_counter)
    _marks: list[tuple[Any, Any]] = field(default_factory=list)
    """Of the loop's beginning and of each step: (it was reached, the caller was done with it)."""
    _seconds: list[float] = field(default_factory=list)
    """Up to each of the marks that the device has reached, from the one before it."""

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of each step; complete after the run. The first holds what is done only once, compiling say."""
        return [self.stopwatch.between(before, after) for (before, _), (after, _) in pairwise(self._marks)]

    @property
    def encode_seconds(self) -> float:
        """Seconds in which the VAE encoded reference images or a first frame; complete after the run."""
        return sum(self.stopwatch.between(begun, ended) for begun, ended in self.encodes)

    @property
    def text_seconds(self) -> float:
        """From the call to the beginning of the loop, without `encode_seconds`: prompts encoded."""
        return max(0.0, self._before_loop - self.encode_seconds)

    @property
    def done(self) -> int:
        """Steps done."""
        return max(0, len(self._marks) - 1)

    def loop_begins(self) -> None:
        """Note where a loop begins; the first one ends the text stage."""
        self.loop_start = self.done
        if not self._marks:
            self._before_loop = time.perf_counter() - self._started
            self._marks = [(mark := self.stopwatch.mark(), mark)]

    def step_ends(self, latent: torch.Tensor | None, steps: int) -> int:
        """Note a step's result; returns how many are done.

        Args:
            steps: of the run; after the last one the device is waited for.
        """
        if not self._marks:
            self.loop_begins()  # of a pipeline without a progress bar
        self.latent = latent
        self._marks.append((mark := self.stopwatch.mark(), mark))
        # Where the host is ahead of the card it stays so by one step, so that progress and cancel are real.
        self.wait_for(self.done - 1 if self.stopwatch.ahead and self.done < steps else self.done)
        return self.done

    def caller_is_done(self) -> None:
        """Note that the next step begins: what came since the last one ended was the caller's."""
        self._marks[-1] = (self._marks[-1][0], self.stopwatch.mark())

    def wait_for(self, step: int) -> None:
        """Wait until the device has done so many steps, 0 for the beginning of the loop, and read their times."""
        for number in range(len(self._seconds), step + 1):
            begun, ended = self._marks[max(0, number - 1)][1], self._marks[number][0]
            self._seconds.append(self.stopwatch.between(begun, ended))

    @property
    def known_seconds(self) -> tuple[float, ...]:
        """Seconds of each step that the device has done, without what the caller did between two steps."""
        return tuple(self._seconds[1:])

    def forget(self) -> None:
        """Forget what was seen: the run begins again."""
        self.latent, self.loop_start, self._started = None, 0, time.perf_counter()
        for seen in (self.encodes, self._marks, self._seconds):
            seen.clear()

    def keep_latents(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """For `callback_on_step_end`: what the pipeline goes on with, where that is more than the scheduler gave."""
        self.latent = tensors["latents"]
        return tensors


@contextmanager
def watched(pipeline: Any, device: torch.device, on_step: OnStep, previews: bool = True) -> Iterator[Watch]:
    """Watch one call of `pipeline`; pipeline and scheduler are as before afterwards.

    Args:
        on_step: called after every step; it may raise to stop the run.
        previews: estimate the finished latent for `on_step`, a few small operations per step.
    """
    from ..optimizations.tuning.meters import stopwatch

    watch = Watch(stopwatch(device))

    def after_step(scheduler: Any, model_output: Any, timestep: Any, sample: Any, latent: Any) -> None:
        total = watch.loop_start + len(scheduler.timesteps)
        done = watch.step_ends(latent, total)
        estimate = estimate_finished(scheduler, model_output, timestep, sample) if previews else None
        on_step(done, max(done, total), estimate)
        watch.caller_is_done()

    def after_turn(total: int) -> None:
        total += watch.loop_start
        done = watch.step_ends(None, total)
        on_step(done, max(done, total), None)
        watch.caller_is_done()

    def progress_bar(iterable: Any = None, total: int | None = None, **looks: Any) -> Any:
        return _bar(watch, after_turn, iterable, total)

    with ExitStack() as undo:
        for scheduler in schedulers_of(pipeline):
            scheduler.step = _WatchedStep(scheduler, watch, functools.partial(after_step, scheduler))
            undo.callback(vars(scheduler).pop, "step", None)
        for part in (*pipelines_of(pipeline), *_loops_of(pipeline)):
            part.progress_bar = progress_bar
            undo.callback(vars(part).pop, "progress_bar", None)
        undo.enter_context(_encode_timed(getattr(pipeline, "vae", None), watch))
        yield watch
        if watch.done > len(watch.known_seconds):  # image to image takes fewer steps than its scheduler has
            watch.wait_for(watch.done)
            on_step(watch.done, watch.done, None)


def _loops_of(pipeline: Any) -> list[Any]:
    """The blocks of a modular pipeline that loop: the bars are theirs."""
    return list(loop_blocks(blocks_of(pipeline))) if is_modular_class(type(pipeline)) else []


@contextmanager
def _encode_timed(vae: Any, watch: Watch) -> Iterator[None]:
    """Note when the VAE encodes: for image to video that is the whole clip's length, and no part of the text."""
    encode = getattr(vae, "encode", None)
    if encode is None or "encode" in vars(vae):
        yield
        return

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = watch.stopwatch.mark()
        encoded = encode(*args, **kwargs)
        watch.encodes.append((begun, watch.stopwatch.mark()))
        return encoded

    vae.encode = functools.update_wrapper(timed, encode)
    try:
        yield
    finally:
        del vae.encode


class _WatchedStep:
    """`scheduler.step`, and a look at what it did.

    A pipeline may copy its scheduler, as LTX-2 does for the sound: the copy gets its own step, unwatched.
    """

    def __init__(self, scheduler: Any, watch: Watch, after: Callable[[Any, Any, Any, Any], None]) -> None:
        self._scheduler, self._step, self._watch, self._after = scheduler, scheduler.step, watch, after
        functools.update_wrapper(self, self._step)  # pipelines look at the signature

    def __call__(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        keep = self._watch.keep
        if keep is not None:
            keep.before(self._scheduler, timestep, sample)
        if self._watch.noise is not None:
            kwargs = self._watch.noise.for_step(self._step, sample, args, kwargs)
        output = self._step(model_output, timestep, sample, *args, **kwargs)
        if keep is not None:
            output = keep.after(self._scheduler, output)
        self._after(model_output, timestep, sample, output[0])
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = memo.get(id(self._scheduler))  # copied before what it holds
        # A pipeline that saves its scheduler's `__dict__` alone (Panorama) puts it back into the same one.
        return self if owner is None else types.MethodType(type(owner).step, owner)


def _bar(watch: Watch, after_turn: Callable[[int], None], iterable: Any, total: int | None) -> Any:
    """A `tqdm` that draws nothing: for `with`, `for`, and calls of `update` alike.

    Args:
        after_turn: called with the bar's total after each turn of the loop in which no watched scheduler stepped.
    """
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # tqdm's monitor is a thread that would hold this class, and through it the pipeline
        seen = watch.done

        def update(self, n: float | None = 1) -> None:
            if watch.done == self.seen:
                after_turn(turns)
            self.seen = watch.done

        def __iter__(self) -> Iterator[Any]:
            for item in self.iterable:
                yield item
                self.update()

    watch.loop_begins()
    bar = Bar(iterable, total=total, disable=True)
    turns = int(total or (len(iterable) if hasattr(iterable, "__len__") else 0))
    return bar


def estimate_finished(scheduler: Any, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor | None:
    """The noise-free latent that the model sees in the current step, from the scheduler's state just after it.

    With a noisy sample = alpha * clean + sigma * noise and the model's prediction of noise, clean, velocity or flow,
    solved for clean. Returns None where alpha and sigma cannot be told from the scheduler.
    """
    levels = _noise_level(scheduler, timestep, sample)
    if levels is None or output.shape != sample.shape:
        return None
    alpha, sigma = levels
    if type(scheduler).__name__ == "MiniMaxH3Scheduler":  # its flow points to the data
        return sample + sigma * output
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
