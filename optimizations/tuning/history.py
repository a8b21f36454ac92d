"""What this process has seen of every situation: probations that are open, and steps made without compiled code."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .compile_trial import Probation
from .key import Situation


class Session:
    """The probations of this process, one per key, and the plain steps that each situation has made."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._probations: dict[object, Probation] = {}
        self._plain_steps: dict[Situation, int] = {}

    def probation(self, key: object, make: Callable[[], Probation]) -> Probation:
        """The open probation of `key`, or a new one."""
        with self._guard:
            if key not in self._probations:
                self._probations[key] = make()
            return self._probations[key]

    def plain_steps(self, situation: Situation) -> int:
        """Steps made without compiled code."""
        with self._guard:
            return self._plain_steps.get(situation, 0)

    def add_plain_steps(self, situation: Situation, steps: int) -> None:
        with self._guard:
            self._plain_steps[situation] = self._plain_steps.get(situation, 0) + steps

    def forget(self) -> None:
        """Begin anew."""
        with self._guard:
            self._probations.clear()
            self._plain_steps.clear()


SESSION = Session()
