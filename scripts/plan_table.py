"""Writes the README's table of settings by model and card memory, from what `doctor --plan` computes.

`python . scripts.plan_table`. A test holds the README against it.
"""

from __future__ import annotations

from ..commands.libraries import prepare_libraries
from ..commands.paths import PACK
from ..commands.plan import figures, skeleton
from ..memory import GIB

MODELS = {"flux": "FLUX.1-dev", "zimage": "Z-Image", "qwenimage": "Qwen-Image", "wan-i2v": "Wan 2.2 A14B"}
CARDS = (8, 12, 16, 24, 32, 48, 80)
"""Memory of cards in GiB."""
BEGIN, END = "<!-- settings by card: begin -->", "<!-- settings by card: end -->"


def table() -> str:
    """The table in Markdown: a row for each model and way to store its weights, a column for each card."""
    lines = [["model, weights", *(f"{card} GiB" for card in CARDS)], ["---"] * (1 + len(CARDS))]
    for name, shown in MODELS.items():
        model = skeleton.model_of(name)
        plans = [figures.plan(model, card * GIB) for card in CARDS]
        for number, fit in enumerate(plans[0].fits):
            size = sum(fit.weights.values()) / GIB
            lines.append(
                [f"{shown}, {fit.stored}: {size:.1f} GiB", *(cell(one.fits[number].in_short) for one in plans)]
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(in_short: str) -> str:
    """`gpu, compile` as the README has it."""
    mode, *rest = in_short.split(", ")
    return ", ".join([f"`{mode}`", *rest])


def within(text: str) -> str:
    """What stands between the marks."""
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def main() -> None:
    prepare_libraries(verbose=False)
    file = PACK / "README.md"
    text = file.read_text(encoding="utf-8")
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    file.write_text(f"{text[:start]}\n{table()}\n{text[stop:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
