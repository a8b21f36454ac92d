"""What a comparison found: one row per setting, the facts it holds for, and the recommendation."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelFileError, check_choice
from ..optimizations.components import HIGH_NOISE, LOW_NOISE
from ..optimizations.settings import (
    COMPILE_BACKENDS,
    CompileSettings,
    OptimizationSettings,
    PrecisionSettings,
    TilingSettings,
)
from ..pipelines.loading.small_files import read_json
from .row import VAE, ComparisonRow
from .verdict import headline, recommended, verdict
from .words import GIB


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
        return recommended(self.rows)

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        return headline(self.rows)

    @property
    def verdict(self) -> str:
        """The answer, and what speaks for it."""
        return verdict(self.rows)

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
        _check_kinds(values, asdict(OptimizationSettings()))
        check_choice("compile backend", values["compile"]["backend"], COMPILE_BACKENDS)
        nested = {"compile": CompileSettings, "vae_tiling": TilingSettings, "precision": PrecisionSettings}
        return OptimizationSettings(**values | {name: kind(**values[name]) for name, kind in nested.items()})
    except ModelFileError as error:
        raise InputError("recommended", str(path), error.reason, "give the results.json of a benchmark") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        reason, cure = "it is not the results.json of a benchmark by this version", "run the benchmark again"
        raise InputError("recommended", str(path), reason, cure) from None


def _check_kinds(values: Any, like: dict[str, Any]) -> None:
    """Raise TypeError for values that are of other kinds than those that a benchmark writes."""
    for name, own in like.items():
        value = values.get(name, own)
        if isinstance(own, dict) and isinstance(value, dict):
            _check_kinds(value, own)
        elif type(value) is not type(own) and (type(own), type(value)) != (float, int):
            raise TypeError(f"{name} is no {type(own).__name__}")


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
    "high noise step s",
    "low noise step s",
    "switching s",
    "vae share",
    "moved on GiB",
    "moved off GiB",
    "psnr dB",
    "max difference",
    "ssim",
    "lossless",
    "problem",
)


def _csv_values(row: ComparisonRow) -> list[object]:
    run, versus, quality = row.run, row.versus, row.quality
    experts = {expert.name: expert.seconds for expert in row.experts}
    return [
        row.name,
        row.verdict,
        *(("", "", "", 0) if run is None else (_number(run.median), _number(run.low), _number(run.high), run.runs)),
        *(("", "", "") if versus is None else (_number(versus.ratio), _number(versus.low), _number(versus.high))),
        _number(row.step.median if row.step else None),
        _number(row.first_run_extra),
        _number(row.break_even_runs),
        *(_gib(size) for size in (row.memory.allocated, row.memory.reserved, row.memory.host, row.offloaded_bytes)),
        *(_number(experts.get(name)) for name in (HIGH_NOISE, LOW_NOISE)),
        _number(row.switching),
        _number(row.share_of(VAE) if row.stages else None),
        *(_gib(size) for size in row.moved or (None, None)),
        *(("", "", "") if quality is None else map(_number, (quality.psnr_db, quality.max_difference, quality.ssim))),
        "" if row.lossless is None else row.lossless,
        row.problem,
    ]


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:.4g}"
