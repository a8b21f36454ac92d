"""Keeping part of a latent through a denoising run, as ComfyUI's own samplers do with a noise mask.

After every step the kept part is put back, with as much of the run's own noise as the next step expects; after the last
one it is the latent itself. It works for every model whose loop steps a scheduler, and costs two small operations a
step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import InputError

if TYPE_CHECKING:
    import torch


def resized_to_latent(mask: torch.Tensor, shape: tuple[int, ...], of_frames: bool = True) -> torch.Tensor:
    """A mask [B, H, W] or [H, W] in the shape of a ComfyUI latent, as ComfyUI's own `reshape_mask`.

    Args:
        shape: [B, C, h, w], or [B, C, T, h, w].
        of_frames: of a latent with a time axis, whether the mask's batch is a clip's frames. Else it is one for each
            picture, where ComfyUI mixes those of Qwen-Image, whose latents are clips of one frame.
    """
    from torch.nn.functional import interpolate

    rows, columns = mask.shape[-2:]
    if len(shape) == 5:
        planes = (1, 1, -1, rows, columns) if of_frames else (-1, 1, 1, rows, columns)
        mask = interpolate(mask.float().reshape(planes), size=shape[2:], mode="trilinear")
    else:
        mask = interpolate(mask.float().reshape(-1, 1, rows, columns), size=shape[2:], mode="bilinear")
    mask = mask.expand(mask.shape[0], shape[1], *mask.shape[2:])
    copies = -(-shape[0] // mask.shape[0])
    return mask.repeat(copies, *(1,) * (mask.ndim - 1))[: shape[0]]


class Blend:
    """What is kept in one run.

    Args:
        kept: the latent in the layout of the pipeline's loop.
        mask: of the same shape, 1 = made anew.
        from_noise: the run starts from noise alone, not from `kept` with noise.
        left_out: steps at the beginning that a strength below 1 leaves out.
    """

    def __init__(self, kept: torch.Tensor, mask: torch.Tensor, from_noise: bool, left_out: int = 0) -> None:
        self._kept, self._mask, self._from_noise, self._left_out = kept, mask, from_noise, left_out
        self._noise: torch.Tensor | None = None
        self._position = 0

    @property
    def began(self) -> bool:
        """Whether a step was seen."""
        return self._noise is not None

    def before(self, scheduler: Any, timestep: Any, sample: torch.Tensor) -> None:
        """Look at what the first step starts from, for the noise in it.

        Raises:
            InputError: the loop's latents have another shape than what is to be kept.
        """
        import torch

        if self.began:
            return
        if sample.ndim == 2 and self._kept.shape[0] == 1:  # MiniMax-H3's rows have no batch
            self._kept, self._mask = self._kept[0], self._mask[0]
        if sample.shape != self._kept.shape:
            reason = f"the latents of this run are {list(sample.shape)}, and what it keeps is {list(self._kept.shape)}"
            raise InputError("mask", "given", reason, "use the size of the latent, or leave the mask out")
        self._kept = self._kept.to(sample.device, sample.dtype)
        self._mask = self._mask.to(sample.device, sample.dtype)
        timesteps = scheduler.timesteps
        self._position = self._first(scheduler, torch.as_tensor(timestep, device=timesteps.device))
        if self._from_noise:
            self._noise = sample / getattr(scheduler, "init_noise_sigma", 1.0)
        else:
            nothing = torch.zeros_like(self._kept)
            clean = _noised(scheduler, self._kept, nothing, timesteps[self._position])
            amount = _noised(scheduler, nothing, torch.ones_like(nothing), timesteps[self._position])
            self._noise = (sample - clean) / amount

    def _first(self, scheduler: Any, timestep: torch.Tensor) -> int:
        """Where among a scheduler's timesteps the run begins. Some of PNDM's, say, stand there twice."""
        places = (scheduler.timesteps == timestep).nonzero().flatten().tolist()
        told = getattr(scheduler, "begin_index", None)
        begins = self._left_out * getattr(scheduler, "order", 1) if told is None else told
        return begins if begins in places else next(iter(places), 0)

    def after(self, scheduler: Any, output: Any) -> Any:
        """A step's output with the kept part put back."""
        latent = output[0]
        self._position += 1
        kept = self._kept
        if self._position < len(scheduler.timesteps):
            kept = _noised(scheduler, kept, self._noise, scheduler.timesteps[self._position])
        kept = kept.to(latent.dtype)
        mask = self._mask.to(latent.dtype)
        blended = latent * mask + kept * (1 - mask)
        if isinstance(output, tuple):
            return (blended, *output[1:])
        output.prev_sample = blended
        return output


def _noised(scheduler: Any, latent: torch.Tensor, noise: Any, timestep: torch.Tensor) -> torch.Tensor:
    at = timestep.reshape(1)
    if hasattr(scheduler, "scale_noise"):
        noised: torch.Tensor = scheduler.scale_noise(latent, at, noise)
    else:
        noised = scheduler.add_noise(latent, noise, at)
    return noised
