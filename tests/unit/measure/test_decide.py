"""What "auto" becomes, given what was measured: plain figures in, a choice and its reason out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastdiffusers.optimizations.compile_cost import ASSUMED, Expectation, PayBack
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings, TilingSettings
from fastdiffusers.optimizations.tuning.decide import decide, expectation
from fastdiffusers.optimizations.tuning.key import TuningKey
from fastdiffusers.optimizations.tuning.store import Row

PLAIN: tuple[tuple[str, str], ...] = ()
HERE = TuningKey("card", "torch 2.13", "flux@1", "bfloat16", "none", "gpu", "1.05 Mpx")
COMPILED = ("torch_compile", "blocks inductor default")
AUTO = OptimizationSettings(torch_compile="auto")


def row(verdict: str, seconds: float, *settings: tuple[str, str], key: TuningKey = HERE, **fields: object) -> Row:
    fields.setdefault("gain", 1 - seconds / 10)
    fields.setdefault("step_seconds", seconds / 20)
    return Row(key, tuple(sorted(settings)), verdict, run_seconds=seconds, runs=5, **fields)  # type: ignore[arg-type]


PLAIN_ROW = row("plain", 10.0)


def test_what_the_user_fixed_is_never_touched() -> None:
    fixed = OptimizationSettings(attention="flash", torch_compile="on", vae_tiling=TilingSettings(mode="on"))
    rows = [PLAIN_ROW, row("slower", 14.0, ("attention", "flash"))]
    assert decide(fixed, HERE, rows, steps=20).settings == fixed


def test_the_fastest_attention_of_a_benchmark_is_taken() -> None:
    rows = [PLAIN_ROW, row("faster", 8.0, ("attention", "xformers")), row("faster", 7.0, ("attention", "flash"))]
    found = decide(OptimizationSettings(), HERE, rows, steps=20)
    assert found.settings.attention == "flash"
    assert "saved 30%" in found.reasons["attention"]


def test_plain_stays_where_everything_else_is_slower_or_noise() -> None:
    rows = [
        PLAIN_ROW,
        row("slower", 12.8, ("attention", "flash")),
        row("noise", 9.95, ("attention", "xformers")),
        row("slower", 12.2, COMPILED, compile_seconds=30.0),
    ]
    found = decide(AUTO, HERE, rows, steps=1000)
    assert found.settings == replace(AUTO, attention="sdpa", torch_compile="off")
    assert found.trial is None
    assert "nothing faster" in found.reasons["attention"]
    assert "cost 22%" in found.reasons["torch_compile"]


def test_a_faster_setting_that_changes_the_picture_is_never_chosen() -> None:
    rows = [PLAIN_ROW, row("faster", 5.0, ("attention", "sage"), lossless=False)]
    assert decide(AUTO, HERE, rows, steps=20).settings.attention == "sdpa"


def test_without_measurements_attention_and_tiling_stay_auto_and_compile_gets_a_trial() -> None:
    found = decide(AUTO, HERE, [], steps=20)
    assert found.settings == replace(AUTO, torch_compile="off")
    assert found.trial == replace(AUTO, torch_compile="on")
    assert found.expected == ASSUMED


@pytest.mark.parametrize("changed", ["software", "device", "model", "shape", "dtype"])
def test_measurements_of_another_situation_decide_nothing(changed: str) -> None:
    elsewhere = replace(HERE, **{changed: "other"})
    rows = [row("plain", 10.0, key=elsewhere), row("faster", 5.0, ("attention", "flash"), key=elsewhere)]
    assert decide(AUTO, HERE, rows, steps=20).settings.attention == "auto"


def test_a_slower_or_failed_or_useless_trial_is_not_repeated() -> None:
    for verdict, reason in (("slower", "cost"), ("noise", "no difference"), ("failed", "the backend said no")):
        gain = -0.2 if verdict == "slower" else 0.0
        past = row(verdict, 12.0, COMPILED, gain=gain, source="probation", reason="the backend said no")
        found = decide(AUTO, HERE, [past], steps=10**6)
        assert found.settings.torch_compile == "off"
        assert found.trial is None
        assert reason in found.reasons["torch_compile"]


def test_a_faster_trial_is_kept_where_it_pays_back() -> None:
    rows = [PLAIN_ROW, row("faster", 6.0, COMPILED, compile_seconds=4.0, source="probation")]  # saves 0.2 s a step
    assert decide(AUTO, HERE, rows, steps=20).settings.torch_compile == "on"
    short = decide(AUTO, HERE, rows, steps=4)
    assert short.settings.torch_compile == "off"
    assert "pays back after 20 steps; 4 are left" in short.reasons["torch_compile"]
    assert decide(AUTO, HERE, rows, steps=4, session_steps=20).settings.torch_compile == "on"
    assert decide(AUTO, HERE, rows, steps=4, compiled=True).settings.torch_compile == "on"


def test_compiled_in_another_way_is_another_measurement() -> None:
    rows = [PLAIN_ROW, row("faster", 5.0, ("torch_compile", "model inductor max-autotune"), compile_seconds=1.0)]
    found = decide(AUTO, HERE, rows, steps=100)
    assert found.settings.torch_compile == "off"
    assert found.trial is not None
    whole = replace(AUTO, compile=CompileSettings(scope="model", mode="max-autotune"))
    assert decide(whole, HERE, rows, steps=100).settings.torch_compile == "on"


def test_the_best_combination_is_taken_whole() -> None:
    both = row("faster", 5.0, COMPILED, ("attention", "flash"), compile_seconds=0.5)
    rows = [PLAIN_ROW, row("faster", 6.0, COMPILED, compile_seconds=0.5), both]
    found = decide(AUTO, HERE, rows, steps=100)
    assert (found.settings.attention, found.settings.torch_compile) == ("flash", "on")


def test_tiling_is_off_where_the_benchmark_found_it_slower() -> None:
    rows = [PLAIN_ROW, row("slower", 12.0, ("vae_tiling", "on"))]
    found = decide(OptimizationSettings(), HERE, rows, steps=4)
    assert found.settings.vae_tiling.mode == "off"
    faster = [PLAIN_ROW, row("faster", 7.0, ("vae_tiling", "on"))]
    assert decide(OptimizationSettings(), HERE, faster, steps=4).settings.vae_tiling.mode == "on"


def test_a_row_that_failed_is_no_choice() -> None:
    broken = replace(row("failed", 1.0, ("attention", "flash")), run_seconds=None)
    assert decide(AUTO, HERE, [PLAIN_ROW, broken], steps=9).settings.attention == "sdpa"


def test_a_two_step_run_with_a_minute_of_compiling_does_not_pay_and_the_sum_is_shown() -> None:
    sum_ = PayBack(Expectation(60.0, 0.2, "measured here"), step_seconds=17.4, steps_left=2)
    assert not sum_.pays
    assert str(sum_) == (
        "compiling takes 60 s and saves 3.48 s of each 17.4 s step (measured here), so it pays back after 17 steps; "
        "2 are left in this run and the session has made 0"
    )
    assert replace(sum_, steps_left=18).pays
    assert replace(sum_, session_steps=18).pays


def test_no_gain_never_pays() -> None:
    sum_ = PayBack(Expectation(1.0, 0.0, "x"), 1.0, 10**9)
    assert not sum_.pays
    assert "pays back never" in str(sum_)


def test_expectations_come_from_the_nearest_measurement() -> None:
    other_size = row("faster", 8.0, COMPILED, key=replace(HERE, shape="4 Mpx"), compile_seconds=20.0)
    other_model = row("faster", 6.0, COMPILED, key=replace(HERE, model="wan@1"), compile_seconds=40.0)
    losing_model = row("slower", 15.0, COMPILED, key=replace(HERE, model="sdxl@1"), compile_seconds=40.0)
    old_torch = row("faster", 2.0, COMPILED, key=replace(HERE, software="torch 2.6"), compile_seconds=1.0)
    assert expectation(HERE, (COMPILED,), [old_torch, losing_model]) == ASSUMED
    assert expectation(HERE, (COMPILED,), [other_model, losing_model]).compile_seconds == 40.0
    near = expectation(HERE, (COMPILED,), [other_model, other_size])
    assert (near.compile_seconds, near.gain) == (20.0, pytest.approx(0.2))
    assert expectation(HERE, PLAIN, [other_size]) == ASSUMED


def test_a_loss_in_another_size_of_the_same_model_is_not_tried_again() -> None:
    past = row("slower", 12.0, COMPILED, key=replace(HERE, shape="4 Mpx"), compile_seconds=20.0)
    found = decide(AUTO, HERE, [past], steps=10**6)
    assert found.trial is None
    assert "not tried" in found.reasons["torch_compile"]
