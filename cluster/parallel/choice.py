"""Whether one picture can be made over several cards at all, asked before any process is started."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from ...errors import InputError, check_choice
from ..settings import LOCAL, ClusterSettings

if TYPE_CHECKING:
    from ...pipelines.families import Family
    from ...pipelines.types import LoadKey, SampleRequest

NAME = "parallel"
"""Of the record in a report."""
ULYSSES, CFG, AUTO = "ulysses", "cfg", "auto"
PARALLEL_CHOICES = ("off", ULYSSES, CFG, AUTO)
MOST_PROCESSES = 64
BRANCHES = 2
"""Of guidance: with the prompt and without, or with the negative one."""


def parallel_settings(parallel: str, devices: int | None, cpus: int | None = None) -> ClusterSettings:
    """What a user says of it.

    Args:
        parallel: one of `PARALLEL_CHOICES` but "off".
        devices: over how many cards, 2 to 64; without cards, over how many processes. None for every card.
        cpus: threads of each process where there are no cards, >= 1; None for an equal share of the machine.

    Raises:
        InputError: a value is out of range.
    """
    check_choice("parallel", parallel, PARALLEL_CHOICES)
    if parallel == CFG and devices not in (None, BRANCHES):
        reason = "guidance has two branches, one for each of two cards"
        raise InputError("parallel_devices", devices, reason, f"use {BRANCHES}, or leave it out")
    if devices is not None and not 2 <= devices <= MOST_PROCESSES:
        reason = f"one picture is made over 2 to {MOST_PROCESSES} cards"
        raise InputError("parallel_devices", devices, reason, "leave it out for every card of this machine")
    return ClusterSettings(LOCAL, devices, cpus, parallel=parallel)


def cards_for(device: str) -> int:
    """How many cards of this machine a pipeline for `device` can be spread over; 0 for one on the processor.

    Raises:
        InputError: the device is one card of several, or none that this can be done with.
    """
    if device == "cpu":
        return 0
    kind, _, number = device.partition(":")
    if number and number != "0":
        raise InputError("device", device, "one picture over several cards takes the first ones", "use auto")
    from ...pipelines.loading.devices import resolve_device

    found = resolve_device("auto").partition(":")[0]
    if kind not in ("auto", "cuda"):
        raise InputError("device", device, "only NVIDIA and AMD cards, and processors, work together", "use auto")
    if found != "cuda":
        return 0
    import torch

    return int(torch.cuda.device_count())


def placed(settings: ClusterSettings, key: LoadKey, one_branch: str = "") -> tuple[ClusterSettings, str]:
    """The settings with their number of processes.

    Args:
        one_branch: why guidance has no second branch in this run, as `without_branches` says it.

    Returns:
        The settings, with threads where the processes have no cards; and why it is not done, "" where it is.

    Raises:
        InputError: there are not so many cards.
    """
    cards = cards_for(key.device)
    wanted = settings.workers
    if cards and wanted is not None and wanted > cards:
        raise InputError("parallel_devices", wanted, f"this machine has {cards} card(s)", f"use at most {cards}")
    if settings.parallel == AUTO and cards < 2:
        return settings, f"it takes two cards or more, and there {'is 1' if cards == 1 else 'are none'} to use"
    count = wanted or cards
    if count < 2:
        how = "how many processes of the processor to use is not said (--parallel-devices 2, or local:2 as address)"
        return settings, "there is 1 card to use" if cards else f"there are no cards to use, and {how}"
    if settings.parallel == CFG:
        count = BRANCHES
    why = refusal(key, count, cards > 0, settings.parallel, one_branch)
    if why and settings.parallel == AUTO and not (other := refusal(key, BRANCHES, cards > 0, CFG, one_branch)):
        count, why = BRANCHES, other
    threads = None if cards else settings.cpus or max(1, (os.cpu_count() or 1) // count)
    return ClusterSettings(LOCAL, count, threads, settings.patience, settings.parallel), why


def refusal(key: LoadKey, count: int, cards: bool, parallel: str = ULYSSES, one_branch: str = "") -> str:
    """Why a model's calls cannot be split over so many processes, as far as can be told before it loads; or ""."""
    from torch import distributed

    from ...pipelines.loading.described import denoiser_of_key

    if not distributed.is_available() or (cards and not distributed.is_nccl_available()):
        return "this torch was built without " + ("NCCL" if distributed.is_available() else "torch.distributed")
    if parallel == CFG:
        return one_branch
    found = denoiser_of_key(key)
    if found is None:
        return ""  # the processes see the model itself
    kind, config = found
    return why_not(kind, config, count)


def way_for(parallel: str, kind: Any, config: Any, count: int) -> tuple[str, str]:
    """How the calls of a denoiser are split over so many processes, `ULYSSES` or `CFG`; and why not at all, or ""."""
    if parallel == CFG:
        return CFG, ""
    why = why_not(kind, config, count)
    if why and parallel == AUTO and count == BRANCHES:
        return CFG, ""
    return ULYSSES, why


def without_branches(family: Family, request: SampleRequest) -> str:
    """Why guidance has no second branch in a run, or "".

    Args:
        family: of the model. A class outside the table may have branches that nobody knows of here.
    """
    from ...pipelines.conditions.arguments.idle import takes_negative
    from ...pipelines.requests import complete_guidance, negative_acts

    guidance = complete_guidance(family, request)
    if not family.known or negative_acts(family, guidance) or takes_negative(family, request):
        return ""
    if not family.negative_prompt:
        return f"{family.name} takes its guidance as an input: there is no second branch"
    return f"with guidance = {guidance:g} there is no second branch"


def uneven(family: Family, width: int, height: int, frames: int, count: int) -> str:
    """Why so many processes cannot share the tokens of a result of some size, and the next larger size whose they can;
    "" where they can, or where it is not known what a token is.

    Args:
        width, height: in pixels, multiples of `family.size_multiple`, which is the edge of a token.
        frames: 1 for a picture.
    """
    edge = family.size_multiple
    columns, rows = width // edge, height // edge
    layers = 1 + (frames - 1) // family.temporal_stride if family.video else 1
    tokens = columns * rows * layers
    if not family.known or not tokens or not tokens % count:
        return ""
    larger = [(a, b) for a in range(columns, columns + count + 1) for b in range(rows, rows + count + 1)]
    even = [(a, b) for a, b in larger if not a * b * layers % count]
    a, b = min(even, key=lambda pair: (math.prod(pair), abs(pair[0] / pair[1] - columns / rows)))
    held = f"the {tokens} token{'s' if tokens > 1 else ''} of {width}x{height}"
    reason = f"{held} cannot be shared equally by {count} processes"
    return f"{reason}; {a * edge}x{b * edge} is the next larger size that can"


def why_not(kind: Any, config: Any, count: int) -> str:
    """Why a denoiser of a class and a configuration cannot be split by its tokens over so many processes, or ""."""
    import diffusers

    if not getattr(kind, "_cp_plan", None):
        return f"diffusers {diffusers.__version__} has no context-parallel plan for {kind.__name__}"
    heads = config.get("num_attention_heads")
    if isinstance(heads, int) and heads % count:
        return f"the {heads} attention heads of {kind.__name__} cannot be shared equally by {count} processes"
    return ""
