"""What every benchmark shares: the machine's facts, and results as data files.

A result file says what was measured, on which machine, with which versions and when; the figures of docs/figures.md
come from these files and from nowhere else.
"""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

from ..commands import environment
from ..commands.files import write_text

RESULTS = Path(__file__).resolve().parent / "results"


def machine(device: str = "") -> dict[str, Any]:
    """The facts that a figure depends on. `device`: the torch device that was measured; the best one when ""."""
    found = environment.devices()
    chosen = next((facts for facts in found if facts["device"] == device or facts["device"] == f"{device}:0"), found[0])
    versions = {name: version for name, version in environment.package_versions().items() if version}
    return {
        "device": {name: value for name, value in chosen.items() if name != "free_gib"},
        "versions": versions,
        "system": environment.driver(),
        "cudnn": environment.cudnn()["version"],
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def store(benchmark: str, data: dict[str, Any], device: str = "", folder: Path = RESULTS) -> Path:
    """Write `data` with the machine's facts as `<benchmark>_<device name>.json`, replacing an older result.

    Args:
        benchmark: the script's name, "overhead".
        data: JSON-compatible; what was measured.
        device: the torch device it was measured on.
        folder: where results are kept.
    """
    facts = machine(device)
    name = re.sub(r"[^a-z0-9]+", "_", facts["device"]["name"].lower()).strip("_")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}_{name}.json"
    write_text(path, json.dumps({"benchmark": benchmark, "machine": facts, **data}, indent=2, ensure_ascii=False))
    return path


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as an aligned text table."""
    header = list(rows[0])
    lines = [header, *([_cell(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
