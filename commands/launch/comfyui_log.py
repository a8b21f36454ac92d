"""What ComfyUI's own log says about a session: versions, what did not fit on the card, where memory ran out.

The wording is that of ComfyUI 0.19 to 0.33. What stands in front of a line depends on who wrote it: nothing (0.19), a
coloured level (0.33's console), time and level (0.33's file), or the time (the manager's file).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
LOG_CHARACTERS = 2_000_000
"""Of a log are read; a session's start lies further back only after very long sessions."""


@dataclass(frozen=True)
class PartialLoad:
    """A model that did not fit: bytes on the card, and bytes that every step has to fetch.

    Attributes: model: its class, "" where several were loaded at a time.
    """

    loaded: int
    offloaded: int
    model: str = ""


@dataclass(frozen=True)
class OutOfMemory:
    """Once that memory ran out, in bytes; 0 where the log does not tell.

    Attributes:
        asked: what was to be allocated. free: of the card, then.
        allocated: held by tensors. reserved: held by torch's allocator, tensors among it.
        where: "" in a run that ended, else what was tried again with less: "VAE decoding".
    """

    asked: int = 0
    free: int = 0
    allocated: int = 0
    reserved: int = 0
    where: str = ""


@dataclass(frozen=True)
class SessionLog:
    """What a log of ComfyUI says about its last session.

    Attributes:
        vram_state: "NORMAL_VRAM", "LOW_VRAM", ..., "" when the log does not say.
        allocator: "cudaMallocAsync", "native", or "".
        attention: "pytorch", "xformers", "sage", ..., or "".
        versions: of "ComfyUI", "pytorch", "xformers", "Python" and others, as far as they stand in it.
        dynamic: whether DynamicVRAM managed the memory: then models are not loaded "partially", but page by page.
        runs: prompts that were begun.
        partial_loads: each time a model did not fit.
        staged: (class, bytes) of each model that DynamicVRAM pages in, whether or not it fits.
        unloads: bytes that were pushed off the card in the middle, each time.
        memory_errors: each time memory ran out.
        imports: (seconds, name) of each extension, slowest first.
        failed_imports: names of extensions that did not load.
    """

    vram_state: str = ""
    allocator: str = ""
    attention: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    dynamic: bool = False
    runs: int = 0
    partial_loads: tuple[PartialLoad, ...] = ()
    staged: tuple[tuple[str, int], ...] = ()
    unloads: tuple[int, ...] = ()
    memory_errors: tuple[OutOfMemory, ...] = ()
    imports: tuple[tuple[float, str], ...] = ()
    failed_imports: tuple[str, ...] = ()


_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_IN_FRONT = re.compile(r"^(?:\[[^\]\n]*\] )+", re.MULTILINE)
_START = re.compile(r"^Total VRAM ", re.MULTILINE)
_STATE = re.compile(r"Set vram state to: (\w+)")
_ALLOCATOR = re.compile(r"Device: cuda\S* .* : (\w+)")
_ATTENTION = re.compile(r"^Using (?:(\w[\w ]*?) attention$|(split|sub quadratic) optimization)", re.MULTILINE)
_VERSION = re.compile(r"^([A-Za-z][\w-]*) version: (\S+)", re.MULTILINE)
_DYNAMIC = re.compile(r"DynamicVRAM support detected and enabled")
_RUN = re.compile(r"^got prompt\s*$", re.MULTILINE)
_STAGED = re.compile(r"Model (\w+) prepared for dynamic VRAM loading\. (\d+)MB Staged")
_UNLOADED = re.compile(r"Unloaded partially: ([\d.]+) MB freed")
_IMPORT = re.compile(r"^.*?([\d.]+) seconds( \(IMPORT FAILED\))?: (.+?)\s*$", re.MULTILINE)
_LOADS = re.compile(
    r"Requested to load (?P<model>\w+)"
    r"|loaded partially;.*?(?P<loaded>[\d.]+) MB loaded, (?P<offloaded>[\d.]+) MB offloaded"
    r"|(?P<whole>loaded completely;)"
)
_RAN_OUT = re.compile(
    r"!!! Exception during processing !!!(?P<message>(?:(?!!!! Exception|Prompt executed).)*)Got an OOM, unloading all"
    r"|Ran out of memory when regular (?P<where>VAE \w+), retrying with tiled",
    re.DOTALL,
)
_SIZE = r"([\d.]+) ?(B|KiB|MiB|GiB|TiB)"
_ASKED = re.compile(rf"Tried to allocate {_SIZE}|Requested\s*: {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free|Free \(according to CUDA\): {_SIZE}")
_BY_TORCH = re.compile(rf"Of the allocated memory {_SIZE} is allocated by PyTorch|Currently allocated\s*: {_SIZE}")
_UNUSED = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")
_SUMMARY = {
    "allocated": re.compile(rf"\| Allocated memory\s*\|\s*{_SIZE}"),
    "reserved": re.compile(rf"\| GPU reserved memory\s*\|\s*{_SIZE}"),
}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def read_log(text: str) -> SessionLog:
    """The last session in the text of a ComfyUI log; older sessions in the same file are passed over."""
    text = _IN_FRONT.sub("", _COLOUR.sub("", text.replace("\r\n", "\n")))
    starts = [match.start() for match in _START.finditer(text)]
    session = text[starts[-1] :] if starts else text
    state, allocator, attention = _STATE.search(session), _ALLOCATOR.search(session), _ATTENTION.search(session)
    found = [(float(seconds), bool(failed), _name(path)) for seconds, failed, path in _IMPORT.findall(session)]
    return SessionLog(
        vram_state=state[1] if state else "",
        allocator=allocator[1] if allocator else "",
        attention=(attention[1] or attention[2]) if attention else "",
        versions=tuple(dict(_VERSION.findall(session)).items()),
        dynamic=bool(_DYNAMIC.search(session)),
        runs=len(_RUN.findall(session)),
        partial_loads=tuple(_partial_loads(session)),
        staged=tuple((model, _megabytes(size)) for model, size in _STAGED.findall(session)),
        unloads=tuple(size for freed in _UNLOADED.findall(session) if (size := _megabytes(freed)) > 0),
        memory_errors=tuple(_memory_error(match) for match in _RAN_OUT.finditer(session)),
        imports=tuple(sorted(((seconds, name) for seconds, _, name in found), reverse=True)),
        failed_imports=tuple(name for _, failed, name in found if failed),
    )


