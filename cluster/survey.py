"""The machines of a cluster, and what differs between them: versions, and models that are not everywhere."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from ..errors import first_line
from .connection import connected
from .fleet import environment
from .settings import parse_cluster

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "peft", "sdnq", "ray")
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Machine:
    """One machine.

    Attributes:
        name: its host name, with the start of Ray's number for it where several have one name.
        cards, cpus: what it has, as Ray counts it.
        versions: of Python and of the packages that results depend on, "" for one that is not there.
        missing: those of the paths asked for that it does not have.
        error: why it could not be asked, "" where it was.
    """

    name: str
    cards: int
    cpus: int
    versions: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    error: str = ""


def look(paths: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What runs on each machine: its versions, and which of the paths are not there."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return versions, tuple(path for path in paths if not Path(path).exists())


def survey(cluster: str, paths: Iterable[str] = ()) -> list[Machine]:
    """Ask every machine of a cluster.

    Args:
        cluster: as `parse_cluster` reads it.
        paths: absolute; models that every machine should have.

    Raises:
        MissingDependencyError, InputError, ClusterError: as `connected`.
    """
    settings, wanted = parse_cluster(cluster), list(paths)
    with connected(settings) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in ray.nodes() if node["Alive"]]
        task = ray.remote(look)
        asked = []
        for node in nodes:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = {"num_cpus": 0, "max_retries": 0, "runtime_env": {"env_vars": environment(settings, None)}}
            asked.append(task.options(scheduling_strategy=strategy, **options).remote(wanted))
        ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
        names = [node["NodeManagerHostname"] for node in nodes]
        found = []
        for node, answer in zip(nodes, asked, strict=True):
            name = node["NodeManagerHostname"]
            name = name if names.count(name) == 1 else f"{name} ({node['NodeID'][:6]})"
            resources = node["Resources"]
            counts = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
            try:
                found.append(Machine(name, *counts, *ray.get(answer, timeout=0)))
            except ray.exceptions.GetTimeoutError:
                found.append(Machine(name, *counts, error=f"no answer within {ANSWER_SECONDS:g} s"))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is wrong with that machine
                found.append(Machine(name, *counts, error=_cause(error)))
    return found


def differences(machines: Sequence[Machine]) -> list[str]:
    """What is not alike everywhere, each with its cure, in one line."""
    lines = [f"{each.name} could not be asked: {each.error}" for each in machines if each.error]
    asked = [each for each in machines if not each.error]
    for name in ("python", *PACKAGES):
        who: dict[str, list[str]] = {}
        for machine in asked:
            who.setdefault(machine.versions.get(name, "") or "none", []).append(machine.name)
        if len(who) > 1:
            said = "; ".join(f"{version} on {', '.join(names)}" for version, names in who.items())
            lines.append(f"{name} is {said}. Install one version everywhere: results may differ else")
    for path in dict.fromkeys(path for machine in asked for path in machine.missing):
        names = ", ".join(machine.name for machine in asked if path in machine.missing)
        lines.append(f"{path} is missing on {names}. Copy it there, or mount the folder at the same path")
    return lines


def as_text(machines: Sequence[Machine]) -> str:
    """The machines, one a line, and below them what differs."""
    lines = []
    for each in machines:
        versions = ", ".join(f"{name} {version}" for name, version in each.versions.items() if version)
        lines.append(f"{each.name}: {each.cards} card(s), {each.cpus} processor core(s); {versions or each.error}")
    found = differences(machines)
    return "\n".join([*lines, "", *(found or ["nothing differs between them" if len(machines) > 1 else "one machine"])])


def _cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("No module named 'fastdiffusers'" in line for line in lines):
        return "the pack is not installed there. Run `pip install --no-deps -e FOLDER` in the environment of its Ray"
    return lines[-1] if lines else first_line(error)
