"""How the embedded Flux is trained: the optimizer, what counts in a picture, what text encoders are asked."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from fastdiffusers.scripts.train_tiny import __main__ as training
from fastdiffusers.scripts.train_tiny import loop, models, scenes


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (32, 32)])
def test_muon_is_torchs_but_for_the_precision(shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=random)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = loop.Muon([ours], lr=0.02), torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0)
    for _ in range(4):
        gradient = torch.randn(shape, generator=random)
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = torch.linalg.norm(theirs.detach() - start)
    assert moved > 0.1
    assert torch.linalg.norm(ours.detach() - theirs.detach()) < 0.03 * moved  # bfloat16 rounds to 0.4%


def test_a_matrix_without_a_gradient_is_left_alone() -> None:
    weights = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    weights[0].grad = torch.eye(4)
    loop.Muon(weights, lr=0.1).step()
    assert not torch.equal(weights[0].detach(), torch.ones(4, 4))
    assert torch.equal(weights[1].detach(), torch.ones(4, 4))


def test_errors_count_more_where_the_thing_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SCENES", 32)
    options = argparse.Namespace(output=tmp_path, seed=0)
    torch.manual_seed(0)
    vae = models.image_vae().eval()
    latents, shown, weights = training.encoded_scenes(vae, options, torch.device("cpu"))
    side = scenes.SIZE // 16
    assert (latents.shape, shown.shape, weights.shape) == ((32, 16, 24, 24), (32, 6), (32, side * side))
    assert set(weights.unique().tolist()) == {1.0, training.THING_WEIGHT}
    for row, counts in zip(shown.tolist(), weights, strict=True):
        share = float((counts > 1).float().mean())
        assert (share == 0) if scenes.OBJECTS[row[3]] == "none" else (0 < share < 0.5), (row, share)
    again = training.encoded_scenes(None, options, torch.device("cpu"))
    assert all(torch.equal(*pair) for pair in zip((latents, shown, weights), again, strict=True))


def test_captions_are_read_from_words_and_not_from_padding() -> None:
    torch.manual_seed(0)
    readers = models.CaptionReaders(scenes.CHOICES)
    shown = torch.stack([torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.long)])
    pooled, text = torch.randn(2, models.CLIP_WIDTH), torch.randn(2, 5, models.T5_WIDTH)
    is_word = torch.tensor([[True, True, False, False, False], [True, True, True, False, False]])
    loss = readers(pooled, text, is_word, shown)
    padded = torch.where(is_word[..., None], text, torch.full_like(text, 9.0))
    assert torch.equal(readers(pooled, padded, is_word, shown), loss)
    with torch.no_grad():  # a reader that knows the answer by heart
        for layer in (readers.of_clip, readers.of_t5):
            layer.weight.zero_()
            layer.bias.fill_(-20.0)
            starts = torch.tensor([0, *scenes.CHOICES]).cumsum(0)[:-1]
            layer.bias[starts] = 20.0
    assert readers(pooled, text, is_word, shown[:1].repeat(2, 1)) < 1e-6
    assert readers(pooled, text, is_word, shown[1:].repeat(2, 1)) > 10
