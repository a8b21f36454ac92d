"""What "auto" becomes: from what was measured for this model, size and machine, and whether compiling can pay back.

Pure functions over rows of the store; the trial of what is not known yet is `compile_trial.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from ..compile_cost import ASSUMED, Expectation, PayBack
from ..settings import OptimizationSettings
from .key import TuningKey, label
from .statistics import SMALLEST_EFFECT
from .store import Row


def expectation(key: TuningKey, compiled: tuple[tuple[str, str], ...], rows: Iterable[Row]) -> Expectation:
    """What to expect of the settings `compiled` where they were not measured for this very model, size and machine.

    The same model in other sizes on this card and software tells most; then other models on it, of which only gains
    count, because a loss may be theirs alone; else the assumption.
    """
    how = dict(compiled).get("torch_compile")
    near = [
        row
        for row in rows
        if row.key.device == key.device
        and row.key.software == key.software
        and dict(row.settings).get("torch_compile") == how
        and row.compile_seconds is not None
        and row.verdict in ("faster", "slower", "noise")
    ]
    same = [row for row in near if row.key.model == key.model]
    if same:
        return _average(same, "measured on this model in another size or mode")
    others = [row for row in near if row.verdict == "faster"]
    return _average(others, "measured on this card with other models") if others else ASSUMED


def _average(rows: list[Row], source: str) -> Expectation:
    seconds = median(row.compile_seconds for row in rows if row.compile_seconds is not None)
    return Expectation(seconds, median(row.gain for row in rows), source)


@dataclass(frozen=True)
class Decision:
    """What "auto" became.

    Attributes:
        settings: what to apply now. Fields about which nothing is known stay "auto", except torch_compile: "off".
        reasons: by record name ("attention", "torch_compile", "vae_tiling"), why; only for what was decided here.
        trial: the settings that deserve a trial during the run (`compile_trial.py`), or None.
        expected: what the trial, or the compiled settings, are expected to cost and bring.
    """

    settings: OptimizationSettings
    reasons: Mapping[str, str] = field(default_factory=dict)
    trial: OptimizationSettings | None = None
    expected: Expectation | None = None


def decide(
    settings: OptimizationSettings,
    key: TuningKey,
    rows: Iterable[Row],
    steps: int,
    session_steps: int = 0,
    compiled: bool = False,
) -> Decision:
    """Replace "auto" by what was measured.

    Args:
        settings: as the user gave them.
        key: what is about to run.
        rows: everything the store holds.
        steps: of this run.
        session_steps: plain steps made under this key since the process began.
        compiled: whether compiled code for these settings is already there, so that compiling costs nothing.
    """
    everything = list(rows)
    known = {row.settings: row for row in everything if row.key == key}
    best = _best(settings, known)
    reasons: dict[str, str] = {}
    chosen = dict(best.settings) if best is not None else {}
    measured = {name for row in known.values() for name in dict(row.settings) if row.source == "benchmark"}
    if settings.attention == "auto" and best is not None and "attention" in measured:
        settings = replace(settings, attention=chosen.get("attention", "sdpa"))
        reasons["attention"] = _because(best, "attention")
    if settings.vae_tiling.mode == "auto" and best is not None and "vae_tiling" in measured:
        mode = "on" if "vae_tiling" in chosen else "off"
        settings = replace(settings, vae_tiling=replace(settings.vae_tiling, mode=mode))
        reasons["vae_tiling"] = _because(best, "vae_tiling")
    if settings.torch_compile != "auto":
        return Decision(settings, reasons)
    off, on = replace(settings, torch_compile="off"), replace(settings, torch_compile="on")
    row = known.get(settings_label(on))
    plain = known.get(settings_label(off))
    if row is None:
        expected = expectation(key, settings_label(on), everything)
        if expected.gain < SMALLEST_EFFECT:
            reasons["torch_compile"] = f"it saved {expected.gain:.0%} ({expected.source}): not tried"
            return Decision(off, reasons)
        return Decision(off, reasons, trial=on, expected=expected)
    if row.verdict != "faster" or row.lossless is False:
        reasons["torch_compile"] = _because(row, "torch_compile")
        return Decision(off, reasons)
    expected = Expectation(0.0 if compiled else row.compile_seconds or 0.0, row.gain, "measured here")
    step = next((r.step_seconds for r in (plain, row) if r is not None and r.step_seconds is not None), None)
    sum_ = PayBack(expected, step or 0.0, steps, session_steps)
    if expected.compile_seconds > 0 and not sum_.pays:
        reasons["torch_compile"] = str(sum_)
        return Decision(off, reasons)
    reasons["torch_compile"] = _because(row, "torch_compile")
    return Decision(on, reasons, expected=expected)


AUTO_NAMES = ("attention", "torch_compile", "vae_tiling")


def _best(settings: OptimizationSettings, known: Mapping[tuple[tuple[str, str], ...], Row]) -> Row | None:
    """The fastest benchmarked row that agrees with everything the user fixed; plain wins a tie.

    None when no benchmark was made, or nothing in it agrees.
    """
    free = {name for name in AUTO_NAMES if _is_auto(settings, name)}
    fixed = {name: value for name, value in settings_label(settings) if name not in free}
    wanted = dict(settings_label(replace(settings, torch_compile="on")))
    found = []
    for row in known.values():
        values = dict(row.settings)
        agrees = {name: value for name, value in values.items() if name not in free} == fixed
        # compiled in another way than the user would have it compiled is another thing
        same_way = values.get("torch_compile") in (None, wanted["torch_compile"])
        usable = row.verdict != "failed" and row.lossless is not False and row.run_seconds is not None
        if agrees and same_way and usable and row.source == "benchmark":
            found.append(row)
    if not found:
        return None
    simplest = min(found, key=lambda row: len(row.settings))
    fastest = min(found, key=lambda row: (row.run_seconds or 0.0, len(row.settings)))
    gained = 1 - (fastest.run_seconds or 0.0) / (simplest.run_seconds or 1.0)
    clear = fastest.verdict == "faster" and gained >= SMALLEST_EFFECT
    return fastest if clear else simplest


def anything_auto(settings: OptimizationSettings) -> bool:
    """Whether the settings leave anything to what was measured."""
    return any(_is_auto(settings, name) for name in AUTO_NAMES)


def _is_auto(settings: OptimizationSettings, name: str) -> bool:
    return (settings.vae_tiling.mode if name == "vae_tiling" else getattr(settings, name)) == "auto"


def measured_overhead(settings: OptimizationSettings, key: TuningKey, rows: Iterable[Row]) -> int | None:
    """Bytes that the compiled code of `settings` takes beyond plain code here; None when that was not measured."""
    peaks = {row.settings: row.peak_bytes for row in rows if row.key == key}
    compiled = peaks.get(settings_label(settings))
    plain = peaks.get(settings_label(replace(settings, torch_compile="off")))
    return None if compiled is None or plain is None else max(0, compiled - plain)


def settings_label(settings: OptimizationSettings) -> tuple[tuple[str, str], ...]:
    """The label of settings with every "auto" taken as plain."""
    attention = "sdpa" if settings.attention == "auto" else settings.attention
    compile_ = "off" if settings.torch_compile == "auto" else settings.torch_compile
    tiling = settings.vae_tiling
    if tiling.mode == "auto":
        tiling = replace(tiling, mode="off")
    return label(replace(settings, attention=attention, torch_compile=compile_, vae_tiling=tiling))


def _because(row: Row, name: str) -> str:
    """Why a row leads to what it leads to, in one line."""
    day = row.when[:10]
    if row.verdict == "failed":
        return f"it failed here on {day}: {row.reason}"
    if row.lossless is False:
        return f"it changed the result on {day}: {row.reason or 'not lossless'}"
    if row.verdict == "plain" or (row.verdict == "faster" and name not in dict(row.settings)):
        return f"the benchmark of {day} found nothing faster"
    if row.verdict == "noise":
        return f"it made no difference here on {day} ({row.gain:+.1%}, within the noise)"
    word = "saved" if row.gain > 0 else "cost"
    reason = f": {row.reason}" if row.reason else ""
    return f"it {word} {abs(row.gain):.0%} here on {day} ({row.source}, {row.runs} {_unit(row)}){reason}"


def _unit(row: Row) -> str:
    return "runs" if row.source == "benchmark" else "steps"
