"""What a comparison found: one row per setting, the facts it holds for, and the recommendation."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelFileError
from ..optimizations.settings import CompileSettings, OptimizationSettings, PrecisionSettings, TilingSettings
from ..optimizations.tuning.candidates import Measured
from ..optimizations.tuning.meters import PeakMemory
from ..optimizations.tuning.quality import Quality
from ..optimizations.tuning.statistics import PairedVerdict, Spread
from ..pipelines.loading.small_files import read_json

GIB = 2**30


@dataclass(frozen=True)
class ComparisonRow:
    """One setting.

    Attributes:
        name: see `choices.py`.
        settings: what it stands for.
        run: seconds of a whole run; None when nothing was counted.
        step: seconds of a steady denoising step.
        versus: against plain; None for plain itself and for what was given up.
        stages: median seconds by stage, in the order in which they happen.
        first_run_extra: seconds that the first run took beyond a later one, more than plain's first did.
        memory: peaks.
        offloaded_bytes: weights of the denoiser that were off the device after a step; None where that is unknown.
        quality: against plain's result.
        active: what was really on, "attention sdpa, torch_compile 4 blocks, ...".
        problem: why it was given up, or "".
    """

    name: str
    settings: OptimizationSettings
    run: Spread | None = None
    step: Spread | None = None
    versus: PairedVerdict | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    first_run_extra: float = 0.0
    memory: PeakMemory = field(default_factory=PeakMemory)
    offloaded_bytes: int | None = None
    quality: Quality | None = None
    active: str = ""
    problem: str = ""

    @classmethod
    def of(cls, measured: Measured, settings: OptimizationSettings, plain: Measured) -> ComparisonRow:
        is_plain = measured is plain
        report = measured.report
        return cls(
            name=measured.name,
            settings=settings,
            run=measured.run,
            step=measured.step,
            versus=None if is_plain or measured.run is None or plain.run is None else measured.against(plain),
            stages=measured.stages,
            first_run_extra=0.0 if is_plain else max(0.0, measured.first_run_cost - plain.first_run_cost),
            memory=measured.memory,
            offloaded_bytes=measured.offloaded_bytes,
            quality=measured.quality,
            active="" if report is None else ", ".join(f"{record.name} {record.applied}" for record in report),
            problem=measured.problem,
        )

    @property
    def verdict(self) -> str:
        """ "plain", "faster", "slower", "noise", "failed" or "not measured"."""
        if self.problem:
            return "failed"
        if self.run is None:
            return "not measured"
        return "plain" if self.versus is None else self.versus.verdict

    @property
    def lossless(self) -> bool | None:
        """Whether the result is plain's as far as anybody can see; None when it was not compared."""
        if self.verdict == "plain":
            return True
        return None if self.quality is None else self.quality.lossless

    @property
    def break_even_runs(self) -> float | None:
        """Runs after which the first one's extra time is earned back; None when it never is."""
        if self.versus is None or self.run is None or self.versus.verdict != "faster":
            return None
        saved = self.run.median / self.versus.ratio - self.run.median
        return max(1.0, math.ceil(self.first_run_extra / saved)) if saved > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-compatible; without the settings' defaults, with everything that was measured."""
        row = {
            "name": self.name,
            "verdict": self.verdict,
            "run": self.run and asdict(self.run),
            "step": self.step and asdict(self.step),
            "versus_plain": self.versus and asdict(self.versus),
            "stages": dict(self.stages),
            "first_run_extra": self.first_run_extra,
            "break_even_runs": self.break_even_runs,
            "memory": asdict(self.memory),
            "offloaded_bytes": self.offloaded_bytes,
            "quality": self.quality and asdict(self.quality),
            "lossless": self.lossless,
            "active": self.active,
            "problem": self.problem,
            "settings": asdict(self.settings),
        }
        return _finite(row)


