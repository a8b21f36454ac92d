"""Which server answers, and which model it has: what its list of models says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..callbacks import Callbacks
from ..errors import InputError
from .answers import clean, complaint
from .connection import Ask, ask
from .settings import AUTO, NAMES, SGLANG, VLLM_OMNI, Engine


@dataclass(frozen=True)
class Served:
    """What a server says of itself.

    Attributes:
        server: "sglang" or "vllm-omni".
        model: name of the model, "" where it does not say.
        video: whether the model makes video; None where it does not say.
    """

    server: str
    model: str = ""
    video: bool | None = None

    @property
    def name(self) -> str:
        return NAMES[self.server]


def look(engine: Engine, callbacks: Callbacks) -> Served:
    """Ask a server which one it is and what it serves.

    Raises:
        InputError: nothing answers, it is neither server, or its model is another than `engine.model`.
        EngineError: it answers, but not in time, not whole, or that it has failed.
    """
    cards = _cards(engine, callbacks)
    server = _server(cards) if engine.server == AUTO else engine.server
    if server is None:
        reason = f"it does not say that it is {NAMES[SGLANG]} or {NAMES[VLLM_OMNI]}"
        cure = "choose which it is (--engine-server, or 'server' on the node), or look at the address"
        raise InputError("engine", engine.url, reason, cure)
    names = [clean(str(card["id"]), engine) for card in cards if card.get("id")]
    if engine.model and names and engine.model not in names:
        reason = f"the server has {', '.join(names[:5])}"
        raise InputError("model", engine.model, reason, "name that one, leave it out, or start the server with yours")
    makes = _makes(cards)
    if makes not in (None, "I", "V"):
        shown = clean(str(cards[0].get("task_type")), engine)
        raise InputError(
            "engine", engine.url, f"its model makes no pictures ({shown})", "use a server with one that does"
        )
    return Served(server, names[0] if names else "", None if makes is None else makes == "V")


def _cards(engine: Engine, callbacks: Callbacks) -> list[dict[str, Any]]:
    """What `/v1/models` lists, or SGLang's older `/models` describes; [] where the server has neither."""
    said = ask(engine, Ask("GET", "/v1/models"), callbacks)
    if said.good and isinstance(said.json, dict) and isinstance(said.json.get("data"), list):
        return [card for card in said.json["data"] if isinstance(card, dict)]
    if said.status >= 500:
        raise complaint(engine, "/v1/models", said)
    said = ask(engine, Ask("GET", "/models"), callbacks)
    if said.good and isinstance(said.json, dict) and "model_path" in said.json:
        return [{"owned_by": SGLANG, **said.json, "id": said.json["model_path"]}]
    return []


def _server(cards: list[dict[str, Any]]) -> str | None:
    owners = {str(card.get("owned_by", "")).lower() for card in cards}
    if any(owner.startswith("vllm") for owner in owners):
        return VLLM_OMNI
    return SGLANG if SGLANG in owners else None


def _makes(cards: list[dict[str, Any]]) -> str | None:
    """The last letter of SGLang's task, as in T2I or TI2V, and so on; None where there is none."""
    task = str(cards[0].get("task_type") or "") if cards else ""
    return task.rpartition(".")[2].upper().removesuffix("A")[-1:] or None if "2" in task else None
