"""Choices, rows, verdicts, tables and the chart of a comparison."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy
import pytest

from fastdiffusers.comparison import chart as drawing
from fastdiffusers.comparison.choices import CHOICES, TRIED_BY_ALL, combine, parse, settings_of
from fastdiffusers.comparison.presets import PRESETS, preset
from fastdiffusers.comparison.result import Comparison, recommended_settings
from fastdiffusers.comparison.row import ComparisonRow
from fastdiffusers.comparison.shown import ComparisonReport, summary
from fastdiffusers.comparison.table import as_markdown, as_table
from fastdiffusers.comparison.words import GIB, gib, seconds, without_classes
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.optimizations.tuning.meters import PeakMemory
from fastdiffusers.optimizations.tuning.quality import Quality
from fastdiffusers.optimizations.tuning.statistics import compare, spread
from fastdiffusers.pipelines.types import SampleRequest

BASE = OptimizationSettings.plain(memory_mode="gpu")
PLAIN_SECONDS = (120.0, 119.5, 121.0, 120.4, 120.0)
SAME = Quality(psnr_db=61.0, max_difference=0.004, ssim=0.9999)
OTHER = Quality(psnr_db=27.8, max_difference=0.4, ssim=0.91)


def row(name: str, factor: float = 1.0, quality: Quality | None = SAME, **fields: object) -> ComparisonRow:
    times = [factor * value for value in PLAIN_SECONDS]
    found: dict[str, object] = {
        "run": spread(times),
        "step": spread([factor * 17.4] * 4),
        "versus": None if name == "plain" else compare(PLAIN_SECONDS, times),
        "stages": {"text encode": 9.0, "first step": 18.0, "steps": 52.0 * factor, "decode": 23.0, "other": 18.0},
        "memory": PeakMemory(17 * GIB, 18 * GIB, 30 * GIB),
        "quality": quality,
    }
    return ComparisonRow(name, settings_of(name, BASE), **{**found, **fields})  # type: ignore[arg-type]


FAILED = ComparisonRow("flash3", settings_of("flash3", BASE), problem="flash3 needs another card")
FACTS = {"model": "Wan2.2", "work": "832x1216", "device": "card", "measured": "5 runs", "software": "torch 2.13"}


def comparison(*rows: ComparisonRow, notes: tuple[str, ...] = ()) -> Comparison:
    return Comparison((row("plain", quality=Quality(identical=True)), *rows), FACTS, notes)


def test_names_become_settings() -> None:
    assert settings_of("plain", BASE) == BASE
    both = settings_of("compile+xformers", BASE)
    assert (both.torch_compile, both.attention, both.memory_mode) == ("on", "xformers", "gpu")
    assert settings_of("compile-max", BASE).compile.mode == "max-autotune-no-cudagraphs"
    assert settings_of("tiling", BASE).vae_tiling.mode == "on"
    assert settings_of("cache-fast", BASE).step_cache == "fast"
    assert len({settings_of(name, BASE) for name in CHOICES}) == len(CHOICES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "nothing to compare"),
        ("plain", "nothing to compare"),
        (" , ", "nothing to compare"),
        ("compile,turbo", "no such setting"),
        ("compile+", "no such setting"),
        ("compile+compile-max", "exclude each other"),
        ("flash+xformers", "exclude each other"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("compare = ")


def test_plain_comes_first_and_nothing_twice() -> None:
    assert parse("xformers, compile,plain,xformers") == ["plain", "xformers", "compile"]


def test_all_is_what_works_here() -> None:
    works = parse("all,compile+xformers", lambda names: [name for name in names if name in ("compile", "xformers")])
    assert works == ["plain", "compile", "xformers", "compile+xformers"]
    assert all(CHOICES[name].lossless for name in TRIED_BY_ALL)


def test_winners_are_combined_one_of_each_field() -> None:
    assert combine(["flash", "xformers", "compile", "tiling"]) == "compile+flash+tiling"
    assert combine(["flash", "xformers"]) is None
    assert combine([]) is None
    for name in (combine(["flash", "compile"]), combine(["channels-last", "cudnn"])):
        assert name is not None
        settings_of(name, BASE)


def test_the_fastest_lossless_row_is_recommended() -> None:
    found = comparison(row("compile", 0.8), row("flash", 0.9), row("cache-fast", 0.5, OTHER))
    assert found.recommended.name == "compile"
    assert found.verdict.startswith("Use compile: 20% less time (120 -> 96 s)")


@pytest.mark.parametrize(
    "candidate",
    [
        row("compile", 1.22),
        row("compile", 0.995),
        row("compile", 0.8, OTHER),
        row("compile", 0.8, Quality(finite=False)),
        row("compile", 0.8, None),
        FAILED,
    ],
    ids=["slower", "noise", "another picture", "NaN", "not compared", "failed"],
)
def test_plain_is_recommended_where_nothing_beats_it(candidate: ComparisonRow) -> None:
    found = comparison(candidate)
    assert found.recommended is found.plain
    assert found.verdict.startswith(("Keep it plain", "Only plain", "The plain run is the fastest here: "))


def test_the_first_run_is_earned_back_after_as_many_runs_as_the_sum_says() -> None:
    assert row("compile", 0.8, first_run_extra=41.0).break_even_runs == math.ceil(41 / 24)
    assert row("compile", 0.8).break_even_runs == 1
    assert row("compile", 1.2, first_run_extra=41.0).break_even_runs is None
    assert row("plain").break_even_runs is None
    verdict = comparison(row("compile", 0.8, first_run_extra=41.0)).verdict
    assert verdict == (
        "Use compile for 2 runs or more: 20% less time (120 -> 96 s). Its first run takes 41 s more, "
        "which is paid back after 2 runs; for fewer, the plain run is the fastest."
    )


def test_what_the_noise_hides_is_not_called_no_difference() -> None:
    times = [0.6 * 120, 1.4 * 120, 0.7 * 120, 1.5 * 120, 120.0]
    noisy = row("compile", versus=compare(PLAIN_SECONDS, times), first_run_extra=41.0)
    assert noisy.verdict == "noise"
    assert "of compile too little is known (-40% to +50% time): measure more runs" in comparison(noisy).verdict.lower()
    assert "pay back" not in comparison(noisy).verdict
    assert drawing._verdict(noisy) == "not known yet"
    assert drawing._verdict(row("compile", 1.0)) == "no difference"
    same = comparison(row("compile", 1.0, first_run_extra=41.0)).verdict.lower()
    assert "compile would not pay back (no difference beyond the noise, and its first run 41 s more)" in same


def test_the_table_says_everything_a_reader_needs() -> None:
    pushed = row("compile", 1.22, offloaded_bytes=int(2.3 * GIB))
    text = as_table(comparison(pushed, row("flash", 0.9), FAILED, notes=("cancelled",)))
    for expected in (
        "120 s ±0.2%",
        "+22% [+22.0%, +22.0%]",
        "18.0 GiB, 2.3 GiB offloaded",
        "yes (61 dB)",
        "flash3: flash3 needs another card",
        "Use flash",
        "note: cancelled",
        "device: card",
        "software: torch 2.13",
    ):
        assert expected in text
    columns = [line.find("±") for line in text.splitlines() if "±" in line]
    assert len(set(columns)) <= 2  # aligned


def test_the_markdown_is_a_table_with_the_winner_in_bold() -> None:
    text = as_markdown(comparison(row("compile", 0.8), FAILED), chart="chart.png")
    assert "![time by stage, memory and quality](chart.png)" in text
    assert "| **compile** | 96 s" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_json_and_csv_hold_the_same_figures() -> None:
    found = comparison(row("compile", 0.8, first_run_extra=41.0), FAILED, row("flash", 1.0, Quality(identical=True)))
    data = json.loads(found.as_json())
    assert data["recommended"] == "compile"
    assert data["rows"][1]["settings"]["torch_compile"] == "on"
    table = list(csv.DictReader(io.StringIO(found.as_csv())))
    assert [line["setting"] for line in table] == ["plain", "compile", "flash3", "flash"]
    for line, entry in zip(table, data["rows"], strict=True):
        assert line["verdict"] == entry["verdict"]
        if entry["run"]:
            assert float(line["run s"]) == pytest.approx(entry["run"]["median"])
            assert float(line["decode s"]) == 23.0
    assert float(table[1]["ratio to plain"]) == pytest.approx(0.8)
    assert table[3]["psnr dB"] == ""
    assert table[3]["lossless"] == "True"


def test_a_row_without_pairs_is_still_json() -> None:
    lonely = row("compile", versus=compare([], []))
    assert json.loads(comparison(lonely).as_json())["rows"][1]["versus_plain"]["ratio"] is None


@pytest.mark.parametrize(("value", "text"), [(123.4, "123 s"), (12.34, "12.3 s"), (0.0451, "45.1 ms")])
def test_seconds_read_well(value: float, text: str) -> None:
    assert seconds(value) == text


def test_sizes_read_well() -> None:
    assert gib(int(17.24 * GIB)) == "17.2 GiB"
    assert gib(312 * 2**20) == "312 MiB"


def colours(picture: numpy.ndarray) -> set[str]:
    return {"#{:02x}{:02x}{:02x}".format(*pixel) for pixel in numpy.unique(picture.reshape(-1, 3), axis=0)}


def test_the_chart_draws_each_stage_as_long_as_it_took() -> None:
    found = comparison(row("compile", 0.5))
    pixels = numpy.asarray(drawing.chart(found))
    assert pixels.shape[1] == drawing.WIDTH
    for stage in ("text encode", "first step", "steps", "decode", "other"):
        assert drawing.STAGE_COLOURS[stage] in colours(pixels)
    blue = tuple(int(drawing.STAGE_COLOURS["steps"][i : i + 2], 16) for i in (1, 3, 5))
    bars = (pixels[:, drawing.TIME_LEFT : drawing.MEMORY_LEFT] == blue).all(axis=2).sum(axis=1)
    lengths = sorted({int(length) for length in bars if length > 30})
    assert lengths[-1] == pytest.approx(drawing.TIME_WIDTH * 52 / 120, abs=3)  # plain is the longest bar
    assert lengths[0] == pytest.approx(drawing.TIME_WIDTH * 0.5 * 26 / (120 - 26), abs=3)


def test_the_chart_takes_whatever_was_measured() -> None:
    empty = ComparisonRow("plain", BASE)
    for found in (
        Comparison((empty,), {}),
        comparison(FAILED),
        comparison(row("compile", 1.2, stages={"a stage of its own": 3.0}, memory=PeakMemory(), offloaded_bytes=GIB)),
        comparison(*[row("compile+xformers+channels-last", 0.9 + i / 100) for i in range(14)], notes=("x" * 900,) * 5),
    ):
        picture = drawing.chart(found)
        assert picture.width == drawing.WIDTH
        assert picture.height >= 300


def test_nothing_is_drawn_over_the_edge() -> None:
    long = "a name that is far too long for its column and goes on and on"
    found = Comparison(
        (row("plain"), ComparisonRow(long, BASE, problem=long * 5)), dict.fromkeys(FACTS, long * 4), (long * 4,)
    )
    pixels = numpy.asarray(drawing.chart(found))
    assert (pixels[:, -8:] == 255).all()
    assert (pixels[:, :8] == 255).all()
    assert (pixels[-8:] == 255).all()


def test_a_preset_fills_in_only_what_is_open() -> None:
    wan = preset("wan22-4step")
    request = wan.apply(SampleRequest("a fox", width=64, height=64))
    assert (request.steps, request.guidance, request.num_frames) == (4, 1.0, 81)
    assert (request.width, request.height) == (64, 64)
    for one in PRESETS.values():
        parse(one.compare)
    with pytest.raises(InputError, match="no such preset"):
        preset("wan99")


def test_what_a_results_file_recommends_is_read_back(tmp_path: Path) -> None:
    found = comparison(row("compile+xformers", 0.8), row("tiling", 1.2))
    path = tmp_path / "results.json"
    path.write_text(found.as_json(), encoding="utf-8")
    assert recommended_settings(path) == found.recommended.settings
    assert recommended_settings(path).attention == "xformers"


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"rows": [], "recommended": "plain"}', "\x00"])
def test_another_file_recommends_nothing(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="recommended = "):
        recommended_settings(path)


def test_a_recommendation_with_an_unknown_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(comparison(row("compile", 0.8)).as_json().replace('"sdpa"', '"turbo"'), encoding="utf-8")
    with pytest.raises(InputError, match="attention = 'turbo'"):
        recommended_settings(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("compile", "backend"), []),
        (("compile", "backend"), "turbo"),
        (("compile", "memory_check"), None),
        (("compile", "recompile_limit"), 1.5),
        (("vae_tiling", "overlap"), True),
        (("vae_tiling", "tile_size"), 10**400),
        (("precision",), {"tf32": ["on"]}),
    ],
)
def test_a_recommendation_with_a_value_of_another_kind_is_refused(
    tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    path = tmp_path / "results.json"
    found = json.loads(comparison(row("compile", 0.8)).as_json())
    for each in found["rows"]:
        settings = each["settings"]
        for name in place[:-1]:
            settings = settings[name]
        settings[place[-1]] = value
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(InputError):
        recommended_settings(path)


def test_two_runs_have_no_interval() -> None:
    """Student's of two is so wide that it says nothing: "+44912%"."""
    few = comparison(row("compile", versus=compare([1.0, 1.0], [0.2, 5.0])))
    assert "noise (spread unknown: 2 runs)" in as_table(few)
    assert "too little is known (2 runs, so that the spread is unknown)" in few.verdict
    enough = comparison(row("compile", versus=compare([1.0, 1.0, 1.0], [0.9, 1.1, 1.0])))
    assert "spread unknown" not in as_table(enough)


