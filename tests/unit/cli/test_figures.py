"""Every figure of docs/figures.md is the one in its data file."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).resolve().parents[3]
FIGURES = " ".join((PACK / "docs" / "figures.md").read_text(encoding="utf-8").split())


def data(name: str, machine: str = "intel_r_xeon_r_processor") -> Any:
    path = PACK / "benchmarks" / "results" / f"{name}_{machine}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def exponent(value: float) -> str:
    """ "3e-5" as people write it."""
    return re.sub(r"e-0*", "e-", f"{value:.0e}") if value else "0"


@pytest.mark.parametrize("row", data("vae_decode")["cases"][0]["rows"], ids=lambda row: row["row"])
def test_the_video_vae(row: dict[str, Any]) -> None:
    peak = f"{row['peak_mib']:.0f} MiB ({row['peak_ratio']:.2f}x)" if row["peak_mib"] else "not counted"
    faster = f"{row['times_faster']:.2f}x as fast"
    assert f"| {row['row']} | {faster} | {peak} | {exponent(row['max_difference'])} |" in FIGURES


def test_where_the_time_of_a_decode_goes() -> None:
    spent = data("vae_decode")["cases"][0]["seconds_by_class"]["auto"]
    said = f"Convolution is {spent['convolution']:.1f} of the {sum(spent.values()):.1f} s that `auto` takes"
    assert said in FIGURES


def test_what_compiling_a_decode_gives() -> None:
    faster = {row["row"]: f"{row['times_faster']:.2f}x" for row in data("vae_decode")["cases"][1]["rows"]}
    compiled, same = faster["whole, compiled units"], faster["whole, 1 latent frame at a time"]
    assert f"come to {compiled} where the same slices without compiling come to {same}" in FIGURES


RIVALS = [data("rivals"), data("rivals", "amd_epyc")]


@pytest.mark.parametrize("case", [c for one in RIVALS for c in one["cases"]], ids=lambda case: case["case"])
def test_against_what_a_user_would_pick_instead(case: dict[str, Any]) -> None:
    ours, core = case["rows"]
    spread = f"{core['time_over_ours']:.2f}x ({core['least']:.2f} to {core['largest']:.2f})"
    peaks = ", ".join(f"{row['peak_mib']:.0f} MiB" for row in (ours, core))
    differences = ", ".join(exponent(row["max_difference"]) for row in (ours, core))
    cells = (f"{ours['seconds']:.2f} s", spread, f"{core['cpu_time_over_ours']:.2f}x", peaks, differences)
    assert f"| {case['case']} | {' | '.join(cells)} |" in FIGURES


HALF = data("rivals_bfloat16", "amd_epyc")


@pytest.mark.parametrize("case", HALF["cases"], ids=lambda case: case["case"])
def test_in_bfloat16(case: dict[str, Any]) -> None:
    ours, fast, core = case["rows"]
    spread = f"{core['time_over_ours']:.2f}x ({core['least']:.2f} to {core['largest']:.2f})"
    peaks = ", ".join(f"{row['peak_mib']:.0f} MiB" for row in case["rows"])
    quick = f"{fast['seconds']:.2f} s | {core['time_over_fast']:.2f}x"
    cells = (f"{ours['seconds']:.2f} s", spread, quick, peaks, f"{fast['max_difference']:.2f} of std")
    assert f"| {case['case']} | {' | '.join(cells)} |" in FIGURES
    assert max(ours["max_difference"], core["max_difference"]) <= 3e-5


BUSY = data("rivals_busy_4", "amd_epyc")


@pytest.mark.parametrize("case", BUSY["cases"], ids=lambda case: case["case"])
def test_beside_other_work(case: dict[str, Any]) -> None:
    ours, core = case["rows"]
    spread = f"{core['time_over_ours']:.2f}x ({core['least']:.2f} to {core['largest']:.2f})"
    assert f"| {case['case']} | {ours['seconds']:.2f} s | {spread} | {core['cpu_time_over_ours']:.2f}x |" in FIGURES
    assert BUSY["busy_processes"] == 4


NODES = data("core_nodes", "amd_epyc")


@pytest.mark.parametrize("vae", NODES["vaes"], ids=lambda vae: vae["vae"])
def test_beside_comfyuis_own_nodes(vae: dict[str, Any]) -> None:
    rows = {row["case"]: row for row in vae["rows"]}
    spread = lambda row: f"{row['core_over_ours']:.2f}x ({row['least']:.2f} to {row['largest']:.2f})"
    size = "x".join(str(cells) for cells in vae["latent"])
    whole = f"{spread(rows['decode'])} | {spread(rows['encode'])}"
    tiles = " | ".join(f"{rows[f'{way} in tiles']['core_over_ours']:.2f}x" for way in ("decode", "encode"))
    largest = max(rows[way]["max_difference"] for way in ("decode", "encode"))
    assert f"| {vae['vae']} | {size} | {whole} | {tiles} | {exponent(largest)} |" in FIGURES


def test_of_which_comfyui_the_nodes_are() -> None:
    assert f"ComfyUI {NODES['comfyui']}'s own VAE objects" in FIGURES


PLANS = data("plan_search", "amd_epyc")


def test_what_auto_cuts_beside_every_other_cut() -> None:
    tried = sum(case["tried"] for case in PLANS["cases"])
    behind = max(row["auto_takes"] for case in PLANS["cases"] for row in case["rows"]) - 1
    said = f"of {tried} ways to cut three latents none is more than {100 * behind:.1f}% faster than what `auto` chose"
    assert said in FIGURES
    costs = ", ".join(f"{case['choosing_percent']:.0f}%" for case in PLANS["cases"])
    first = PLANS["cases"][0]["choosing_seconds"]
    assert f"measuring is {costs} of the first decode of each, one after the other ({first} s of the first)" in FIGURES
    assert not any(case["choosing_again_seconds"] for case in PLANS["cases"])


def test_what_auto_takes_now() -> None:
    stored = PACK / "benchmarks" / "results" / "host_side.json"
    peaks = json.loads(stored.read_text(encoding="utf-8"))["processor_peaks_mib"]
    large, small, encode = (f"{peaks[name]:.0f} MiB" for name in ("decode 3x16x16", "decode 2x8x8", "encode 9x128x128"))
    assert f"`auto` comes to {large} at 3x16x16, {small} at 2x8x8 and {encode} at the encode" in FIGURES


def test_what_the_readme_says_of_core() -> None:
    def span(*names: str) -> str:
        found = [c["rows"][1]["time_over_ours"] for one in RIVALS for c in one["cases"] if c["case"] in names]
        return f"{min(found):.1f}x to {max(found):.1f}x"

    decode, encode = span("decode 2x8x8", "decode 3x16x16"), span("encode 9x128x128")
    readme = " ".join((PACK / "README.md").read_text(encoding="utf-8").split())
    assert f"{decode} as fast at a decode of 64 pixels and more, {encode} at an encode" in readme


LONG_CLIPS = data("causal_decode", "amd_epyc")


@pytest.mark.parametrize("row", LONG_CLIPS["rows"], ids=lambda row: f"{row['vae']} {row['frames']}")
def test_long_clips(row: dict[str, Any]) -> None:
    sizes = " | ".join(f"{row[key]:.1f} GiB" for key in ("diffusers_gib", "streamed_gib", "fast_gib"))
    assert f"| {row['vae']} | {row['frames']} | {sizes} |" in FIGURES


def test_long_clips_in_time() -> None:
    times = LONG_CLIPS["time"]
    for vae in ("Wan 2.1", "HunyuanVideo 1.5", "LTX-2"):
        rows = {row["way"]: row for row in times if row["vae"] == vae}
        faster = " | ".join(f"{rows[way]['times_faster']:.2f}x" for way in ("streamed", "fast, channels-last", "fast"))
        assert f"| {vae} | {rows['diffusers']['clip']} | {rows['diffusers']['seconds']:.1f} s | {faster} |" in FIGURES
    assert max(row["largest_difference"] for row in times) <= 5e-6


@pytest.mark.parametrize("row", data("picture_quality", "amd_epyc")["rows"], ids=lambda row: row["row"])
def test_what_an_optimization_leaves_of_the_picture(row: dict[str, Any]) -> None:
    close = f"{row['psnr_db']:.1f} dB ({row['psnr_db_least']:.1f}) | {row['ssim']:.4f}"
    assert f"| {row['row']} | {close} | {row['max_difference']:.3f} | {row['seam']:.1f} |" in FIGURES


CLIPS = data("clip_quality", "amd_epyc")


@pytest.mark.parametrize("row", CLIPS["rows"], ids=lambda row: row["row"])
def test_what_a_way_to_decode_leaves_of_a_clip(row: dict[str, Any]) -> None:
    close = f"{row['psnr_db']:.1f} dB ({row['psnr_db_least']:.1f})" if row["psnr_db"] else "the same"
    assert (
        f"| {row['row']} | {close} | {row['ssim']:.4f} | {row['max_difference']:.3f} | {row['seam']:.1f} |" in FIGURES
    )


def test_the_clip_is_that_of_the_weights_that_are_here() -> None:
    weights = hashlib.sha256((PACK / "vae" / "trained" / "video_vae.safetensors").read_bytes()).hexdigest()[:12]
    assert CLIPS["model"] == f"tiny:video-vae, {weights}"
    came_back, frames = CLIPS["came_back"], CLIPS["size"].split("x")[2]
    assert f"{frames} frames of it; what comes back is {came_back['psnr_db']:.1f} dB from what went in" in FIGURES


def test_what_auto_chooses() -> None:
    rows = data("auto_choice")["rows"]
    assert f"at most {max(row['behind_percent'] for row in rows):.1f}% behind the best median" in FIGURES
    probing = [row["probing_s"] for row in rows]
    limit = data("auto_choice")["time_limit_s"]
    assert f"took {min(probing):.0f} to {max(probing):.0f} s with a limit of {limit:.0f} s" in FIGURES


def test_what_the_pack_costs() -> None:
    found = data("overhead")
    small, mid = found["rows"]
    assert f"{small['overhead_ms']:.0f} ms on a run of {1000 * small['bare_s']:.0f} ms" in FIGURES
    low, high = mid["interval_percent"]
    said = f"on a run of {mid['bare_s']:.1f} s, {mid['overhead_percent']:.1f}% ({low:.1f}% to {high:+.1f}%)"
    assert said in FIGURES
    assert max(found["switch_s"].values()) <= 0.002
    assert f"importing the pack {1000 * found['import_s']:.0f} ms" in FIGURES


def test_the_video_vae_on_a_card() -> None:
    found = data("vae_decode", "nvidia_h200")
    rows = {row["row"]: row for row in found["cases"][0]["rows"]}
    assert found["cases"][0]["case"] == "81 frames 1248x720"
    auto = rows["auto"]
    assert f"in float16 in {auto['seconds']:.1f} s with {auto['peak_mib'] / 1024:.1f} GiB above the weights" in FIGURES
    spent = found["cases"][0]["seconds_by_class"]["auto"]["convolution"]
    assert f"Convolution and attention are {spent:.1f} of the {auto['seconds']:.1f} s" in FIGURES
    assert rows["plain decoder"]["seconds"] == "out of memory"
    tall = next(case for case in found["cases"] if case["case"] == "81 frames 832x1216")
    row = next(row for row in tall["rows"] if row["row"] == "auto")
    assert f"81 frames of 832x1216 take {row['seconds']:.1f} s and {row['peak_mib'] / 1024:.1f} GiB" in FIGURES
    short = {row["row"]: row for row in found["cases"][1]["rows"]}
    own, plain = (f"{short[name]['seconds']:.1f} s" for name in ("auto", "plain decoder"))
    sizes = [f"{short[name]['peak_mib'] / 1024:.1f} GiB" for name in ("auto", "plain decoder")]
    assert found["cases"][1]["case"] == "21 frames 1248x720"
    assert f"21 frames take it {own} and {sizes[0]}, the plain decoder {plain} and {sizes[1]}" in FIGURES
    assert f"ran out of the card's {found['machine']['device']['total_gib']} GiB" in FIGURES


def test_other_models_on_a_card() -> None:
    ways = {row["way"]: row for row in data("causal_decode", "nvidia_h200")["time"] if row["vae"] == "Wan 2.1"}
    faster = {way: f"{row['times_faster']:.2f}x" for way, row in ways.items()}
    said = f"streamed {faster['streamed']} and `fast` {faster['fast, channels-last']} as fast"
    assert f"in {ways['diffusers']['seconds']:.1f} s by diffusers, {said} ({faster['fast']} without" in FIGURES
    assert ways["streamed"]["largest_difference"] == 0
    flux = data("flux_dev_1024", "nvidia_h200")
    [plain] = [row for row in flux["rows"] if row["name"] == "plain"]
    seconds, step = plain["run"]["median"], plain["step"]["median"]
    taken = f"in {seconds:.1f} s, {1000 * step:.0f} ms a step, with {plain['memory']['reserved'] / 2**30:.1f} GiB"
    assert taken in FIGURES


@pytest.mark.parametrize("name", ["kernels_static", "host_side"])
def test_what_is_known_without_a_card(name: str) -> None:
    pytest.importorskip("triton")
    script = import_module(f"fastdiffusers.benchmarks.{name}")
    lines = script.figures(json.loads(script.FILE.read_text(encoding="utf-8")))
    assert lines
    assert [line for line in lines if line not in FIGURES] == []


def test_kernels_on_a_card() -> None:
    rows = data("kernels", "nvidia_h200")["rows"]

    def fastest(operation: str, size: str, way: str) -> float:
        times = [
            r["microseconds"] for r in rows if r["operation"] == operation and size in r["size"] and r["way"] == way
        ]
        return min(times)

    own, plain = (fastest("group_norm_silu", "1x128x20x256x256", way) for way in ("triton", "plain"))
    given = fastest("group_norm_silu", "1x128x20x256x256", "triton, statistics given")
    norm = f"the pack's kernel {own:.0f} us ({given:.0f} us where its statistics are known)"
    assert f"{norm} and the faster layout of plain PyTorch {plain:.0f} us" in FIGURES
    put, sums = (fastest("put", "a sum with a bias", way) for way in ("triton_put", "eager"))
    assert f"at full size {put:.0f} us, and {sums:.0f} us by PyTorch's two sums" in FIGURES
    own, plain = (fastest("pixel_shuffle_3d", "1x1024x2x360x624", way) for way in ("triton_pixel_shuffle", "plain"))
    assert f"takes {own:.0f} us, and {plain:.0f} us by plain PyTorch" in FIGURES
