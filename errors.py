"""The errors a user can act on. A leaf: it imports nothing from the pack, so every folder may import it."""

from __future__ import annotations


class FastDiffusersError(Exception):
    """Base class of every error this pack raises on purpose."""


class InputError(FastDiffusersError, ValueError):
    """Bad input, as one line that names the input, the value, the reason and the cure.

    >>> str(InputError("width", 0, "it must be a multiple of 16, at least 16", "set it to 1024"))
    'width = 0: it must be a multiple of 16, at least 16. Set it to 1024.'
    """

    def __init__(self, name: str, value: object, reason: str, cure: str = "") -> None:
        self.name, self.value, self.reason, self.cure = name, value, reason, cure
        shown = repr(value) if not isinstance(value, str) else f"{value!r}"
        if len(shown) > 200:
            shown = shown[:197] + "..."
        cure = cure[:1].upper() + cure[1:]
        text = f"{name} = {shown}: {reason.rstrip('.')}."
        super().__init__(f"{text} {cure.rstrip('.')}." if cure else text)

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str, str]]:
        return type(self), (self.name, self.value, self.reason, self.cure)


class ModelFileError(InputError):
    """A model folder or file that cannot be used: missing, half-downloaded, corrupt, or of the wrong kind."""


class MissingDependencyError(FastDiffusersError, ImportError):
    """An optional package that a chosen setting needs is not installed."""

    def __init__(self, package: str, needed_for: str, install: str | None = None) -> None:
        self.package = package
        super().__init__(
            f"{needed_for} needs the package {package!r}. Install it with: {install or f'pip install {package}'}"
        )


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
