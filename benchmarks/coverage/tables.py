"""What the trial found, by class: the result file, docs/coverage.md and the table in the README.

A class that no case was there for, such as one that a newer diffusers adds, is "not tried".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ...commands.files import write_text
from ...commands.paths import PACK
from ..common import RESULTS, machine

TARGET = RESULTS / "pipeline_coverage.json"
README = PACK / "README.md"
PAGE = PACK / "docs" / "coverage.md"
BEGIN, END = "<!-- pipeline coverage: begin -->", "<!-- pipeline coverage: end -->"
NOT_TRIED = "not tried"
STATES = {
    "equal": "runs, and gives what bare diffusers gives, bit for bit",
    "refused": "refused before anything is loaded, in one line that says why",
    "differs": "runs, and gives something else than bare diffusers",
    "fails": "fails, where bare diffusers runs",
    "bare fails": "bare diffusers does not run the tiny model that was built",
    "not finished": "took too long, or too much memory, as a tiny model",
    "not built": "no tiny model of it could be built here",
    NOT_TRIED: "not tried yet",
}
"""State of a class -> what it means, in the order in which they are listed."""
_WORST_FIRST = ("fails", "differs", "equal", "refused", "bare fails", "not finished", "not built")
OPTIONS = {
    "cancel": "cancel",
    "attention": "attention",
    "torch_compile": "compile",
    "vae_tiling": "tiling",
    "memory_mode": "group offload",
    "fused_projections": "fused",
    "step_cache": "step cache",
}
"""Name in the results -> heading of its column."""
_KEPT = ("state", "reason", "loads", "latent", "with_them")
_MARKS = {"works": "yes", "declined": "no", "fails": "**fails**", "not finished": "?"}


def by_class(cases: Mapping[str, Mapping[str, Any]], classes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The classes in alphabetical order, each with what its cases found: a fault of one case is a fault of the class.

    Args:
        cases: name of a case -> its result.
        classes: names of the classes that there are.
    """
    found: dict[str, dict[str, Any]] = {name: {"state": NOT_TRIED} for name in sorted({*classes})}
    for state in reversed(_WORST_FIRST):
        for case in cases.values():
            if case["state"] == state and case["pipeline"] in found:
                former = found[case["pipeline"]]
                options = {**former.get("options", {}), **_options(case, former.get("options", {}))}
                kept = {name: case[name] for name in _KEPT if name in case}
                found[case["pipeline"]] = kept | ({"options": options} if options else {})
    return found


def _options(case: Mapping[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """Of a case, what is not better than what an earlier case of the class found."""
    rank = {"works": 0, "declined": 1, "not finished": 2, "fails": 3}
    found = case.get("options", {})
    worse = lambda name: name not in former or rank[found[name]["state"]] >= rank[former[name]["state"]]
    return {name: found[name] for name in found if name in OPTIONS and worse(name)}


def as_markdown(classes: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the README: how many classes are in which state, and of which families."""
    lines = ["| in this pack | classes | for example |", "| --- | --- | --- |"]
    for state, meaning in STATES.items():
        names = [name.removesuffix("Pipeline") for name, found in classes.items() if found["state"] == state]
        if names:
            shown = ", ".join(names[:: max(1, len(names) // 6)][:6])
            lines.append(f"| {meaning} | {len(names)} | {shown} |")
    return "\n".join(lines)


def as_page(data: Mapping[str, Any]) -> str:
    """docs/coverage.md: every class, and what each optimization does with it."""
    classes = data["classes"]
    lines = [
        "# Pipeline classes of diffusers, tried",
        "",
        f"Every pipeline class of diffusers {data['machine']['versions']['diffusers']}, as a tiny random model, called "
        "bare and through this pack in one process with the same weights and seeds. Written by "
        "`python . benchmarks.coverage`; the data is in `benchmarks/results/pipeline_coverage.json`.",
        "",
        *(f"- **{state}**: {meaning}" for state, meaning in STATES.items()),
        "",
        "Optimizations were tried where the class equals bare diffusers without them. *yes*: it was active, the "
        "result was right within rounding, and the next plain run gave the first one again, bit for bit. *no*: "
        "declined, and the report says why. Tiling and step caches change a picture on purpose: of them only a finite "
        "result is asked.",
        "",
        f"| class | state | LATENT | {' | '.join(OPTIONS.values())} | why |",
        f"| --- | --- | --- | {' | '.join('---' for _ in OPTIONS)} | --- |",
    ]
    for name, found in classes.items():
        options = found.get("options", {})
        marks = [_MARKS[options[each]["state"]] if each in options else "" for each in OPTIONS]
        lines.append(f"| {name} | {found['state']} | {found.get('latent', '')} | {' | '.join(marks)} | {_why(found)} |")
    return "\n".join(lines) + "\n"


def _why(found: Mapping[str, Any]) -> str:
    reason = str(found.get("reason", ""))
    if found["state"] == "refused":
        reason = reason.partition(": ")[2].partition(". Choose")[0]
        if "with_them" in found:
            reason += f" (given by hand: {found['with_them']})"
    tried = found.get("options", {})
    faults = [f"{OPTIONS[name]}: {each['reason']}" for name, each in tried.items() if each["state"] == "fails"]
    return "; ".join(filter(None, [reason, *faults])).replace("|", "/").replace("\n", " ")[:240]


def readme_with(text: str, block: str) -> str:
    """`text` with the table between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.partition(END)[2]}"


def store(cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the result file, the page and the README's table."""
    from .cases import modular_classes, pipeline_classes

    facts = {"benchmark": "pipeline_coverage", "machine": machine("cpu")}
    data: dict[str, Any] = {
        **facts,
        "classes": by_class(cases, {**pipeline_classes(), **modular_classes()}),
        "cases": dict(cases),
    }
    write_text(TARGET, json.dumps(data, indent=1, ensure_ascii=False))
    write_text(PAGE, as_page(data))
    write_text(README, readme_with(README.read_text(encoding="utf-8"), as_markdown(data["classes"])))


def stored_cases() -> dict[str, dict[str, Any]]:
    """Name of each case of the result file -> its result."""
    found: dict[str, dict[str, Any]] = json.loads(TARGET.read_text(encoding="utf-8"))["cases"]
    return found


def without_options(cases: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The fastest case of each class that equals bare diffusers and with which no optimization was tried."""
    tried = {case["pipeline"] for case in cases.values() if "options" in case}
    fastest: dict[str, str] = {}
    for name in sorted(cases, key=lambda name: (cases[name].get("seconds", float("inf")), name)):
        case = cases[name]
        if case["state"] == "equal" and case["pipeline"] not in tried:
            fastest.setdefault(case["pipeline"], name)
    return set(fastest.values())


def listed() -> str:
    """The installed classes and what is known of each from the result file, one line each."""
    from .cases import modular_classes, pipeline_classes

    classes = by_class(stored_cases(), {**pipeline_classes(), **modular_classes()})
    return "\n".join(f"{found['state']:12} {name}" for name, found in classes.items())
