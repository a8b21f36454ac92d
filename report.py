"""What was asked for, what is really active, and why. A leaf of pure data: no torch, nothing from the pack."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

logger = logging.getLogger("fastdiffusers.run")
"""Gets one line per run. It has one name however the pack was imported: ComfyUI loads it by its path."""

FOR_SPEED = (
    "engine",
    "parallel",
    "parallel_decode",
    "attention",
    "torch_compile",
    "step_cache",
    "fused_projections",
    "quantized_matmul",
    "tf32",
    "cudnn_benchmark",
    "channels_last",
    "kernels",
    "convolution",
    "cuda_graphs",
    "overlap_tiles",
    "exactness",
)
"""Records of what is there to be faster; the others are about memory, or say what was done."""
PLAIN = ("off", "none", "sdpa", "conv3d", "PyTorch operations", "bit-identical")
"""What is applied where nothing is switched on."""


@dataclass(frozen=True)
class OptimizationRecord:
    """One optimization of one run.

    Attributes:
        name: "attention", "torch_compile", "vae_tiling", "memory_mode", ...
        requested: the setting as the user gave it ("auto", "xformers", "off").
        applied: what is really active now ("sdpa", "off", "28 blocks, inductor").
        reason: why `applied` differs from `requested`, or how "auto" decided; "" when there is nothing to say.
        cost: what it costs, as measured or as assumed and said so ("compile 41.2 s", "+1.5 GiB assumed"), or "".
        failed: True when it was asked for and could not be had: the run fell back.
    """

    name: str
    requested: str
    applied: str
    reason: str = ""
    cost: str = ""
    failed: bool = False

    @property
    def declined(self) -> bool:
        """Whether it was asked for, by the user or by "auto", and is not there: because it failed or for a reason."""
        absent = self.applied in ("off", "none") and self.requested not in ("off", "none")
        return self.failed or (absent and bool(self.reason))


@dataclass
class OptimizationReport:
    """The records of one run, in the order the optimizations were applied; one record per name."""

    records: list[OptimizationRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Things worth telling that are no optimization: "negative_prompt ignored: ..."."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Model, device, dtype, versions, timings in seconds: JSON-compatible values only."""

    def __iter__(self) -> Iterator[OptimizationRecord]:
        return iter(self.records)

    def __getitem__(self, name: str) -> OptimizationRecord:
        for record in self.records:
            if record.name == name:
                return record
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(record.name == name for record in self.records)

    def set(self, record: OptimizationRecord) -> None:
        """Add the record, or replace the one of the same name in place."""
        for index, old in enumerate(self.records):
            if old.name == record.name:
                self.records[index] = record
                return
        self.records.append(record)

    def update(self, name: str, **changes: Any) -> None:
        """Change fields of an existing record: what was learnt during the run (a lazy compile failure, say)."""
        self.set(replace(self[name], **changes))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    @property
    def headline(self) -> str:
        """What is active, in one line: the first line on a node and on the console."""
        return " · ".join(f"{r.name} {r.applied}" for r in self.records if r.applied != "off") or "everything off"

    def timed(self, seconds: dict[str, float]) -> None:
        """Keep what the stages of a run took, and the time of day at which it ended."""
        self.facts["seconds"] = seconds
        self.facts["finished_at"] = datetime.datetime.now().astimezone().isoformat(timespec="seconds")

    @property
    def stage_line(self) -> str:
        """Seconds by stage, in one line; "" where nothing was timed."""
        seconds = self.facts.get("seconds")
        stages = seconds.items() if isinstance(seconds, dict) else ()
        return " · ".join(f"{stage} {value:.2f} s" for stage, value in stages)

    @property
    def for_speed(self) -> str:
        """What is switched on to be faster, in one line."""
        active = (r for r in self.records if r.name in FOR_SPEED and r.applied not in PLAIN)
        return " · ".join(f"{r.name} {r.applied}" for r in active) or "nothing switched on"

    def summary(self) -> list[str]:
        """What a person wants to know first, one thing a line.

        What ran, how large, in how many steps, how long it took and where that went; what made it faster; then what was
        asked for and not had, with the reason; then the notes.
        """
        facts = self.facts
        size, steps = facts.get("size"), facts.get("steps")
        what = [str(facts.get("model") or facts.get("vae") or ""), str(size or ""), f"{steps} steps" if steps else ""]
        seconds = facts.get("seconds")
        if isinstance(seconds, dict) and seconds:
            total = f"{sum(seconds.values()):.2f} s: " if len(seconds) > 1 else ""
            what.append(f"{total}{self.stage_line}")
        if finished := facts.get("finished_at"):
            what.append(f"at {time_of_day(finished)}")
        lines = [" | ".join(filter(None, what)), f"for speed: {self.for_speed}"]
        missed = (r for r in self.records if r.failed or (r.declined and r.requested != "auto"))
        lines += [f"not had: {r.name} {r.requested}, {r.applied} instead: {r.reason}" for r in missed]
        return [line for line in (*lines, *(f"note: {note}" for note in self.notes)) if line]

    def lines(self) -> Iterator[str]:
        """The summary; then the details, one thing a line, what is to be said about it below it: for a narrow box."""
        yield from self.summary()
        yield ""
        for record in self:
            change = record.applied if record.applied == record.requested else f"{record.requested} → {record.applied}"
            yield f"{record.name}: {change}" + (" (fell back)" if record.failed else "")
            yield from (f"    {text}" for text in (record.reason, record.cost) if text)
        yield ""
        yield from (f"{name}: {in_words(value)}" for name, value in self.facts.items())

    def as_text(self) -> str:
        """The summary, without the details."""
        return "\n".join(self.summary())

    def in_one_line(self) -> str:
        """The headline, what was declined and why, what compiling took, and the seconds by stage."""
        declined = [f"{r.name} {r.requested} declined ({r.reason})" for r in self.records if r.declined]
        compiling = [r.cost for r in self.records if r.name == "torch_compile" and not r.declined]
        parts = (self.headline, *declined, *compiling, self.stage_line)
        return " ".join(" | ".join(part for part in parts if part).split())

    def as_dict(self) -> dict[str, Any]:
        return {
            "optimizations": [asdict(r) for r in self.records],
            "notes": list(self.notes),
            "facts": dict(self.facts),
        }

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    def as_table(self) -> str:
        """The summary; then the details: the records as an aligned text table, and the facts, one per line."""
        header = ("optimization", "requested", "applied", "why", "cost")
        rows = [header, *((r.name, r.requested, r.applied, r.reason, r.cost) for r in self.records)]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = []
        for row in rows:
            fixed = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            tail = " | ".join(cell for cell in row[3:] if cell)
            lines.append(f"{fixed}  {tail}".rstrip())
        lines.insert(1, "-" * max(len(lines[0]), 40))
        lines += [f"{key}: {in_words(value)}" for key, value in self.facts.items()]
        return "\n".join([*self.summary(), "", *lines])


def in_words(value: Any) -> str:
    """A fact without Python's brackets and quotes, and a moment as a date and a time of day."""
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {in_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value))
    if isinstance(value, str) and (moment := _moment(value)):
        return moment.strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def time_of_day(moment: str) -> str:
    """The hours, minutes and seconds of a moment as ISO 8601 has it."""
    return datetime.datetime.fromisoformat(moment).strftime("%H:%M:%S")


def _moment(text: str) -> datetime.datetime | None:
    """The moment that a fact is, None where it is something else."""
    if "T" not in text:
        return None
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return None


def log_run(what: str, report: OptimizationReport) -> None:
    """One line at info level about a run that has ended: on the console of ComfyUI or of the command line.

    Args:
        what: who ran: "generate", "FastDiffusers, Diffusers Sampler".
    """
    logger.info("%s: %s", what, report.in_one_line())
