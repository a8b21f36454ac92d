"""One exchange with a server: in a thread of its own, so that a cancel and a deadline are noticed while it waits."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..callbacks import Callbacks
from ..errors import InputError
from .answers import EngineError, LateError, Reply, explained, failed_job
from .settings import KEY, Engine, api_key

CONNECT_SECONDS = 10.0
LISTEN_SECONDS = 0.1
"""How often a cancel is looked for."""
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before a server that is busy (503, 429) is asked again: after the last one it is taken at its word."""
MOST_PAUSE = 30.0
BUSY = (429, 503)
MOST_JSON = 1 << 20
_CHUNK = 1 << 18
STAGE = "server"


@dataclass(frozen=True)
class Ask:
    """A question. Attributes: method, path below the server's address, body with its media type; most bytes of the
    answer; seconds until it must be there."""

    method: str
    path: str
    body: bytes = b""
    kind: str = ""
    most: int = MOST_JSON
    seconds: float = 30.0


def ask(engine: Engine, what: Ask, callbacks: Callbacks, waiting: Callable[[str], None] = lambda text: None) -> Reply:
    """Ask, and again a few times where the server is busy. Any status may come back, but a redirect or a refused key.

    Args:
        waiting: told, now and then, what is being waited for.

    Raises:
        InputError: nothing answers there, or not as asked: address, certificate, key.
        EngineError: it took too long, broke off, was too large, or leads to another address.
        Exception: whatever `callbacks.check_cancel` raises; the connection is closed then.
    """
    deadline = time.monotonic() + what.seconds
    for number, pause in enumerate((*PAUSES, None), 1):
        reply = _exchange(engine, what, callbacks, waiting, deadline)
        if reply.status not in BUSY or pause is None or failed_job(reply.json):
            break
        pause = min(reply.pause or pause, MOST_PAUSE)
        if pause >= deadline - time.monotonic():
            break
        waiting(f"the server is busy ({reply.status}): asked again in {pause:.0f} s, {number} of {len(PAUSES)}")
        _wait(pause, callbacks)
    if 300 <= reply.status < 400:
        cure = "give it the address that the server really has"
        raise EngineError(f"engine {engine.url}: it leads to another address, which is not followed ({cure})")
    if reply.status in (401, 403):
        has = "does not take that key" if api_key(engine) else "wants an API key"
        reason = f"the server {has} ({reply.status})"
        raise InputError("engine", engine.url, reason, f"set {KEY} in the environment and start this again")
    return reply


def _exchange(
    engine: Engine, what: Ask, callbacks: Callbacks, waiting: Callable[[str], None], deadline: float
) -> Reply:
    started = time.monotonic()
    thread = _Exchange(engine, what, api_key(engine))
    thread.start()
    shown = 0
    try:
        while not thread.done.wait(LISTEN_SECONDS):
            callbacks.check_cancel()
            if time.monotonic() > deadline:
                longer = "Allow it more time (--engine-wait, or 'wait' on the node), or look"
                cure = longer if what.seconds == engine.patience else "Look"
                raise LateError(f"engine {engine.url}: no answer within {what.seconds:g} s. {cure} at what it does.")
            if (seconds := int(time.monotonic() - started)) > shown:
                shown = seconds
                waiting(f"{seconds} s")
    except BaseException:
        thread.stop()
        raise
    callbacks.check_cancel()
    if thread.error is not None:
        raise explained(engine, thread.error, thread.connected) from None
    if thread.reply is None:
        raise AssertionError("a thread that is done has an answer or an error")
    return thread.reply


def _wait(seconds: float, callbacks: Callbacks) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        callbacks.check_cancel()
        time.sleep(min(LISTEN_SECONDS, left))


class _Exchange(threading.Thread):
    """Sends and reads. Nothing in here may see the caller's callbacks: they belong to its thread."""

    def __init__(self, engine: Engine, what: Ask, key: str) -> None:
        super().__init__(daemon=True, name="fastdiffusers-engine")
        self._engine, self._what, self._key = engine, what, key
        self._connection: http.client.HTTPConnection | None = None
        self._stopped = False
        self.done = threading.Event()
        self.connected = False
        self.reply: Reply | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.reply = self._exchange()
        except Exception as error:  # noqa: BLE001 - it is raised, explained, in the thread that waits
            self.error = error
        finally:
            self._key = ""
            self.done.set()

    def stop(self) -> None:
        """Hang up, whatever it is doing."""
        self._stopped = True
        connected = self._connection.sock if self._connection is not None else None
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def _exchange(self) -> Reply:
        engine, what = self._engine, self._what
        host, port = engine.host, engine.parts.port
        if engine.encrypted:
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        with contextlib.closing(self._connection) as connection:
            connection.connect()
            self.connected = True
            connection.sock.settimeout(None)  # the waiting thread hangs up in time
            if self._stopped:
                raise OSError("hung up")
            headers = {"Accept": "application/json, */*", "User-Agent": "fastdiffusers"}
            if what.kind:
                headers["Content-Type"] = what.kind
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            connection.request(what.method, engine.parts.path + what.path, what.body or None, headers)
            return _read(engine, connection.getresponse(), what.most)


def _read(engine: Engine, response: http.client.HTTPResponse, most: int) -> Reply:
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise EngineError(f"engine {engine.url}: its answer is compressed, which was not asked for")
    announced = response.length
    too_large = EngineError(
        f"engine {engine.url}: its answer has more than {most >> 20} MiB, and no such answer is that large"
    )
    if announced is not None and announced > most:
        raise too_large
    data = bytearray()
    while chunk := response.read(_CHUNK):
        data += chunk
        if len(data) > most:
            raise too_large
    if announced is not None and len(data) < announced:
        raise http.client.IncompleteRead(b"", announced - len(data))
    kind = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
    pause = response.getheader("Retry-After", "")
    return Reply(response.status, kind, bytes(data), float(pause) if re.fullmatch(r"[0-9]{1,5}", pause) else None)
