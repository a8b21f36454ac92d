"""The memory of a card, as people write it."""

from __future__ import annotations

import math
import re

from ...errors import InputError

MOST_VRAM = 4096.0
"""GiB; no card has more, so it is a mistake."""


def gib_of(text: str) -> float:
    """GiB, from 24, 24GB, 24 GiB or 24g.

    Raises:
        InputError: it is no size, or none that a card has.
    """
    number = re.sub(r"\s*(g|gb|gib)$", "", text.strip(), flags=re.IGNORECASE)
    try:
        gib = float(number)
    except ValueError:
        gib = math.nan
    if not 0 < gib <= MOST_VRAM:  # NaN too
        raise InputError("--vram", text, f"it is more than 0 and at most {MOST_VRAM:.0f} GiB", "use 24, say")
    return gib
