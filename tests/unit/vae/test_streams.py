"""Frames on their way to main memory: all arrive, none is overwritten before it has left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastdiffusers.vae.streams import FrameCopier, OverlappedCopier, copier_for, dense, read_later


class SlowStream:
    """Copies as late as it may: when somebody waits. Whoever reuses memory too early is found out."""

    def __init__(self, *, buffers: bool = True) -> None:
        self.buffers = buffers
        self.made = 0
        self.under_way = 0
        self.most_under_way = 0

    def start(self, target: torch.Tensor, staged: torch.Tensor) -> Callable[[], None]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def wait() -> None:
            target.copy_(staged)
            self.under_way -= 1

        return wait

    def buffer(self, like: torch.Tensor) -> torch.Tensor | None:
        if not self.buffers:
            return None
        self.made += 1
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)


def clip() -> tuple[torch.Tensor, torch.Tensor]:
    """(frames [C, T, H, W] in bfloat16, an empty destination of that shape that lies in memory as [T, H, W, C])."""
    frames = torch.randn(3, 9, 4, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    return frames, torch.full((9, 4, 5, 3), float("nan")).permute(3, 0, 1, 2)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
@pytest.mark.parametrize("stream", [SlowStream(), SlowStream(buffers=False), None])
def test_all_frames_arrive(stream: SlowStream | None, depth: int) -> None:
    frames, out = clip()
    copier = FrameCopier() if stream is None else OverlappedCopier(stream, depth)
    made = torch.empty_like(frames[:, :2])  # the same memory for every slice, as a CUDA graph has it
    for start in range(0, 9, 2):
        part = made[:, : min(2, 9 - start)]
        part.copy_(frames[:, start : start + 2])
        copier.copy(out[:, start : start + 2], part)
    copier.finish()
    assert torch.equal(out, frames.float())


@pytest.mark.parametrize("stream", [SlowStream(), SlowStream(buffers=False), None])
@pytest.mark.parametrize("value", [False, True])
def test_a_flag_is_read_when_it_is_there(stream: SlowStream | None, value: bool) -> None:
    flag = torch.tensor(value)
    assert read_later(flag, stream)() is value


def test_only_so_many_copies_are_under_way_and_buffers_are_used_again() -> None:
    frames, out = clip()
    stream = SlowStream()
    copier = OverlappedCopier(stream, 2)
    for frame in range(9):
        copier.copy(out[:, frame : frame + 1], frames[:, frame : frame + 1])
    assert stream.most_under_way == 2
    assert stream.made == 2
    assert out[:, :7].isfinite().all()
    assert out[:, 7:].isnan().all()
    copier.finish()
    assert stream.under_way == 0


def test_without_a_card_they_are_copied_directly() -> None:
    cpu = torch.device("cpu")
    assert type(copier_for(cpu, cpu)) is FrameCopier
    assert type(copier_for(torch.device("cuda"), torch.device("cuda"))) is FrameCopier


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 1, 2), (2, 3, 1, 0)])
def test_staging_lies_in_memory_as_the_destination_does(order: tuple[int, ...]) -> None:
    inverse = [order.index(i) for i in range(4)]
    whole = torch.empty([(2, 3, 4, 5)[i] for i in inverse]).permute(order)
    assert dense(whole) == (whole.shape, whole.stride())
    part = whole[:, 1:]
    staged = torch.empty_strided(*dense(part))
    by_stride = sorted(range(4), key=part.stride)
    assert by_stride == sorted(range(4), key=staged.stride)
    assert staged.permute(*reversed(by_stride)).is_contiguous()


def test_staging_has_no_gaps_and_no_zero_strides() -> None:
    single = torch.empty(1, 1, 4, 1).expand(1, 1, 4, 3)
    shape, strides = dense(single)
    assert shape == (1, 1, 4, 3)
    assert torch.empty_strided(shape, strides).untyped_storage().nbytes() == 4 * 12
