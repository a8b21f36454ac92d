"""What tooltips, help pages and the README say of quality is what the data files say; and they say no figure of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).resolve().parents[3]
RESULTS = PACK / "benchmarks" / "results"


def rows(benchmark: str) -> dict[str, dict[str, Any]]:
    """Row by name, of the one file with a benchmark's results."""
    (file,) = RESULTS.glob(f"{benchmark}_*.json")
    return {row["row"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}


PICTURES, CLIPS = rows("picture_quality"), rows("clip_quality")


def psnr(row: dict[str, Any]) -> float:
    return float("inf") if row["psnr_db"] is None else row["psnr_db"]


def skipped(row: dict[str, Any]) -> int:
    (number,) = re.findall(r"(\d+) of \d+ steps skipped", row["active"])
    return int(number)


def rising(found: dict[str, dict[str, Any]], names: tuple[str, ...]) -> bool:
    values = [psnr(found[name]) for name in names]
    return values == sorted(values)


QUARTER = tuple(f"tiles of {size}, overlap {size // 4}" for size in (64, 96, 128))
HALF = tuple(f"video VAE, tiles of {size}, overlap {size // 2}" for size in (96, 128))
CLAIMS: dict[str, Callable[[], bool]] = {
    "'fast' skips more steps than 'balanced'": lambda: (
        skipped(PICTURES["step cache fast"]) > skipped(PICTURES["step cache balanced"])
    ),
    "faster, and the result changes": lambda: PICTURES["step cache balanced"]["max_difference"] > 1 / 255,
    "Smaller tiles need less memory and change the result more": lambda: (
        rising(PICTURES, QUARTER) and rising(CLIPS, HALF)
    ),
    "'tiles' needs less memory and more time, and changes the result": lambda: all(
        psnr(row) < 50 for name, row in (PICTURES | CLIPS).items() if "tiles" in name
    ),
    "which changes the result.": lambda: all(
        psnr(row) < 50 for name, row in (PICTURES | CLIPS).items() if "tiles" in name
    ),
    "less memory, more time, and the result changes": lambda: all(
        psnr(row) < 50 for name, row in PICTURES.items() if "tiles" in name
    ),
    "little memory, no seams, the result of the whole": lambda: all(
        psnr(row) > 90 and row["seam"] == 0 for name, row in CLIPS.items() if "exact" in name or "at a time" in name
    ),
    "bfloat16 is less exact": lambda: (
        psnr(CLIPS["video VAE, bfloat16"]) < psnr(CLIPS["video VAE, float16"])
        and psnr(PICTURES["bfloat16"]) < psnr(PICTURES["float16"])
    ),
    "less memory, some loss of quality": lambda: all(
        psnr(PICTURES[name]) < 60 for name in ("sdnq-int8", "sdnq-uint4", "torchao-int8", "layerwise-fp8")
    ),
    "'int8' loses less than 'uint4'": lambda: psnr(PICTURES["sdnq-int8"]) > psnr(PICTURES["sdnq-uint4"]),
    "The result is the same within rounding": lambda: psnr(PICTURES["compiled"]) > 90,
    "without seams in its `exact` mode": lambda: all(
        row["seam"] == 0 for name, row in CLIPS.items() if "exact" in name
    ),
}
"""What is said -> whether it is so, by the data."""
NOT_MEASURED = (
    "'sage' quantizes, which changes the result",
    "`sage` quantizes, so it differs",
    "The result differs: look before you keep it",
    "faster and less exact",
    "less exact, and not measured yet",
    "loses more than compile gains",
)
"""What is said without a figure to rest on: what something is, or that it was not measured."""
ABOUT_QUALITY = re.compile(
    r"\bseams?\b|loss of quality|\bloses? (less|least|more|most)|less exact|result (changes|differs|is the same)"
    r"|chang\w+ the result|\bvisibl|looks? (better|worse)|\bdB\b|PSNR|SSIM"
)


def texts() -> dict[str, str]:
    """Every tooltip, description and help page in English, and the README, by where it is."""
    found = {path.name: path.read_text(encoding="utf-8") for path in (PACK / "web" / "docs").glob("*.md")}
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    return {"README.md": " ".join(readme.split()), **found}


@pytest.mark.parametrize("said", CLAIMS)
def test_it_is_said_and_so(said: str) -> None:
    assert any(said in text for text in texts().values()), "nobody says it any more"
    assert CLAIMS[said]()


def test_nothing_else_is_said_of_quality() -> None:
    known = (*CLAIMS, *NOT_MEASURED)
    for place, text in texts().items():
        for part in known:
            text = text.replace(part, "")
        left = [text[max(0, found.start() - 60) : found.end() + 30] for found in ABOUT_QUALITY.finditer(text)]
        assert not left, f"{place}: {left}"