def test_the_chart_draws_the_spread_of_the_runs() -> None:
    noisy = row("compile", run=spread([40.0, 60.0, 80.0, 100.0, 120.0]))
    found = comparison(noisy)
    pixels = numpy.asarray(drawing.chart(found))
    ink = tuple(int(drawing.INK[i : i + 2], 16) for i in (1, 3, 5))
    longest = max(one.run.high for one in found.rows if one.run is not None)
    lines = (pixels[:, drawing.TIME_LEFT : drawing.TIME_LEFT + drawing.TIME_WIDTH + 4] == ink).all(axis=2)
    left, right = (round(drawing.TIME_WIDTH * value / longest) for value in (60, 100))
    drawn = [line for line in lines if line[left + 1 : right].all()]
    assert drawn
    assert all(not line[: left - 3].any() and not line[right + 3 : right + 10].any() for line in drawn)


def test_in_short_it_is_the_answer_plain_and_the_two_best() -> None:
    rows = [row("flash", 0.9), row("compile", 0.5), FAILED, row("cudnn", 0.7)]
    found = comparison(*rows, notes=("stopped",))
    lines = summary(found)
    assert lines[0] == found.headline
    assert [line.split(":")[0] for line in lines[1:]] == ["plain", "compile", "cudnn", "note"]
    assert "-50%" in lines[2]
    assert "±" in lines[2]
    report = ComparisonReport(found)
    whole = "\n".join(report.lines())
    assert whole.startswith(found.verdict)
    assert all(f"{one.name}: " in whole for one in found.rows)
    assert FAILED.problem in whole
    assert (report.as_table(), report.as_json()) == (as_table(found), found.as_json())


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried", "CUDA out of memory. Tried"),
        ("torch_compile fell back to off: it failed: torch._dynamo.exc.BackendCompilerFailed: no compiler", None),
        ("RuntimeError: no kernel", "no kernel"),
        ("an Error in a sentence", "an Error in a sentence"),
        ("MemoryError: ", "it failed without saying why (MemoryError)"),
        ("", ""),
    ],
)
def test_problems_are_told_without_the_names_of_classes(problem: str, words: str | None) -> None:
    told = without_classes(problem)
    assert told == ("torch_compile fell back to off: it failed: no compiler" if words is None else words)
