"""The errors a user can act on. A leaf: it imports nothing from the pack, so every folder may import it."""

from __future__ import annotations

import errno
from pathlib import PurePath
from typing import Any

SHOWN_AS = "builtins"
"""`__module__` of the errors. Python and ComfyUI show an error as `module.Class: text`, and ComfyUI's editor cuts that
to a line: the path that ComfyUI loads the pack by would fill it. Of built-in errors both show the class alone."""


LONG_VALUE, SHORT_VALUE = 200, 40
"""The most characters of a value in an error's text, and before the cure in `InputError.in_short`."""


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says, in an OSError's errno, when there is no room for a file."""


class FastDiffusersError(Exception):
    """Base class of every error this pack raises on purpose."""

    __module__ = SHOWN_AS

    def __reduce__(self) -> Any:
        """Pickle the name of the class: pickle would look for the class itself where `__module__` says that it is."""
        if type(self) is globals().get(type(self).__name__):
            return _restore, (type(self).__name__, self._arguments())
        return type(self), self._arguments()

    def in_short(self) -> str:
        """The text for where there is room for its beginning only."""
        return str(self)

    def _arguments(self) -> tuple[object, ...]:
        """What the class has to be called with to make the same error."""
        return self.args


class InputError(FastDiffusersError, ValueError):
    """Bad input, as one line that names the input, the value, the reason and the cure.

    >>> str(InputError("width", 0, "it must be a multiple of 16, at least 16", "set it to 1024"))
    'width = 0: it must be a multiple of 16, at least 16. Set it to 1024.'
    """

    __module__ = SHOWN_AS

    def __init__(self, name: str, value: object, reason: str, cure: str = "") -> None:
        self.name, self.value, self.reason, self.cure = name, value, reason, cure
        shown = _shown(value, LONG_VALUE)
        text = f"{name} = {shown}: {reason.rstrip('.')}."
        super().__init__(f"{text} {_sentence(cure)}" if cure else text)

    def in_short(self) -> str:
        """The same with the cure first, and a long value behind it.

        >>> InputError("width", 0, "it must be a multiple of 16", "set it to 1024").in_short()
        'width = 0: Set it to 1024. Reason: it must be a multiple of 16.'
        """
        if not self.cure:
            return str(self)
        value, short = _shown(self.value, LONG_VALUE), _shown(self.value, SHORT_VALUE)
        rest = "" if short == value else f" The value is {value}."
        return f"{self.name} = {short}: {_sentence(self.cure)} Reason: {self.reason.rstrip('.')}.{rest}"

    def _arguments(self) -> tuple[object, ...]:
        return self.name, self.value, self.reason, self.cure


class ModelFileError(InputError):
    """A model folder or file that cannot be used: missing, half-downloaded, corrupt, or of the wrong kind."""

    __module__ = SHOWN_AS


class MissingDependencyError(FastDiffusersError, ImportError):
    """An optional package that a chosen setting needs is not installed."""

    __module__ = SHOWN_AS

    def __init__(self, package: str, needed_for: str, install: str | None = None) -> None:
        self.package, self.needed_for, self.install = package, needed_for, install
        super().__init__(
            f"{needed_for} needs the package {package!r}. Install it with: {install or f'pip install {package}'}"
        )

    def _arguments(self) -> tuple[object, ...]:
        return self.package, self.needed_for, self.install


def _shown(value: object, limit: int) -> str:
    """A value in at most so many characters. Of a text cut short there is the end too: it is what a path ends with."""
    shown = repr(_typed(value))
    if len(shown) <= limit:
        return shown
    return f"{shown[: limit - 3]}..." if limit >= LONG_VALUE else f"{shown[:12]}...{shown[15 - limit :]}"


def _typed(value: object) -> object:
    """A value as the user typed it: a path is its text, and so are several, or several texts."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple) and value and all(isinstance(each, str | PurePath) for each in value):
        return ", ".join(map(str, value))
    return value


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _restore(name: str, arguments: tuple[Any, ...]) -> FastDiffusersError:
    """The error of that class of this module: what pickle calls."""
    error: FastDiffusersError = globals()[name](*arguments)
    return error


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(name, value, "it is not one of the choices", f"choose one of: {', '.join(choices)}")


def first_line(error: BaseException, limit: int = 400) -> str:
    """The first line of an error's text, its type when it has none: other libraries' errors within one of ours.

    A line that ends with a colon only announces the cause ("... because of the following error:"), so the next one is
    joined to it.

    Args:
        limit: characters at the most; what is cut off is shown as "...".
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    count = next((number for number, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    text = " ".join(lines[:count])
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
