"""Scenes that move, and the training of the video VAE on them: the same from a seed, stopped and resumed or not."""

from __future__ import annotations

import json
import os
import signal
from argparse import Namespace
from pathlib import Path

import torch

from fastdiffusers.scripts.train_tiny import loop, scenes, video
from fastdiffusers.vae.embedded import TRAINED_FILE

CPU = torch.device("cpu")


def test_a_part_of_a_scene_is_drawn_as_the_whole_is() -> None:
    chosen = video.choose_clips(4, 2, 5)
    whole = scenes.draw(chosen)
    assert torch.equal(scenes.draw(chosen, window=(40, 100, 64)), whole[..., 40:104, 100:164])


def test_scenes_move_and_stay_what_they_are() -> None:
    clips = video.draw_clips(6, 9, 21)
    assert clips.shape == (6, 3, 9, scenes.SIZE, scenes.SIZE)
    steps = (clips[:, :, 1:] - clips[:, :, :-1]).abs().flatten(1).mean(1)
    assert (steps > 0).sum() >= 4, "those with nothing in the sky and on the water stand still"
    assert float(steps.max()) < 0.1, "nothing jumps"
    assert torch.equal(clips[:, :, :5], video.draw_clips(6, 5, 21)), "a longer clip begins as a shorter one does"
    first, last = (scenes.classify(clips[:, :, frame]) for frame in (0, -1))
    assert first == last


def test_training_begins_as_its_log_says() -> None:
    """The script as it is made the weights that are here."""
    (row, *_) = (TRAINED_FILE.parent / "video.jsonl").read_text(encoding="utf-8").splitlines()
    logged = json.loads(row)
    torch.manual_seed(0)
    network = video.plain(video.start(0))
    with torch.no_grad():
        found = video.loss(network, 0, Namespace(seed=0, steps=2500, batch=0, bf16=False), CPU)
    assert logged["step"] == 1
    for name in ("loss", "clip_psnr", "kl"):
        assert abs(found[name].item() / logged[name] - 1) < 1e-3, name


def test_a_stage_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    def trained(output: Path, stop_at: int = -1) -> dict[str, torch.Tensor] | None:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))

        def loss_of(step: int) -> dict[str, torch.Tensor]:
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            given = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            return {"loss": (network(given) - given[:, :2]).square().mean()}

        output.mkdir(exist_ok=True)
        made = loop.train("it", {"it": network}, loss_of, lambda averages: None, output, 8, 0.02, CPU)
        return None if made is None else dict(made["it"].state_dict())

    assert trained(tmp_path / "stopped", stop_at=3) is None
    resumed, at_once = trained(tmp_path / "stopped"), trained(tmp_path / "at_once")
    assert resumed is not None
    assert at_once is not None
    for name, weight in at_once.items():
        torch.testing.assert_close(resumed[name], weight, atol=1e-6, rtol=1e-5)
    saved = torch.load(tmp_path / "stopped" / "it.pt", weights_only=True)
    assert saved["step"] == 8
