"""LTX's video decoders in runs of frames: each layer hands on every frame as soon as it can be computed.

diffusers runs these decoders over the whole clip at once. They may look at later frames, but only at finitely many: one
per convolution in time, while norms and shuffles look at one frame alone. So each layer here is an iterator over runs
of frames. A convolution keeps the two frames before the next run, copies of the first frame stand before the clip, and,
where the decoder is not causal, copies of the last behind it: exactly the frames that diffusers pads with, in exactly
the same places. What is alive at once are those frames of every layer, however long the clip is: a suspended iterator
holds no run of frames, neither the one that it was given nor the one that it gave (so `map`, whose functions are
through when it gives, and no generator expressions, which keep what they iterate over).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .fast_arithmetic import FastArithmetic, over_time
from .layers import moved_in_parts, unpatchify

if TYPE_CHECKING:
    import torch

    from ...vae.network.temporal import Temporal

    Runs = Iterator[torch.Tensor]


def refuse(vae: Any) -> str:
    """Why this object cannot be streamed: something in it is not a function of nearby frames alone, or ""."""
    decoder = vae.decoder
    if getattr(vae, "use_framewise_decoding", False):
        return "framewise decoding, with its blended overlaps, is on"
    if decoder.time_embedder is not None:
        return "it is conditioned on a timestep"
    if any(getattr(module, "per_channel_scale1", None) is not None for module in decoder.modules()):
        return "it adds noise in every block"
    if decoder.patch_size_t != 1:
        return "it packs several frames into one"
    return moved_in_parts(decoder)


def temporal_factor(vae: Any) -> int:
    """Pixel frames per latent frame after the first; the config's own figure is wrong for some checkpoints."""
    factor = 1
    for block in vae.decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            factor *= upsampler.stride[0]
    return factor


def stream(vae: Any, latents: torch.Tensor, step: int, fast: FastArithmetic | None = None) -> Runs:
    """Runs of pixel frames [B, 3, t, H, W] from `step` latent frames at a time; the first come some runs later."""
    from ...vae.network.temporal import Temporal

    layers = _Layers(fast, _is_causal(vae.decoder), Temporal(0 if fast is None else fast.block_frames))
    return layers.decoder(vae.decoder, iter(latents.split(step, dim=2)))


def _is_causal(decoder: Any) -> bool:
    own = getattr(decoder, "is_causal", None)  # LTX-2 says it once, LTX-Video in every convolution
    return bool(decoder.conv_in.is_causal if own is None else own)


