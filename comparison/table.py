"""A comparison as text: an aligned table for a terminal, Markdown to paste into a forum."""

from __future__ import annotations

from .result import GIB, Comparison, ComparisonRow

HEADER = ("setting", "run", "against plain", "step", "first run", "pays after", "peak memory", "same picture?")


def as_table(comparison: Comparison) -> str:
    """The rows, the verdict, the notes and the facts, for a terminal or a node."""
    cells = [HEADER, *(_cells(row) for row in comparison.rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    lines += [f"{row.name}: {row.problem}" for row in comparison.rows if row.problem]
    lines += ["", comparison.verdict]
    lines += [f"note: {note}" for note in comparison.notes]
    lines += ["", *(f"{name}: {value}" for name, value in comparison.facts.items())]
    return "\n".join(lines)


def as_markdown(comparison: Comparison, chart: str = "") -> str:
    """A report to paste into a forum.

    Args:
        chart: file name of the picture to show, "" for none.
    """
    lines = [f"## {comparison.verdict}", ""]
    if chart:
        lines += [f"![time by stage, memory and quality]({chart})", ""]
    lines += [_markdown_line(HEADER), _markdown_line(["---"] * len(HEADER))]
    for row in comparison.rows:
        cells = list(_cells(row))
        if row is comparison.recommended:
            cells[0] = f"**{cells[0]}**"
        lines.append(_markdown_line(cells))
    lines += [""]
    lines += [f"- {row.name} was given up: {row.problem}" for row in comparison.rows if row.problem]
    lines += [f"- {row.name}: active {row.active}" for row in comparison.rows if row.active]
    lines += [f"- {note}" for note in comparison.notes]
    lines += ["", "| measured on | |", "| --- | --- |"]
    lines += [_markdown_line([name, value]) for name, value in comparison.facts.items()]
    return "\n".join(lines)


def _markdown_line(cells: list[str] | tuple[str, ...]) -> str:
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
        "" if runs is None else f"{runs:.0f} run{'s' if runs > 1 else ''}",
        memory(row),
        same_picture(row),
    )


def against_plain(row: ComparisonRow) -> str:
    """ "-20% [-22, -19]", "noise" or "" for plain."""
    found = row.versus
    if found is None:
        return ""
    interval = f"[{found.low - 1:+.1%}, {found.high - 1:+.1%}]"
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


def seconds(value: float) -> str:
    """ "12.3 s", "1.23 s", "45 ms"."""
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1000:.3g} ms"


def gib(size: int) -> str:
    """ "17.2 GiB", "312 MiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
