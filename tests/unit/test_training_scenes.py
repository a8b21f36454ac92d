"""The drawn landscapes that embedded models are trained on: the same stream everywhere, and pictures that show it."""

from __future__ import annotations

import torch

from fastdiffusers.scripts.train_tiny import models, scenes


def test_a_seed_chooses_the_same_scenes_and_captions() -> None:
    first, second, other = scenes.choose(16, 3), scenes.choose(16, 3), scenes.choose(16, 4)
    assert first.captions == second.captions != other.captions
    assert torch.equal(first.free, second.free)
    assert torch.equal(scenes.draw(first, size=64), scenes.draw(second, size=64))


def test_the_sky_of_a_drawing_tells_the_time_of_day() -> None:
    chosen = scenes.choose(48, 11)
    pictures = scenes.draw(chosen)
    assert pictures.shape == (48, 3, scenes.SIZE, scenes.SIZE)
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    assert scenes.classify(pictures) == [scenes.TIMES[index] for index in chosen.time.tolist()]


def test_every_word_of_a_caption_is_one_piece_for_t5() -> None:
    """A word from elsewhere is spelled, and CLIP's merges make every caption fit its 77 tokens."""
    clip, t5 = models.clip_tokenizer()[0], models.t5_tokenizer()[0]
    for caption in scenes.choose(64, 5).captions:
        words = caption.replace(",", " ").split()
        assert len(t5(" ".join(words)).input_ids) == len(words) + 1
        assert len(clip(caption).input_ids) <= 77
    assert len(t5("castle").input_ids) > 3
