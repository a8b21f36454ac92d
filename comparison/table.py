"""A comparison as text: an aligned table for a terminal, Markdown to paste into a forum."""

from __future__ import annotations

from collections.abc import Sequence

from ..optimizations.tuning.expert_steps import ExpertSteps
from .result import Comparison
from .row import ENOUGH_PAIRS, VAE, ComparisonRow
from .words import gib, seconds, times

HEADER = ("setting", "run", "against plain", "step", "first run", "pays after", "peak memory", "same picture?")
MOVED = "moved on / off: weights that one run copies to the device and back; 0 where they stay, as on the CPU"


def as_table(comparison: Comparison) -> str:
    """The rows, the verdict, the notes and the facts, for a terminal or a node."""
    lines = _aligned([HEADER, *(_cells(row) for row in comparison.rows)])
    lines += [f"{row.name}: {row.problem}" for row in comparison.rows if row.problem]
    parts = where_the_time_goes(comparison)
    if parts:
        lines += ["", *_aligned(parts), MOVED]
    lines += ["", comparison.verdict]
    lines += [f"note: {note}" for note in comparison.notes]
    lines += ["", *(f"{name}: {value}" for name, value in comparison.facts.items())]
    return "\n".join(lines)


def as_markdown(comparison: Comparison, chart: str = "") -> str:
    """A report to paste into a forum.

    Args:
        chart: file name of the picture to show, "" for none.
    """
    lines = [f"## {comparison.headline}", ""]
    if comparison.verdict != comparison.headline:
        lines += [comparison.verdict, ""]
    if chart:
        lines += [f"![time by stage, memory and quality]({chart})", ""]
    lines += [_markdown_line(HEADER), _markdown_line(["---"] * len(HEADER))]
    for row in comparison.rows:
        cells = list(_cells(row))
        if row is comparison.recommended:
            cells[0] = f"**{cells[0]}**"
        lines.append(_markdown_line(cells))
    parts = where_the_time_goes(comparison)
    if parts:
        head, *body = parts
        lines += ["", _markdown_line(head), _markdown_line(["---"] * len(head)), *map(_markdown_line, body), "", MOVED]
    lines += [""]
    lines += [f"- {row.name} was given up: {row.problem}" for row in comparison.rows if row.problem]
    lines += [f"- {row.name}: active {row.active}" for row in comparison.rows if row.active]
    lines += [f"- {note}" for note in comparison.notes]
    lines += ["", "| measured on | |", "| --- | --- |"]
    lines += [_markdown_line([name, value]) for name, value in comparison.facts.items()]
    return "\n".join(lines)


def where_the_time_goes(comparison: Comparison) -> list[list[str]]:
    """A second table, header first: a step of each expert, the change between them, the VAE, and bytes moved.

    [] where there is nothing of that to tell: one denoiser on a device that nothing was moved to or from.
    """
    measured = [row for row in comparison.rows if row.run is not None]
    experts = list(dict.fromkeys(expert.name for row in measured for expert in row.experts))
    if not experts and not any(row.moved and any(row.moved) for row in measured):
        return []
    switch = ["switching"] if experts else []
    lines = [["setting", *(f"{name} step" for name in experts), *switch, "VAE", "moved on / off", "peak", "result"]]
    for row in measured:
        known = {expert.name: expert for expert in row.experts}
        change = ["not told apart" if row.switching is None else seconds(row.switching)] if experts else []
        vae = f"{seconds(row.seconds_of(VAE))}, {row.share_of(VAE):.0%}"
        moved = "not counted" if row.moved is None else " / ".join(gib(size) if size else "0" for size in row.moved)
        peak = row.memory.headline
        lines.append(
            [
                row.name,
                *(_expert(known.get(name)) for name in experts),
                *change,
                vae,
                moved,
                "" if peak is None else gib(peak),
                _result(row, comparison),
            ]
        )
    return lines


def _expert(expert: ExpertSteps | None) -> str:
    return "" if expert is None else f"{seconds(expert.seconds)} (x {expert.steps})"


def _result(row: ComparisonRow, comparison: Comparison) -> str:
    """ "fastest", "22% more time", "no difference", "not known yet"; of plain "keep this" where it is not surely so."""
    others = [other for other in comparison.rows if other is not row and other.run is not None]
    if row is comparison.recommended:
        beaten = row is not comparison.plain or all(other.verdict == "slower" for other in others)
        return "fastest" if beaten else "keep this"
    if row.versus is None:
        return "plain"
    if row.verdict == "noise":
        return "not known yet" if row.undecided else "no difference"
    return f"{abs(row.versus.gain):.0%} {'less' if row.versus.gain > 0 else 'more'} time"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns, with a rule below the header."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    head, *body = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    return [head, rule, *body]


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    if row.run is None:
        return (row.name, row.verdict, *[""] * 6)
    runs = row.break_even_runs
    return (
        row.name,
        f"{seconds(row.run.median)} ±{row.run.relative:.1%}",
        against_plain(row),
        "" if row.step is None else seconds(row.step.median),
        f"+{seconds(row.first_run_extra)}" if row.first_run_extra > 0 else "",
        "" if runs is None else times(runs, "run"),
        memory(row),
        same_picture(row),
    )


def against_plain(row: ComparisonRow) -> str:
    """ "-20% [-22, -19]", "noise" or "" for plain."""
    found = row.versus
    if found is None:
        return ""
    interval = f"[{found.low - 1:+.1%}, {found.high - 1:+.1%}]"
    if found.pairs < ENOUGH_PAIRS:
        interval = f"(spread unknown: {times(found.pairs, 'run')})"
    if found.verdict == "noise":
        return f"noise {interval}"
    return f"{found.ratio - 1:+.0%} {interval}"


def memory(row: ComparisonRow) -> str:
    """The peak, with what was pushed off the device."""
    peak = row.memory.headline
    text = "" if peak is None else gib(peak)
    return f"{text}, {gib(row.offloaded_bytes)} offloaded" if row.offloaded_bytes else text


def same_picture(row: ComparisonRow) -> str:
    """ "identical", "yes (61 dB)", "no (28 dB)", "NaN", or ""."""
    found = row.quality
    if found is None:
        return ""
    if not found.finite:
        return "no: NaN or infinity"
    if found.identical:
        return "identical"
    if found.psnr_db is None:
        return f"no: {found.problem}"
    return f"{'yes' if found.lossless else 'no'} ({found.psnr_db:.0f} dB)"
