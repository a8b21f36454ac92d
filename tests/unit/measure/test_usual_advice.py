"""The cases behind docs/claims.md measure what they say."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from fastdiffusers.benchmarks.plain_video_vae import PlainVideoVae, formula_weights
from fastdiffusers.benchmarks.usual_advice import interleave, operations, stages, switches, vae_weights
from fastdiffusers.benchmarks.usual_advice.__main__ import main
from fastdiffusers.benchmarks.usual_advice.small_vae import CONFIG, pictures
from fastdiffusers.vae import VideoVAE


def test_ways_take_turns_and_are_held_against_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the ways move: 2 s, 1 s and then 4 s for the second, in three rounds."""
    now, order, spent = [0.0], [], iter([9.0, 1.0, 4.0, 2.0])
    monkeypatch.setattr(interleave.time, "process_time", lambda: now[0])

    def way(name: str, seconds: object) -> torch.Tensor:
        order.append(name)
        now[0] += next(seconds) if hasattr(seconds, "__next__") else seconds  # type: ignore[operator]
        return torch.tensor([0.0, 2.0, 1.0 if name == "b" else 4.0])

    first, second = interleave.measure({"a": partial(way, "a", 2.0), "b": partial(way, "b", spent)}, 3)
    assert order == ["a", "b"] * 4
    assert (first["times_faster"], first["max_difference"]) == (1.0, 0.0)
    assert (second["slowest"], second["times_faster"], second["fastest"]) == (0.5, 1.0, 2.0)
    assert second["milliseconds"] == 2000
    assert second["max_difference"] == pytest.approx(1.5, rel=0.01)  # 3 of a standard deviation of 2


def test_memory_is_counted_while_it_is_alive() -> None:
    mib = torch.zeros(2**18)
    (row,) = interleave.measure({"two and one": lambda: (mib + 1) + (mib + 2)}, 1)
    assert row["peak_mib"] == 3.0
    (uncounted,) = interleave.measure({"unseen": lambda: mib + torch.arange(2**18)}, 1, frozenset({"unseen"}))
    assert uncounted["peak_mib"] == ""


def test_rewrites_give_what_the_textbook_gives() -> None:
    found = operations.run(1, True)
    for name in ("shuffle", "shuffle_head", "concat", "norm", "norm_last"):
        first, second = found[name]
        assert second["max_difference"] <= 1e-5, name
        assert first["row"] != second["row"]


def test_watching_a_decode_changes_nothing_and_sees_every_stage() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in VideoVAE(CONFIG).state_dict().items()}
    weights, seen = formula_weights(shapes), []
    z = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = PlainVideoVae(weights, CONFIG.norm_num_groups)
    watched = stages.Watched(weights, lambda name: nullcontext(seen.append(name)))
    watched.groups = CONFIG.norm_num_groups
    assert torch.equal(watched.decode(z), plain.decode(z))
    assert seen == ["conv_in", "mid block", "residual blocks 0", "upsampler 0", "residual blocks 1", "conv_out"]


@pytest.mark.parametrize(
    ("name", "bound"), [("float32", 0.0), ("float16", 5e-4), ("bfloat16", 4e-3), ("int8 by channel", 4e-3)]
)
def test_a_format_loses_at_most_half_of_its_step(name: str, bound: float) -> None:
    """Relative to the largest weight of a channel."""
    weight = torch.randn(8, 16, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    lossy, size = vae_weights.stored({"w": weight, "norm": torch.ones(8)}, name)
    largest = weight.abs().flatten(1).amax(1).view(8, 1, 1, 1, 1)
    assert float(((lossy["w"] - weight).abs() / largest).max()) <= bound
    assert torch.equal(lossy["norm"], torch.ones(8))
    bits = vae_weights.FORMATS[name][0]
    assert size == weight.numel() * bits // 8 + 8 * max(bits, 16) // 8


def test_fp8_keeps_three_bits_and_a_scale_keeps_small_weights() -> None:
    weight = torch.full((1, 4), 1e-3)
    assert float((vae_weights.FORMATS["fp8 by channel"][1](weight) - weight).abs().max()) < 1e-9
    assert float((vae_weights.FORMATS["fp8, cast alone"][1](weight) / weight - 1).abs().max()) > 0.02


def test_drawn_pictures_are_pictures() -> None:
    drawn = pictures(2, torch.Generator().manual_seed(0))
    assert drawn.shape[:3] == (2, 3, 1)
    assert drawn.abs().max() <= 1
    assert drawn.std() > 0.2
    assert torch.equal(drawn, pictures(2, torch.Generator().manual_seed(0)))


def test_switches_are_tried() -> None:
    assert switches.graphs(3)["done"] == 3
    assert switches.graphs(64)["done"] == switches.SHAPES
    assert (switches.failing(False)["done"], switches.failing(True)["done"]) == (0, 1)
    assert switches.quantize_dynamically(torch.qint8)["said"] == "left as it is: Conv3d"


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "unknown case 'nonsense'" in capsys.readouterr().err
