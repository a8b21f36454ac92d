"""Draws the icon and the banner: noise that turns into a fast-forward sign. `python scripts/draw_logo.py`."""

from __future__ import annotations

import random
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
NIGHT, GREY = "#12151f", "#3a4258"
AMBER, CORAL, TEAL = (255, 196, 84), (255, 107, 107), (64, 214, 196)
GRID = 14
SLOGAN = "diffusers in ComfyUI, as fast as the card allows"


def blend(a: tuple[int, int, int], b: tuple[int, int, int], t: float) -> str:
    return "#" + "".join(f"{round(x + (y - x) * t):02x}" for x, y in zip(a, b, strict=True))


def in_sign(column: int, row: int) -> bool:
    """Whether a cell belongs to the two chevrons."""
    tip = abs(row - (GRID - 1) / 2)
    return any(0 <= column - (start - tip) < 3 for start in (6.5, 11.0)) and tip < 5


def cells(left: float, top: float, size: float, seed: int = 7) -> list[str]:
    """The squares of the sign in a box of `size`: scattered on the left, in order on the right."""
    dice = random.Random(seed)  # noqa: S311 - a picture, not a secret
    step, found = size / GRID, []
    for row in range(GRID):
        for column in range(GRID):
            order = min(1.0, max(0.0, (column - 1) / 8))
            stray = dice.random() > 0.35 + order
            if not (in_sign(column, row) or stray):
                continue
            scatter = (1 - order) * step * 1.1
            x = left + column * step + dice.uniform(-scatter, scatter)
            y = top + row * step + dice.uniform(-scatter, scatter)
            edge = step * (0.88 if in_sign(column, row) else dice.uniform(0.25, 0.6))
            colour = blend(CORAL, AMBER, row / GRID) if order > 0.6 else blend(TEAL, CORAL, dice.random())
            colour = colour if in_sign(column, row) else GREY
            corner = f'rx="{step * 0.18:.1f}"'
            found.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{edge:.1f}" height="{edge:.1f}" {corner} fill="{colour}"/>'
            )
    return found


def picture(width: int, height: int, radius: int, body: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    ground = f'<rect width="{width}" height="{height}" rx="{radius}" fill="{NIGHT}"/>'
    return "\n".join([head, ground, *body, "</svg>"]) + "\n"


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    (DOCS / "icon.svg").write_text(picture(400, 400, 72, cells(52, 50, 300)), encoding="utf-8")
    font = 'font-family="Inter, Helvetica, Arial, sans-serif"'
    words = [
        f'<text x="520" y="292" {font} font-size="112" font-weight="700" fill="#f4f6fb">FastDiffusers</text>',
        f'<text x="524" y="366" {font} font-size="38" fill="#a8b2c8">{SLOGAN}</text>',
    ]
    (DOCS / "banner.svg").write_text(picture(1400, 600, 0, [*cells(80, 125, 350), *words]), encoding="utf-8")


if __name__ == "__main__":
    main()