@dataclass(frozen=True)
class _Layers:
    """The layers over runs of frames.

    Attributes:
        fast: how they compute; None repeats diffusers' operations.
        causal: whether no frame looks ahead.
        temporal: how convolutions go over time.
    """

    fast: FastArithmetic | None
    causal: bool
    temporal: Temporal

    def decoder(self, decoder: Any, runs: Runs) -> Runs:
        if self.fast is not None:
            runs = map(self.fast.lay_out, runs)
        runs = self.convolved(decoder.conv_in, runs)
        for resnet in decoder.mid_block.resnets:
            runs = self.resnet(resnet, runs)
        for block in decoder.up_blocks:
            if block.conv_in is not None:
                runs = self.resnet(block.conv_in, runs)
            for upsampler in block.upsamplers or ():
                runs = self.upsampled(upsampler, runs)
            for resnet in block.resnets:
                runs = self.resnet(resnet, runs)
        runs = self.convolved(decoder.conv_out, self.activated(decoder.norm_out, decoder.conv_act, runs))
        return map(partial(unpatchify, patch=decoder.patch_size), runs)

    def convolved(self, module: Any, runs: Runs) -> Runs:
        """A convolution in time over the clip, its first and (not causal) last frames repeated at the ends."""
        import torch

        taps = module.kernel_size[0]
        behind = 0 if self.causal else (taps - 1) // 2
        front = taps - 1 - behind
        before: torch.Tensor | None = None
        for run in runs:
            held = [run[:, :, :1]] * front if before is None else [before]  # no expanded view: the layout stays
            ready = [torch.cat((*held, run), dim=2)]
            del held, run
            frames = ready[0].shape[2]
            # A clone: a view would keep all the frames of this run alive until the next one.
            before = ready[0][:, :, max(0, frames - taps + 1) :].clone()
            if frames >= taps:
                yield self.over_time(module.conv, ready.pop())
        if behind and before is not None:
            last = [before[:, :, -1:]] * behind
            yield self.over_time(module.conv, torch.cat((before, *last), dim=2))

    def over_time(self, conv: Any, run: torch.Tensor) -> torch.Tensor:
        """The convolution of a run with the frames that stand before it."""
        import torch.nn.functional as F

        if self.fast is None:
            return conv(run)
        _, rows, columns = conv.padding
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        around = F.pad(run, (columns, columns, rows, rows, 0, 0), mode=mode) if rows or columns else run
        return over_time(conv, around, self.temporal)

    def activated(self, norm: Any, activation: Any, runs: Runs) -> Runs:
        return map(partial(self._normed, norm, activation), runs)

    def _normed(self, norm: Any, activation: Any, run: torch.Tensor) -> torch.Tensor:
        if self.fast is not None:
            return self.fast.kernels.rms_norm_silu(run, run.new_ones(run.shape[1]))
        if hasattr(norm, "channel_dim"):  # LTX-2's own norm; LTX-Video takes a general one, which wants channels last
            return activation(norm(run))
        return activation(norm(run.movedim(1, -1)).movedim(-1, 1))

    def resnet(self, block: Any, runs: Runs) -> Runs:
        branch = lambda inputs: self.convolved(
            block.conv2,
            self.activated(
                block.norm2,
                block.nonlinearity,
                self.convolved(block.conv1, self.activated(block.norm1, block.nonlinearity, inputs)),
            ),
        )
        return _summed(branch, lambda run: self.shortcut(block, run), runs)

    def shortcut(self, block: Any, run: torch.Tensor) -> torch.Tensor:
        if block.norm3 is not None:
            run = block.norm3(run.movedim(1, -1)).movedim(-1, 1)
        if block.conv_shortcut is None:
            return run
        # Of one frame each: no padding in time.
        return self.over_time(getattr(block.conv_shortcut, "conv", block.conv_shortcut), run)

    def upsampled(self, module: Any, runs: Runs) -> Runs:
        """Pixel shuffle of the convolution, plus that of the input; the first of the clip's doubled frames is cut."""
        drop = module.stride[0] - 1
        branch = lambda inputs: map(partial(_shuffled, module.stride), self.convolved(module.conv, inputs))
        if not module.residual:
            return _without_first(branch(runs), drop)
        repeats = module.stride[0] * module.stride[1] * module.stride[2] // module.upscale_factor
        shortcut = lambda run: _shuffled(module.stride, run).repeat(1, repeats, 1, 1, 1)
        return _without_first(_summed(branch, shortcut, runs), drop)


def _summed(branch: Callable[[Runs], Runs], shortcut: Callable[[torch.Tensor], torch.Tensor], runs: Runs) -> Runs:
    """`branch(runs) + shortcut(runs)`, where the branch may give a frame only after it has seen later ones."""
    import torch

    waiting: list[torch.Tensor] = []

    def watched(run: torch.Tensor) -> torch.Tensor:
        waiting.append(shortcut(run))
        return run

    def added(run: torch.Tensor) -> torch.Tensor:
        frames = waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim=2)
        count = run.shape[2]
        waiting[:] = [frames[:, :, count:].clone()] if frames.shape[2] > count else []
        return run.add_(frames[:, :, :count])

    return map(added, branch(map(watched, runs)))


def _without_first(runs: Runs, drop: int) -> Runs:
    still_to_drop = iter((drop,))

    def cut(run: torch.Tensor) -> torch.Tensor:
        return run[:, :, next(still_to_drop, 0) :]

    return map(cut, runs)


def _shuffled(stride: tuple[int, int, int], run: torch.Tensor) -> torch.Tensor:
    """[B, C * s0 * s1 * s2, T, H, W] -> [B, C, T * s0, H * s1, W * s2], channels-last where the run is."""
    if run.stride(1) == 1 and run.shape[1] > 1:
        cells = run.movedim(1, -1).unflatten(-1, (-1, *stride)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return cells.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)
    split = run.unflatten(1, (-1, *stride)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return split.flatten(6, 7).flatten(4, 5).flatten(2, 3)
