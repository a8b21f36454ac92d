"""State, failures, memory and bad input of the video VAE."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_models import golden_config, golden_vae, golden_weights
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.memory import LiveBytes
from fastdiffusers.vae import (
    VaeSettings,
    VideoVAE,
    decode,
    decode_raw,
    encode,
    from_state_dict,
    is_video_vae,
    load_video_vae,
)

Latents = Callable[..., torch.Tensor]


class StopHere(Exception):
    """What a user's cancel raises."""


def stop_after(ticks: int, error: type[BaseException] = StopHere) -> Callbacks:
    count = 0

    def check() -> None:
        nonlocal count
        count += 1
        if count > ticks:
            raise error("stop")

    return Callbacks(check_cancel=check)


@pytest.mark.parametrize("ticks", [1, 2, 4])
@pytest.mark.parametrize("mode", ["whole", "exact", "tiles"])
def test_a_cancel_leaves_no_state(small: VideoVAE, latents: Latents, mode: str, ticks: int) -> None:
    z = latents(5, 8, 6)
    chosen = VaeSettings(mode=mode, temporal_slice=1, tile_size=48, tile_overlap=16, strips=(2, 1))
    if mode != "exact":
        chosen = VaeSettings(mode=mode, temporal_slice=1, tile_size=48, tile_overlap=16)
    fresh, _ = decode_raw(small, z, chosen)
    with pytest.raises(StopHere):
        decode_raw(small, z, chosen, stop_after(ticks))
    again, _ = decode_raw(small, z, chosen)
    assert torch.equal(again, fresh)


