"""The comparison as a picture: time split by stage, memory, quality. Drawn with Pillow alone, large enough for a node.

A node shows it a few hundred pixels wide, so nothing in it is smaller than a fiftieth of its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .result import Comparison
from .row import ComparisonRow
from .table import same_picture
from .words import gib, seconds

WIDTH = 1280
MARGIN = 36
ROW = 92
SMALLEST = 24
BAR = 46
NAME_LEFT, TIME_LEFT, MEMORY_LEFT, PICTURE_LEFT = MARGIN, 316, 862, 1082
TIME_WIDTH, MEMORY_WIDTH = 370, 80

PAPER, INK, FAINT, RULE, STRIPE = "#ffffff", "#1b2430", "#66717f", "#d8dde3", "#f3f6f9"
GOOD, BAD, NEUTRAL = "#1a7f4b", "#c0392b", "#66717f"
MEMORY_COLOUR = "#8fa3b8"
STAGE_COLOURS = {
    "load": "#b8a9d9",
    "text encode": "#7e57c2",
    "encode": "#f6c48f",
    "compile": "#c2185b",
    "first step": "#64b5f6",
    "steps": "#1e66c8",
    "decode": "#f08c2e",
    "transfer": "#2a9d8f",
    "other": "#c3cad2",
}
SPARE_COLOURS = ("#d4a72c", "#8d6e63", "#5c9e31")
VERDICT_COLOURS = {"faster": GOOD, "slower": BAD, "failed": BAD}


@dataclass(frozen=True)
class _Brush:
    """Text of one size on one picture."""

    draw: ImageDraw.ImageDraw

    def text(
        self, x: float, y: float, text: str, size: int, colour: str = INK, bold: bool = False, width: float = 0
    ) -> float:
        """Write with the left middle at (x, y), made to fit `width` pixels if that is given; the width it took."""
        font = _font(size)
        if width:
            while font.getlength(text) > width and size > SMALLEST:
                size -= 1
                font = _font(size)
            text = _shorten(text, font, width)
        stroke = 1 if bold else 0
        self.draw.text((x, y), text, fill=colour, font=font, anchor="lm", stroke_width=stroke, stroke_fill=colour)
        return font.getlength(text)

    def spread(self, low: float, high: float, y: float) -> None:
        """A line from `low` to `high` with an end at each, on whatever is below it."""
        for colour, extra in ((PAPER, 2), (INK, 0)):
            self.draw.rectangle((low - extra, y - 1 - extra, high + extra, y + 1 + extra), fill=colour)
            for x in (low, high):
                self.draw.rectangle((x - 1 - extra, y - 9 - extra, x + 1 + extra, y + 9 + extra), fill=colour)


def chart(comparison: Comparison) -> Image.Image:
    """Draw the comparison.

    Returns:
        An RGB picture, `WIDTH` pixels wide, as high as the rows need.
    """
    headline = _wrap(comparison.headline, _font(36), WIDTH - 2 * MARGIN)
    stages = _stages(comparison.rows)
    legend = _legend_lines(stages)
    top = MARGIN + 46 * len(headline) + 44 * len(_subtitles(comparison)) + 66
    height = top + ROW * len(comparison.rows) + 24 + 44 * len(legend) + 44 * len(_footers(comparison)) + MARGIN // 2
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    brush = _Brush(ImageDraw.Draw(picture))
    y = float(MARGIN + 20)
    for line in headline:
        brush.text(MARGIN, y, line, 36, bold=True)
        y += 46
    for line in _subtitles(comparison):
        brush.text(MARGIN, y + 2, line, 27, FAINT, width=WIDTH - 2 * MARGIN)
        y += 44
    _columns(brush, top - 34)
    for index, row in enumerate(comparison.rows):
        _row(brush, row, comparison, top + ROW * index, striped=index % 2 == 0)
    _legend(brush, legend, top + ROW * len(comparison.rows) + 40)
    y = height - MARGIN // 2 - 44 * len(_footers(comparison)) + 14
    for line in _footers(comparison):
        brush.text(MARGIN, y, line, 25, FAINT, width=WIDTH - 2 * MARGIN)
        y += 44
    return picture


def _subtitles(comparison: Comparison) -> list[str]:
    """Two lines: what ran, and on what."""
    facts = comparison.facts
    lines = [("model", "work", "dtype"), ("device", "measured")]
    joined = ["  ·  ".join(facts[name] for name in line if facts.get(name)) for line in lines]
    return [line for line in joined if line]


def _footers(comparison: Comparison) -> list[str]:
    lines = [*comparison.notes, comparison.facts.get("software", "")]
    return [line for line in lines if line][:3]


def _columns(brush: _Brush, y: float) -> None:
    for x, title in (
        (NAME_LEFT, "setting"),
        (TIME_LEFT, "time of one run"),
        (MEMORY_LEFT, "memory"),
        (PICTURE_LEFT, "same picture?"),
    ):
        brush.text(x, y, title, 26, FAINT)
    brush.draw.line((MARGIN, y + 26, WIDTH - MARGIN, y + 26), fill=RULE, width=2)


def _row(brush: _Brush, row: ComparisonRow, comparison: Comparison, top: float, striped: bool) -> None:
    if striped:
        brush.draw.rectangle((MARGIN // 2, top, WIDTH - MARGIN // 2, top + ROW - 1), fill=STRIPE)
    middle = top + ROW / 2
    best = row is comparison.recommended
    if best:
        brush.draw.rectangle((MARGIN // 2, top, MARGIN // 2 + 8, top + ROW - 1), fill=GOOD)
    width = TIME_LEFT - NAME_LEFT - 14
    colour, verdict = VERDICT_COLOURS.get(row.verdict, NEUTRAL), _verdict(row)
    brush.text(NAME_LEFT, middle - (17 if verdict else 0), row.name, 32, bold=best, width=width)
    brush.text(NAME_LEFT, middle + 20, verdict, 26, colour, width=width)
    if row.run is None:
        brush.text(TIME_LEFT, middle, row.problem or "not measured", 26, colour, width=WIDTH - MARGIN - TIME_LEFT)
        return
    _time_bar(brush, row, comparison, middle)
    _memory_bar(brush, row, comparison, middle)
    brush.text(
        PICTURE_LEFT,
        middle,
        same_picture(row) if row.verdict != "plain" else "",
        27,
        INK if row.lossless is not False else BAD,
        width=WIDTH - MARGIN // 2 - PICTURE_LEFT,
    )


def _verdict(row: ComparisonRow) -> str:
    if row.undecided:
        return "not known yet"
    if row.versus is None or row.verdict == "noise":
        return {"noise": "no difference", "plain": ""}.get(row.verdict, row.verdict)
    return f"{abs(row.versus.gain):.0%} {'less' if row.versus.gain > 0 else 'more'} time"


def _time_bar(brush: _Brush, row: ComparisonRow, comparison: Comparison, middle: float) -> None:
    if row.run is None:
        return
    longest = max(other.run.high for other in comparison.rows if other.run is not None)
    total = row.run.median
    colours = _colours(_stages(comparison.rows))
    length = TIME_WIDTH * total / longest if longest else 0.0
    whole = sum(row.stages.values()) or 1.0
    x = float(TIME_LEFT)
    for name, value in row.stages.items():
        end = x + length * value / whole
        brush.draw.rectangle((x, middle - BAR / 2, max(x, end - 1), middle + BAR / 2), fill=colours[name])
        x = end
    if not row.stages:
        brush.draw.rectangle((x, middle - BAR / 2, x + length, middle + BAR / 2), fill=STAGE_COLOURS["steps"])
        x += length
    low, high = (
        TIME_LEFT + TIME_WIDTH * (value / longest if longest else 0.0) for value in (row.run.low, row.run.high)
    )
    if row.run.runs > 1:
        brush.spread(low, high, middle)
    brush.text(max(x, high) + 12, middle, f"{seconds(total)} ±{row.run.relative:.0%}", 29)


def _memory_bar(brush: _Brush, row: ComparisonRow, comparison: Comparison, middle: float) -> None:
    peak = row.memory.headline
    if peak is None:
        return
    highest = max(other.memory.headline or 0 for other in comparison.rows) or 1
    end = MEMORY_LEFT + MEMORY_WIDTH * peak / highest
    brush.draw.rectangle((MEMORY_LEFT, middle - BAR / 2, end, middle + BAR / 2), fill=MEMORY_COLOUR)
    brush.text(end + 10, middle - (14 if row.offloaded_bytes else 0), gib(peak), 26, width=PICTURE_LEFT - end - 18)
    if row.offloaded_bytes:
        brush.text(end + 10, middle + 18, f"{gib(row.offloaded_bytes)} off", 24, BAD, width=PICTURE_LEFT - end - 18)


def _stages(rows: Sequence[ComparisonRow]) -> list[str]:
    """All stages of all rows, in the order of the first row that has them."""
    return list(dict.fromkeys(name for row in rows for name, value in row.stages.items() if value > 0))


def _colours(stages: Sequence[str]) -> dict[str, str]:
    spare = iter(SPARE_COLOURS * (1 + len(stages)))
    return (
        dict.fromkeys(STAGE_COLOURS, "")
        | STAGE_COLOURS
        | {name: next(spare) for name in stages if name not in STAGE_COLOURS}
    )


_SWATCH, _GAP = 26, 34


def _legend_lines(stages: Sequence[str]) -> list[list[tuple[str, str]]]:
    """(name, colour) of each stage, in lines that fit the width."""
    colours, font = _colours(stages), _font(26)
    lines: list[list[tuple[str, str]]] = [[]]
    x = float(MARGIN)
    for name in stages:
        width = _SWATCH + 10 + font.getlength(name) + _GAP
        if lines[-1] and x + width > WIDTH - MARGIN:
            lines.append([])
            x = MARGIN
        lines[-1].append((name, colours[name]))
        x += width
    return lines


def _legend(brush: _Brush, lines: list[list[tuple[str, str]]], y: float) -> None:
    for line in lines:
        x = float(MARGIN)
        for name, colour in line:
            brush.draw.rectangle((x, y - _SWATCH / 2, x + _SWATCH, y + _SWATCH / 2), fill=colour)
            x += _SWATCH + 10
            x += brush.text(x, y, name, 26) + _GAP
        y += 44


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]  # Pillow's own font: no file to look for


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of whole words, three at most."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > 3:
        lines = [*lines[:2], _shorten(" ".join(lines[2:]), font, width)]
    return lines