@dataclass(frozen=True)
class Comparison:
    """All rows, plain first, and what they hold for.

    Attributes:
        rows: one per setting.
        facts: model, device, versions, shape, steps, runs, ...: short text, in the order to show them.
        notes: what to know when reading it: stopped early, cancelled, ...
    """

    rows: tuple[ComparisonRow, ...]
    facts: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def plain(self) -> ComparisonRow:
        return self.rows[0]

    @property
    def recommended(self) -> ComparisonRow:
        """The fastest lossless row that is faster beyond the noise; plain where there is none."""
        better = [row for row in self.rows if row.verdict == "faster" and row.lossless and row.run is not None]
        return min(better, key=lambda row: row.run.median if row.run else math.inf, default=self.plain)

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        best = self.recommended
        if self.plain.run is None:
            return "Nothing was measured."
        if best.run is None or best.versus is None:  # it is plain
            tried = [row.name for row in self.rows[1:] if row.run is not None]
            if not tried:
                return "Only plain was measured."
            return f"Keep it plain: nothing of {', '.join(tried)} was faster beyond the noise with the same picture."
        times = f"{best.versus.gain:.0%} less time ({self.plain.run.median:.3g} -> {best.run.median:.3g} s)"
        runs = best.break_even_runs
        if runs is None or runs <= 1:
            return f"Use {best.name}: {times}."
        first = f"after a first run of {best.first_run_extra:.3g} s more"
        return f"Use {best.name} for {runs:.0f} runs or more: {times}, {first}."

    def as_dict(self) -> dict[str, Any]:
        return {
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "verdict": self.verdict,
            "recommended": self.recommended.name,
            "rows": [row.as_dict() for row in self.rows],
        }

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def as_csv(self) -> str:
        """One line per row, for a spreadsheet: figures without units, the units in the header."""
        stages = list(dict.fromkeys(name for row in self.rows for name in row.stages))
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*CSV_COLUMNS, *(f"{name} s" for name in stages)])
        for row in self.rows:
            writer.writerow([*_csv_values(row), *(_number(row.stages.get(name)) for name in stages)])
        return file.getvalue()


def recommended_settings(path: Path) -> OptimizationSettings:
    """What a results.json recommends.

    Raises:
        InputError: the file is missing, is no such file, or names settings that this version does not have.
    """
    try:
        data = read_json(path)
        rows = {row["name"]: row["settings"] for row in data["rows"]}
        values = dict(rows[data["recommended"]])
        nested = {"compile": CompileSettings, "vae_tiling": TilingSettings, "precision": PrecisionSettings}
        return OptimizationSettings(**values | {name: kind(**values[name]) for name, kind in nested.items()})
    except ModelFileError as error:
        raise InputError("recommended", str(path), error.reason, "give the results.json of a benchmark") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        reason, cure = "it is not the results.json of a benchmark by this version", "run the benchmark again"
        raise InputError("recommended", str(path), reason, cure) from None


CSV_COLUMNS = (
    "setting",
    "verdict",
    "run s",
    "run s low",
    "run s high",
    "runs",
    "ratio to plain",
    "ratio low",
    "ratio high",
    "step s",
    "first run extra s",
    "break-even runs",
    "allocated GiB",
    "reserved GiB",
    "host GiB",
    "offloaded GiB",
    "psnr dB",
    "max difference",
    "ssim",
    "lossless",
    "problem",
)


def _csv_values(row: ComparisonRow) -> list[object]:
    run, versus, quality = row.run, row.versus, row.quality
    return [
        row.name,
        row.verdict,
        *(("", "", "", 0) if run is None else (_number(run.median), _number(run.low), _number(run.high), run.runs)),
        *(("", "", "") if versus is None else (_number(versus.ratio), _number(versus.low), _number(versus.high))),
        _number(row.step.median if row.step else None),
        _number(row.first_run_extra),
        _number(row.break_even_runs),
        *(_gib(size) for size in (row.memory.allocated, row.memory.reserved, row.memory.host, row.offloaded_bytes)),
        *(("", "", "") if quality is None else map(_number, (quality.psnr_db, quality.max_difference, quality.ssim))),
        "" if row.lossless is None else row.lossless,
        row.problem,
    ]


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:.4g}"


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not know, become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