WITHIN = {
    "whole": VaeSettings(mode="whole", temporal_slice=2),
    "strips": VaeSettings(mode="exact", temporal_slice=2, strips=(3, 2)),
    "compiled units": VaeSettings(mode="whole", temporal_slice=2, compile={"backend": "eager"}, compile_trial=False),
}


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("chosen", WITHIN.values(), ids=list(WITHIN))
def test_a_cancel_arrives_within_a_slice(small: VideoVAE, latents: Latents, chosen: VaeSettings) -> None:
    """A slice can take minutes on a processor."""
    z, done = latents(2, 8, 6), 0
    fresh, _ = decode_raw(small, z, chosen)

    def decode_until(looks: int) -> int:
        """How often was asked whether to stop."""
        asked = 0

        def ask() -> None:
            nonlocal asked
            asked += 1
            if asked > looks:
                raise StopHere

        def see(told: Progress) -> None:
            nonlocal done
            done = told.done

        with contextlib.suppress(StopHere):
            decode_raw(small, z, chosen, Callbacks(on_progress=see, check_cancel=ask))
        return asked

    asked = decode_until(10**9)
    assert (done, asked > 20) == (1, True)
    for looks in (2, asked // 2):
        assert decode_until(looks) == looks + 1
        assert done == 0
        again, _ = decode_raw(small, z, chosen)
        assert torch.equal(again, fresh)


def test_an_error_in_the_middle_of_a_strip_leaves_no_state(
    small: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiffusers.vae.network import causal_conv

    z = latents(4)
    chosen = VaeSettings(mode="exact", strips=(3, 2), temporal_slice=1)
    fresh, _ = decode_raw(small, z, chosen)
    real, calls = causal_conv.conv3d, 0

    def failing(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 150:
            raise ValueError("injected")
        return real(*arguments, **options)

    monkeypatch.setattr(causal_conv, "conv3d", failing)
    with pytest.raises(ValueError, match="injected"):
        decode_raw(small, z, chosen)
    monkeypatch.undo()
    again, _ = decode_raw(small, z, chosen)
    assert torch.equal(again, fresh)


def test_running_out_of_memory_is_retried_with_less(
    small: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = latents(2, 20, 20)
    chosen = VaeSettings(tile_size=64, tile_overlap=16)
    real, failed = VideoVAE.decode_slice, []

    def once(self: VideoVAE, z: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if not (failed or z.is_meta):  # the planner's trial runs, without data, must pass
            failed.append(True)
            raise torch.OutOfMemoryError("injected")
        return real(self, z, *arguments)

    monkeypatch.setattr(VideoVAE, "decode_slice", once)
    result, report = decode_raw(small, z, chosen)
    assert failed
    assert torch.isfinite(result).all()
    assert any("out of memory" in note for note in report.notes)


def test_lasting_shortage_keeps_its_type(small: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch) -> None:
    real = VideoVAE.decode_slice

    def never(self: VideoVAE, z: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if z.is_meta:
            return real(self, z, *arguments)
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(VideoVAE, "decode_slice", never)
    with pytest.raises(torch.OutOfMemoryError):
        decode_raw(small, latents(2))


@pytest.fixture
def half() -> VideoVAE:
    return from_state_dict(golden_weights("small"), config=golden_config("small"), dtype=torch.float16)


BY_SLICES = VaeSettings(mode="whole", temporal_slice=1)
"""Three slices for four latent frames."""


def test_whether_a_slice_overflowed_is_read_when_the_next_one_is_under_way(
    half: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading waits for the card; right after a slice, the card would then have nothing to do."""
    events: list[str] = []
    real = VideoVAE.decode_slice

    def decode_slice(self: VideoVAE, z: torch.Tensor, *arguments: Any) -> torch.Tensor:
        events.extend(["slice"] * (not z.is_meta))
        return real(self, z, *arguments)

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten.is_nonzero.default, torch.ops.aten.item.default) and events:
                events.append("read")
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(VideoVAE, "decode_slice", decode_slice)
    with Reads():
        decode_raw(half, latents(4), BY_SLICES)
    assert events == ["slice", "slice", "read", "slice", "read", "read"]


@pytest.mark.parametrize("beyond", [0, 2])
def test_values_beyond_float16_are_found_once_for_a_loaded_vae(
    half: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch, beyond: int
) -> None:
    z = latents(4)
    expected, _ = decode_raw(copy.deepcopy(half).to(torch.bfloat16), z, BY_SLICES)
    real, seen = VideoVAE.decode_slice, []

    def overflowing(self: VideoVAE, z: torch.Tensor, *arguments: Any) -> torch.Tensor:
        made = real(self, z, *arguments)
        if z.is_meta:
            return made
        seen.append(z.dtype)
        return made * float("inf") if seen[beyond:] == [torch.float16] else made

    monkeypatch.setattr(VideoVAE, "decode_slice", overflowing)
    for _ in range(2):
        seen.clear()
        result, report = decode_raw(half, z, BY_SLICES)
        assert torch.equal(result, expected)
        assert report["precision"].applied == "bfloat16"
        assert report.notes == ["values beyond float16's range: decoded in bfloat16 instead"]
    assert set(seen) == {torch.bfloat16}
    assert half.overflowed == {"decode"}  # the encoder is another network
    assert half.dtype == torch.float16


def test_the_copy_in_bfloat16_lasts_until_the_vae_is_moved_or_converted(half: VideoVAE) -> None:
    """So that nothing stays on a card that the VAE has left."""
    made = half.in_bfloat16()
    assert half.to("cpu").in_bfloat16() is made
    assert half.to(torch.float32).in_bfloat16() is not made
    assert len(half.state_dict()) == len(golden_weights("small"))


def test_two_threads_do_not_disturb_each_other(small: VideoVAE, latents: Latents) -> None:
    inputs = [latents(4, seed=1), latents(4, seed=2)]
    chosen = VaeSettings(temporal_slice=1)
    expected = [decode_raw(small, z, chosen)[0] for z in inputs]
    results: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        results[index] = decode_raw(small, inputs[index], chosen)[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], expected[0])
    assert torch.equal(results[1], expected[1])


def peak_bytes(vae: VideoVAE, z: torch.Tensor, chosen: VaeSettings) -> int:
    """Peak of live bytes above weights and output."""
    with torch.no_grad(), LiveBytes() as live:
        result, _ = decode_raw(vae, z, chosen)
    return live.peak - result.nbytes


def test_memory_does_not_grow_with_the_frames(small: VideoVAE, latents: Latents) -> None:
    chosen = VaeSettings(mode="whole", temporal_slice=1)
    few = peak_bytes(small, latents(3, 4, 4), chosen)
    many = peak_bytes(small, latents(21, 4, 4), chosen)
    assert many <= 1.05 * few


def test_strips_take_less_memory_than_the_whole(small: VideoVAE, latents: Latents) -> None:
    z = latents(2, 12, 12)
    whole = peak_bytes(small, z, VaeSettings(mode="whole", temporal_slice=1))
    strips = peak_bytes(small, z, VaeSettings(mode="exact", strips=(8, 1), temporal_slice=1))
    assert strips < 0.9 * whole


def test_a_clip_of_any_length_is_padded_and_trimmed(small: VideoVAE) -> None:
    frames = torch.rand(1, 7, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    latent, report = encode(small, frames)
    assert latent.shape == (1, 16, 3, 2, 2)
    assert any("9" in note for note in report.notes)
    result, _ = decode(small, latent, num_frames=report.facts["frames"])
    assert result.shape == frames.shape
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    # What is appended are the last frames in reverse order, without the very last.
    padded = torch.cat([frames, frames[:, [5, 4]]], dim=1)
    assert torch.equal(encode(small, padded)[0], latent)
    with pytest.raises(InputError, match="4n"):
        encode(small, frames, VaeSettings(frame_rule="strict"))


@pytest.mark.parametrize(
    ("z", "words"),
    [
        (torch.zeros(1, 4, 1, 4, 4), "channels"),
        (torch.zeros(1, 16, 4, 4), "axes"),
        (torch.full((1, 16, 1, 4, 4), float("nan")), "NaN"),
        (torch.full((1, 16, 1, 4, 4), float("inf")), "Inf"),
        (torch.zeros(1, 16, 0, 4, 4), "empty"),
        (torch.zeros(1, 16, 1, 4, 4, dtype=torch.int32), "floating"),
    ],
)
def test_bad_latents_are_named(small: VideoVAE, z: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        decode(small, z)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"tile_size": 8},
        {"tile_size": 64, "tile_overlap": 64},
        {"tile_overlap": -1},
        {"temporal_slice": -1},
        {"memory_budget_gib": float("nan")},
        {"mode": "fast"},
        {"strips": (1, -1)},
    ],
)
def test_bad_settings_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        VaeSettings(**bad)
    assert next(iter(bad)) in str(caught.value)


def test_a_budget_below_one_strip_says_what_works(small: VideoVAE, latents: Latents) -> None:
    with pytest.raises(InputError, match="memory_budget_gib") as caught:
        decode_raw(small, latents(2, 8, 8), VaeSettings(mode="exact", memory_budget_gib=1e-6))
    assert caught.value.cure


class TestFiles:
    """Loading: strict by key and shape."""

    @pytest.fixture
    def weights(self) -> dict[str, torch.Tensor]:
        return dict(golden_weights("small"))

    def test_round_trip(self, weights: dict[str, torch.Tensor], tmp_path: Path, latents: Latents) -> None:
        path = tmp_path / "vae é.safetensors"
        save_file(weights, path)
        assert is_video_vae(path)
        loaded = load_video_vae(path, dtype="float32")
        expected, _ = decode_raw(golden_vae("small"), latents(2))
        assert torch.equal(decode_raw(loaded, latents(2))[0], expected)

    def test_old_attention_names_are_mapped(self, weights: dict[str, torch.Tensor], latents: Latents) -> None:
        old = {}
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for key, value in weights.items():
            for new, former in names.items():
                if f"attentions.0.{new}." in key:
                    key = key.replace(new, former)
                    value = value[:, :, None, None] if value.ndim == 2 else value
            old[key] = value
        expected, _ = decode_raw(golden_vae("small"), latents(1))
        loaded = from_state_dict(old, config=golden_config("small"))
        assert torch.equal(decode_raw(loaded, latents(1))[0], expected)

    def test_missing_and_wrong_tensors_are_named(self, weights: dict[str, torch.Tensor]) -> None:
        del weights["decoder.conv_out.weight"]
        weights["encoder.conv_in.bias"] = torch.zeros(5)
        with pytest.raises(ModelFileError) as caught:
            from_state_dict(weights, config=golden_config("small"))
        assert "decoder.conv_out.weight" in str(caught.value) or "encoder.conv_in.bias" in str(caught.value)

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "other.safetensors"
        save_file({"decoder.conv_in.weight": torch.zeros(4, 4)}, path)
        assert not is_video_vae(path)
        with pytest.raises(ModelFileError, match="other"):
            load_video_vae(path)

    def test_a_truncated_file_is_refused(self, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
        path = tmp_path / "cut.safetensors"
        save_file(weights, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ModelFileError, match="cut"):
            load_video_vae(path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="nowhere"):
            load_video_vae(tmp_path / "nowhere.safetensors")
