"""Pictures from a server: `/v1/images/generations`, and `/v1/images/edits` where there are pictures to work on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..callbacks import Callbacks
from ..errors import FastDiffusersError
from ..report import logger
from .answers import EngineError, complaint
from .connection import Ask, ask
from .decoding import picture
from .multipart import form

if TYPE_CHECKING:
    from PIL.Image import Image

    from .settings import Engine

MOST_ANSWER = 512 << 20
"""Bytes: a picture as large as is read, uncompressed, in base64."""


def make(
    engine: Engine,
    fields: dict[str, Any],
    pictures: Sequence[bytes],
    callbacks: Callbacks,
    waiting: Callable[[str], None],
) -> Image:
    """One picture.

    Args:
        pictures: to work on, as PNG files.

    Raises:
        InputError, EngineError: as `ask`; the server's own words where it cannot make it.
        Exception: whatever `callbacks.check_cancel` raises. The servers have no way to cancel a picture: they are hung
            up on.
    """
    if pictures:
        path = "/v1/images/edits"
        body, kind = form(fields, [("image", f"image_{index}.png", data) for index, data in enumerate(pictures)])
    else:
        path, kind = "/v1/images/generations", "application/json"
        body = json.dumps(fields).encode()
    try:
        reply = ask(engine, Ask("POST", path, body, kind, MOST_ANSWER, engine.patience), callbacks, waiting)
    except FastDiffusersError:
        raise
    except BaseException:
        logger.info("%s has no way to cancel a picture: it was hung up on, and may finish it", engine.url)
        raise
    if not reply.good:
        raise complaint(engine, path, reply)
    where = f"engine {engine.url}"
    said = reply.json
    if not isinstance(said, dict):
        kind = "no JSON object" if reply.kind.endswith("json") else f"{reply.kind or 'of no type'}, not JSON"
        raise EngineError(f"{where}: its answer is {kind}. Look at the address, and at what the server says.")
    found = said.get("data")
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
        count = len(found) if isinstance(found, list) else "no"
        raise EngineError(f"{where}: one picture was asked for, and {count} came")
    return picture(found[0].get("b64_json"), where)
