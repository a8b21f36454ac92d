"""The script that starts ComfyUI as advised: for sh or for Windows' cmd, each setting with its reason beside it.

A script is only ever replaced where this wrote it and nobody has changed it since: its second line says so.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ..files import check_file_target, replacing
from .advice import Advice

KINDS = (".sh", ".bat")
MARK = "written by fastdiffusers doctor --launch"
_DIGEST = re.compile(rf"{re.escape(MARK)}, (\w+)")


@dataclass(frozen=True)
class Start:
    """How ComfyUI is to be started.

    Attributes:
        python: that runs it. comfyui: its folder.
        advice: the reasons, with their flags and variables; those without any become remarks.
        known: the flags that this ComfyUI has; what it does not know is left out, and the script says so.
    """

    python: str
    comfyui: str
    advice: tuple[Advice, ...]
    known: frozenset[str]

    def flags(self) -> list[str]:
        """In the order of the advice, each once: the first one's value counts, and what it excludes is left out."""
        chosen: dict[str, str] = {}
        for flag in (flag for advice in self.advice for flag in advice.flags):
            name = flag.split()[0]
            if name in self.known and EXCLUDES.get(name) not in chosen:
                chosen.setdefault(name, flag)
        return list(chosen.values())

    def unknown(self) -> list[str]:
        """Advised flags that this ComfyUI does not have."""
        names = [flag.split()[0] for advice in self.advice for flag in advice.flags]
        return [name for name in dict.fromkeys(names) if name not in self.known]

    def variables(self) -> dict[str, str]:
        """Of the environment; one whose flag this ComfyUI does not have is left out with it."""
        pairs = [pair for advice in self.advice if self._has(advice.flags) for pair in advice.variables]
        return dict(reversed(pairs))

    def _has(self, flags: Iterable[str]) -> bool:
        return all(flag.split()[0] in self.known for flag in flags)


EXCLUDES = {"--cuda-malloc": "--disable-cuda-malloc", "--disable-cuda-malloc": "--cuda-malloc"}


def known_flags(comfyui: str) -> frozenset[str]:
    """The flags of the ComfyUI in that folder, read from its source; none for ""."""
    options = Path(comfyui, "comfy", "cli_args.py")
    if not comfyui or not options.is_file():
        return frozenset()
    return frozenset(re.findall(r"""add_argument\(\s*["'](--[\w-]+)""", options.read_text(encoding="utf-8")))


def as_sh(start: Start) -> str:
    """The script for a POSIX shell. Further arguments are handed on to ComfyUI."""
    lines = [
        *_explained(start, "# "),
        *(f"export {name}={shlex.quote(value)}" for name, value in start.variables().items()),
        f"cd -- {shlex.quote(start.comfyui)} || exit 1",
        " ".join(["exec", shlex.quote(start.python), "main.py", *start.flags(), '"$@"']),
    ]
    return _marked("#!/bin/sh", "# ", lines, "\n")


def as_bat(start: Start) -> str:
    """The script for Windows' cmd, its lines ended as cmd needs it.

    Raises:
        InputError: a path holds what no Windows path can.
    """
    for name, path in (("python", start.python), ("comfyui", start.comfyui)):
        if re.search(r'["\x00-\x1f]', path):
            raise InputError(name, path, "a batch file cannot name it", "write a script that ends in .sh")
    folder = _percent(start.comfyui)
    lines = [
        "setlocal DisableDelayedExpansion",
        *_explained(start, "rem "),
        *(f'set "{name}={_percent(value)}"' for name, value in start.variables().items()),
        f'if not exist "{folder}\\main.py" echo There is no main.py in "{folder}" & exit /b 1',
        f'cd /d "{folder}"',
        " ".join([f'"{_percent(start.python)}"', "main.py", *start.flags(), "%*"]),
        "if errorlevel 1 pause",
    ]
    if not all(line.isascii() for line in lines):
        lines.insert(0, "chcp 65001 >nul")  # cmd reads a batch file in the console's code page
    return _marked("@echo off", "rem ", lines, "\r\n")


def _explained(start: Start, comment: str) -> list[str]:
    made = []
    for advice in start.advice:
        settings = [*advice.flags, *(f"{name}={value}" for name, value in advice.variables)]
        heading = f"{', '.join(settings)}: " if settings else "remark: "
        made.append(comment + _harmless(heading + advice.text))
    if not start.flags() and not start.variables():
        made.append(f"{comment}nothing has to be set: ComfyUI's own defaults are right for this machine")
    made += [f"{comment}left out, since this ComfyUI does not know it: {name}" for name in start.unknown()]
    return made


def _harmless(text: str) -> str:
    """One line that no shell reads anything into, not even after `rem`: names of extensions come from a log."""
    return " ".join(re.sub(r"[%^&|<>!`$\x00-\x1f\x7f]", " ", text).split())


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _marked(first: str, comment: str, lines: Sequence[str], end: str) -> str:
    body = end.join(lines) + end
    return f"{first}{end}{comment}{MARK}, {_digest(body)}{end}{body}"


def _digest(body: str) -> str:
    return hashlib.sha256(body.replace("\r\n", "\n").encode()).hexdigest()[:16]


def is_own(text: str) -> bool:
    """Whether this module wrote the script and it is as it was."""
    _, _, rest = text.replace("\r\n", "\n").partition("\n")
    mark, _, body = rest.partition("\n")
    found = _DIGEST.search(mark)
    return found is not None and found[1] == _digest(body)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise InputError where `write` would."""
    check_file_target("--launch", path, KINDS)
    if path.exists() and not overwrite:
        text = path.read_bytes().decode("utf-8", errors="replace")
        if not is_own(text):
            reason = "it was changed since it was written" if MARK in text else "there is a file that is not doctor's"
            raise InputError("--launch", str(path), reason, "choose another name, or add --overwrite")


def write(path: Path, start: Start, *, overwrite: bool) -> None:
    """Write the script that the name's ending asks for.

    Args:
        overwrite: whatever is there now.

    Raises:
        InputError: another ending, a folder that is missing or not writable, or a file that is somebody else's.
    """
    check_target(path, overwrite=overwrite)
    script = as_bat(start) if path.suffix.lower() == ".bat" else as_sh(start)
    with replacing(path) as temporary:
        temporary.write_bytes(script.encode("utf-8"))
    if path.suffix.lower() == ".sh":
        path.chmod(path.stat().st_mode | 0o111)
