"""What a server answers, and what is said where it is no good: one line, in the server's own words if it has any."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any

from ..errors import SHOWN_AS, FastDiffusersError, InputError
from .settings import START, Engine, api_key

MOST_SAID = 300
"""Characters of a server's own text in an error."""


class EngineError(FastDiffusersError):
    """A server could not, or would not, make it; one line."""

    __module__ = SHOWN_AS


class LostConnectionError(EngineError):
    """The connection broke before the whole answer was there."""

    __module__ = SHOWN_AS


class LateError(EngineError):
    """There was no answer in time."""

    __module__ = SHOWN_AS


@dataclass(frozen=True)
class Reply:
    """An answer. Attributes: status; kind, its media type in lower case; data; pause, seconds to wait if it says so."""

    status: int
    kind: str
    data: bytes
    pause: float | None = None

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def json(self) -> Any:
        """What it holds as JSON; None where it is none."""
        try:
            return json.loads(self.data)
        except (ValueError, RecursionError):
            return None


def failed_job(said: Any) -> bool:
    """Whether JSON is a job that failed: vLLM-Omni answers with the status that its error has."""
    return isinstance(said, dict) and said.get("status") == "failed"


def complaint(engine: Engine, doing: str, reply: Reply) -> EngineError:
    """The error of an answer that is not a good one, with the server's own words in a line."""
    words = said_in(reply)
    return EngineError(
        f"engine {engine.url}: {doing} failed ({reply.status}){f': {clean(words, engine)}' if words else ''}"
    )


def said_in(reply: Reply) -> str:
    """What an answer says is wrong: `detail`, `error.message` or `message` of its JSON, else its plain text."""
    said = reply.json
    if said is None and not reply.kind.startswith("text/html"):
        return reply.data[: 4 * MOST_SAID].decode("utf-8", "replace")
    if not isinstance(said, dict):
        return ""
    error = said.get("error")
    found = error.get("message") if isinstance(error, dict) else error
    found = found or said.get("detail") or said.get("message")
    if isinstance(found, list):
        found = "; ".join(_of_a_field(each) for each in found[:5])
    return str(found or "")


def clean(text: str, engine: Engine) -> str:
    """A server's words in one line of bounded length, without the key that it may have repeated."""
    key = api_key(engine)
    text = text.replace(key, "(key)") if key else text
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split()).rstrip(".")
    return text if len(text) <= MOST_SAID else f"{text[: MOST_SAID - 3]}..."


def _of_a_field(said: Any) -> str:
    """One entry of FastAPI's list of what is wrong with a request."""
    if not isinstance(said, dict):
        return str(said)
    where = said.get("loc")
    name = ".".join(str(part) for part in where if part != "body") if isinstance(where, list) else ""
    return f"{name}: {said.get('msg')}" if name else str(said.get("msg"))


def explained(engine: Engine, error: Exception, connected: bool) -> Exception:
    """What went wrong on the way, as one line with a cure."""
    if isinstance(error, FastDiffusersError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"its certificate cannot be verified ({error.verify_message})"
        cure = "use the name that it is made out to, or SSL_CERT_FILE=the file of the authority that signed it"
        return InputError("engine", engine.url, reason, cure)
    if isinstance(error, ssl.SSLError):
        return InputError(
            "engine", engine.url, f"it speaks no TLS there ({error.reason})", "use http:// if it is yours"
        )
    if isinstance(error, OSError) and not connected:
        return InputError("engine", engine.url, f"nothing answers there ({error.strerror or error})", START)
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, http.client.RemoteDisconnected):
        cure = "look at the port; a server with TLS has https://"
        return InputError("engine", engine.url, "what answers there speaks no HTTP", cure)
    if isinstance(error, (OSError, http.client.HTTPException)):
        kind = type(error).__name__
        return LostConnectionError(
            f"engine {engine.url}: the connection broke before the answer was there ({kind}). Look at what the server "
            "says, and run again."
        )
    return error
