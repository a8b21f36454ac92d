"""What a user says of a cluster: where it is, and how many workers of what size."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InputError

LOCAL = "local"
PATIENCE = 120.0
"""Seconds to wait for a free card where nothing else is said."""
MOST_PATIENCE = 86400.0
MOST_THREADS = 1024
FORMS = "use local, local:2 for two workers, or HOST:PORT of a running Ray"
_COUNT = "what follows local: is how many workers, a whole number from 1 to 1024"


@dataclass(frozen=True)
class ClusterSettings:
    """Attributes:
    address: "local" for the cards or processors of this machine, else "HOST:PORT" of a running Ray.
    workers: how many, >= 1; None for one per card, or per `cpus` where there are no cards.
    cpus: threads of each worker, >= 1; None for an equal share of the machine.
    patience: seconds to wait for a free card, > 0.
    parallel: "off": each worker makes items of its own. Else `workers` processes of this machine make every item
        together: see `cluster.parallel`.
    """

    address: str = LOCAL
    workers: int | None = None
    cpus: int | None = None
    patience: float = PATIENCE
    parallel: str = "off"

    @property
    def local(self) -> bool:
        return self.address == LOCAL

    @property
    def name(self) -> str:
        """As the user says it: "local:2"."""
        name = self.address if self.workers is None else f"{self.address}:{self.workers}"
        return name if self.parallel == "off" else f"{name}, {self.parallel}"

    @property
    def called(self) -> str:
        """What it is, with its name, as the user asked for it."""
        if self.parallel == "off":
            return f"cluster {self.name}"
        return f"parallel {self.parallel}" + (f" over {self.workers} processes" if self.workers else "")


def parse_cluster(text: str, cpus: int | None = None, patience: float = PATIENCE) -> ClusterSettings:
    """Read "local", "local:2" or "HOST:PORT".

    Raises:
        InputError: it is none of these, or a number is out of range.
    """
    if cpus is not None and not 1 <= cpus <= MOST_THREADS:
        raise InputError("cpus", cpus, f"a worker has 1 to {MOST_THREADS} threads", "leave it out for an equal share")
    if not 0 < patience <= MOST_PATIENCE:
        reason = f"it must be above 0 and at most {MOST_PATIENCE:g} seconds"
        raise InputError("cluster_wait", patience, reason, "use 120")
    if text == LOCAL:
        return ClusterSettings(cpus=cpus, patience=patience)
    if "://" in text:
        reason = "Ray's client protocol cannot be used: work would go through one process"
        raise InputError("cluster", text, reason, "run on a machine of the cluster, with HOST:PORT of its head")
    host, colon, number = text.rpartition(":")
    if host == LOCAL and not re.fullmatch(r"[0-9]{1,5}", number):
        raise InputError("cluster", text, _COUNT, FORMS)
    if not colon or not re.fullmatch(r"[0-9]{1,5}", number) or not re.fullmatch(r"[\w.\-]+|\[[0-9a-fA-F:]+\]", host):
        raise InputError("cluster", text, "it names no cluster", FORMS)
    if host == LOCAL:
        if not 1 <= int(number) <= 1024:
            raise InputError("cluster", text, _COUNT, FORMS)
        return ClusterSettings(LOCAL, int(number), cpus, patience)
    if not 1 <= int(number) <= 65535:
        raise InputError("cluster", text, "there is no such port", FORMS)
    return ClusterSettings(text, None, cpus, patience)