def _partial_loads(session: str) -> Iterable[PartialLoad]:
    """Each with the model's name where only one was asked for since the last one was loaded."""
    asked: list[str] = []
    for match in _LOADS.finditer(session):
        if match["model"]:
            asked.append(match["model"])
            continue
        if not match["whole"]:
            name = asked[0] if len(asked) == 1 else ""
            yield PartialLoad(_megabytes(match["loaded"]), _megabytes(match["offloaded"]), name)
        asked = asked[1:]


def _memory_error(match: re.Match[str]) -> OutOfMemory:
    if match["where"]:
        return OutOfMemory(where=match["where"])
    text = match["message"]
    allocated, unused = _bytes(_BY_TORCH.search(text)), _bytes(_UNUSED.search(text))
    summary = {name: _bytes(pattern.search(text)) for name, pattern in _SUMMARY.items()}
    return OutOfMemory(
        asked=_bytes(_ASKED.search(text)),
        free=_bytes(_FREE.search(text)),
        allocated=summary["allocated"] or allocated,
        reserved=summary["reserved"] or (allocated + unused if unused else 0),
    )


def _bytes(match: re.Match[str] | None) -> int:
    if match is None:
        return 0
    number, unit = (part for part in match.groups() if part is not None)
    return int(float(number) * _BYTES[unit])


def _megabytes(text: str) -> int:
    """ComfyUI's "MB" are MiB. A number that is none (a damaged line) counts as nothing."""
    try:
        return int(float(text) * MIB)
    except ValueError:
        return 0


def _name(path: str) -> str:
    return re.split(r"[\\/]", path.strip().rstrip("\\/"))[-1]


_LOG_NAME = re.compile(r"comfyui(_\d+)?(\.prev2?)?\.log")


def find_logs(comfyuis: Iterable[Path]) -> list[Path]:
    """The logs of these ComfyUIs, newest first.

    The manager writes `comfyui.log` into the user's folder, `comfyui_PORT.log` where a port was given, and keeps the
    two before it as `.prev.log` and `.prev2.log`; older managers and the desktop application write beside main.py.
    """
    folders = [folder for comfyui in comfyuis for folder in (comfyui / "user", comfyui)]
    found = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if _is_log(path)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _is_log(path: Path) -> bool:
    return bool(_LOG_NAME.fullmatch(path.name)) and path.is_file()


def last_session(logs: Iterable[Path]) -> tuple[Path | None, SessionLog]:
    """The newest session that ran something, else the newest: one that was only started says nothing of memory.

    Returns:
        the file, None where there is no log, and what it says.
    """
    newest: tuple[Path | None, SessionLog] = (None, SessionLog())
    for path in logs:
        try:
            session = read_log(path.read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:])
        except OSError:  # gone or not ours to read: the next one may do
            continue
        if session.runs or session.partial_loads or session.memory_errors:
            return path, session
        if newest[0] is None:
            newest = (path, session)
    return newest
