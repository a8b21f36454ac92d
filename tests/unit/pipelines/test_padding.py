"""When the length that a latent carries is that of its clip, and when it is not followed."""

from __future__ import annotations

import pytest
import torch

from fastdiffusers.pipelines.decoding.padding import padding_of, without_padding
from fastdiffusers.report import OptimizationReport

SAID = {"clip_length": 6, "clip_latent_frames": 3, "clip_count": 1}


def decoded(latent_frames: int, said: dict, *, made: int | None = None, clips: int = 1) -> tuple[int, list[str]]:
    """Frames that are left, and the notes."""
    report = OptimizationReport()
    frames = torch.zeros(clips, 4 * latent_frames - 3 if made is None else made, 1, 1, 3)
    kept = without_padding(frames, (clips, 16, latent_frames, 1, 1), said, report)
    return kept.shape[1], report.notes


def test_what_is_kept_of_a_clip_that_was_filled_up():
    assert padding_of(6, 9, (1, 16, 3, 4, 4)) == SAID
    assert padding_of(9, 9, (1, 16, 3, 4, 4)) == padding_of(10, 9, (1, 16, 3, 4, 4)) == {}


@pytest.mark.parametrize("said", [SAID, {key: str(number) for key, number in SAID.items()}])
def test_the_latent_as_it_was_encoded(said):
    assert decoded(3, said) == (6, ["3 padding frames cut off behind frame 6"])


@pytest.mark.parametrize("latent_frames", [1, 2, 4, 6])
def test_a_latent_that_was_cut_or_joined(latent_frames):
    left, notes = decoded(latent_frames, SAID)
    assert left == 4 * latent_frames - 3
    joined = f"the latent has {latent_frames} frames, the encode gave 3: it was cut or joined since"
    assert notes == [f"clip_length = 6 not followed: {joined}"]


def test_any_number_of_frames_may_have_been_added():
    """MiniMax-H3 fills the shortest clips up to 22 frames."""
    assert decoded(7, {"clip_length": 1, "clip_latent_frames": 7, "clip_count": 1}, made=22)[0] == 1


def test_more_clips_than_were_encoded():
    assert decoded(3, SAID, clips=2) == (
        9,
        ["clip_length = 6 not followed: the latent holds 2 clips, the encode gave 1: others may be longer"],
    )
    assert decoded(3, SAID | {"clip_count": 2}, clips=1)[0] == 6


@pytest.mark.parametrize(
    ("length", "latent_frames", "made", "left"),
    [(6, 3, 9, 6), (5, 3, 9, 9), (6, 6, 21, 21), (6, 5, 18, 18), (2, 2, 9, 2), (1, 2, 9, 9), (24, 12, 39, 39)],
)
def test_a_length_alone_is_followed_where_it_can_only_be_that_of_this_latent(length, latent_frames, made, left):
    kept, notes = decoded(latent_frames, {"clip_length": length}, made=made)
    assert kept == left
    assert any("not followed" in note for note in notes) == (left == made)


@pytest.mark.parametrize("length", ["four", "", -1, 0, True, 2.5, None, [6], "9" * 30])
def test_what_is_no_length_is_said(length):
    left, notes = decoded(3, SAID | {"clip_length": length})
    assert left == 9
    assert len(notes) == 1
    assert "not followed: it is no number of frames" in notes[0]


def test_pictures_have_no_length():
    report = OptimizationReport()
    pictures = torch.zeros(2, 8, 8, 3)
    assert without_padding(pictures, (2, 4, 1, 1), SAID, report) is pictures
    assert not report.notes
