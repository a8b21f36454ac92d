"""A clip from a server: a job at `/v1/videos`, asked after until it is done, and deleted where it is cancelled."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..callbacks import SILENT, Callbacks
from ..errors import SHOWN_AS, FastDiffusersError
from ..report import logger
from .answers import EngineError, LateError, LostConnectionError, Reply, clean, complaint, failed_job, said_in
from .connection import BUSY, LISTEN_SECONDS, Ask, ask
from .multipart import form
from .settings import SGLANG

if TYPE_CHECKING:
    from .settings import Engine

JOBS = "/v1/videos"
POLL_SECONDS = 1.0
MOST_LOST = 5
"""How often in a row a job may be asked after without an answer."""
MOST_VIDEO = 1 << 30
"""Bytes."""
CANCEL_SECONDS = 5.0
_ENDED = ("failed", "cancelled", "canceled", "deleted")


class JobEndedError(EngineError):
    """A job has ended by itself, and there is nothing to cancel: it failed, is lost, or its video is of no use."""

    __module__ = SHOWN_AS


def make(
    engine: Engine,
    server: str,
    fields: dict[str, Any],
    pictures: Sequence[bytes],
    callbacks: Callbacks,
    waiting: Callable[[str, int], None],
) -> bytes:
    """One clip, as the bytes of its mp4.

    Args:
        server: "sglang", which takes JSON where there is no picture, or "vllm-omni", which takes a form.
        pictures: at most one, the first frame, as a PNG file.
        waiting: told what is being waited for, and how much of the clip is done, 0 to 100.

    Raises:
        InputError, EngineError: as `ask`; the server's own words where it cannot make it, or has lost the job.
        Exception: whatever `callbacks.check_cancel` raises, once the server was asked to cancel the job.
    """
    deadline = time.monotonic() + engine.patience
    if pictures or server != SGLANG:
        files = [("input_reference", "first_frame.png", data) for data in pictures]
        body, kind = form(fields, files)
    else:
        body, kind = json.dumps(fields).encode(), "application/json"
    begun = Ask("POST", JOBS, body, kind, seconds=engine.patience)
    try:
        reply = ask(engine, begun, callbacks, lambda text: waiting(f"handing the job over, {text}", 0))
    except FastDiffusersError:
        raise
    except BaseException:
        logger.info("%s was hung up on while it took a job: it may make it", engine.url)
        raise
    if not reply.good:
        raise complaint(engine, JOBS, reply)
    job = _identity(engine, reply)
    try:
        _until_done(engine, job, reply, deadline, callbacks, waiting)
        return _content(engine, job, callbacks, lambda text: waiting(f"downloading, {text}", 100))
    except JobEndedError:
        raise
    except BaseException:
        _cancel(engine, job)
        raise


def _identity(engine: Engine, reply: Reply) -> str:
    """The job's name, which becomes a part of paths."""
    said = reply.json
    job = said.get("id") if isinstance(said, dict) else None
    if not isinstance(job, str) or not re.fullmatch(r"(?!\.)[A-Za-z0-9._\-]{1,200}", job):
        raise EngineError(f"engine {engine.url}: {JOBS} gave no job. Is that the server's own address?")
    return job


def _until_done(
    engine: Engine,
    job: str,
    reply: Reply,
    deadline: float,
    callbacks: Callbacks,
    waiting: Callable[[str, int], None],
) -> None:
    while True:
        said = reply.json if isinstance(reply.json, dict) else {}
        state = str(said.get("status", ""))
        if failed_job(said) or state in _ENDED:
            words = clean(said_in(reply), engine)
            raise JobEndedError(f"engine {engine.url}: job {job} {state}{f': {words}' if words else ''}")
        if reply.status == 404:
            raise JobEndedError(
                f"engine {engine.url}: it has lost job {job}: it was restarted, or the job deleted. Run again."
            )
        if not reply.good:
            raise complaint(engine, f"job {job}", reply)
        if state == "completed":
            return
        if time.monotonic() > deadline:
            raise EngineError(
                f"engine {engine.url}: job {job} was not done within {engine.patience:g} s. Allow it more time "
                "(--engine-wait, or 'wait' on the node)."
            )
        done = said.get("progress")
        known = isinstance(done, int | float) and not isinstance(done, bool) and 0 <= done <= 100
        waiting(clean(state.replace("_", " "), engine) or "working", int(done) if known and done is not None else 0)
        _pause(callbacks)
        reply = _ask_after(engine, job, callbacks)


def _ask_after(engine: Engine, job: str, callbacks: Callbacks) -> Reply:
    """How a job stands. A server that makes it may be too busy to answer for a while."""
    for left in reversed(range(MOST_LOST)):
        try:
            reply = ask(engine, Ask("GET", f"{JOBS}/{job}"), callbacks)
            if reply.status not in BUSY or failed_job(reply.json) or not left:
                return reply
        except (LostConnectionError, LateError):
            if not left:
                raise
        _pause(callbacks)
    raise AssertionError("the last time returns or raises")


def _pause(callbacks: Callbacks) -> None:
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end:
        callbacks.check_cancel()
        time.sleep(min(LISTEN_SECONDS, POLL_SECONDS))


def _content(engine: Engine, job: str, callbacks: Callbacks, waiting: Callable[[str], None]) -> bytes:
    """The finished clip. A server may take a moment to find what it has just written."""
    for left in (3, 2, 1, 0):
        asked = Ask("GET", f"{JOBS}/{job}/content", most=MOST_VIDEO, seconds=engine.patience)
        reply = ask(engine, asked, callbacks, waiting)
        if reply.good:
            if reply.kind in ("video/mp4", "application/octet-stream", ""):
                return reply.data
            raise JobEndedError(
                f"engine {engine.url}: the video of job {job} is {clean(reply.kind, engine)}, not video/mp4"
            )
        if reply.status != 404 or not left:
            break
        _pause(callbacks)
    raise JobEndedError(str(complaint(engine, f"the video of job {job}", reply)))


def _cancel(engine: Engine, job: str) -> None:
    """Ask the server to stop a job that nobody waits for any more; say what came of it."""
    try:
        reply = ask(engine, Ask("DELETE", f"{JOBS}/{job}", seconds=CANCEL_SECONDS), SILENT)
        answer = "cancels it" if reply.good else f"answers {reply.status} {clean(said_in(reply), engine)}".strip()
    except FastDiffusersError as error:
        answer = f"was not reached, and may finish it ({error})"
    logger.info("job %s was given up: the server %s", job, answer)
