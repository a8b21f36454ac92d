"""What a user says of a serving engine: where it is, which one, what its model makes; and where its key comes from."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn
from urllib.parse import SplitResult, urlsplit

from ..errors import InputError, check_choice

AUTO, SGLANG, VLLM_OMNI = "auto", "sglang", "vllm-omni"
SERVERS = (AUTO, SGLANG, VLLM_OMNI)
NAMES = {SGLANG: "SGLang-Diffusion", VLLM_OMNI: "vLLM-Omni"}
IMAGES, VIDEO = "images", "video"
MAKES = (AUTO, IMAGES, VIDEO)
DEFAULT_URL = "http://127.0.0.1:30000"
"""Where SGLang-Diffusion listens if it is not told otherwise."""
PATIENCE = 600.0
"""Seconds that one result may take where nothing else is said."""
MOST_PATIENCE = 86400.0
KEY = "FASTDIFFUSERS_ENGINE_KEY"
"""Environment variable with the server's API key. It is read for each request and kept nowhere."""
HOSTS = "FASTDIFFUSERS_ENGINE_HOSTS"
"""Environment variable with the names of other machines that a workflow may name, with commas or spaces between."""
START = "start it: sglang serve --model-path MODEL --port 30000, or vllm serve MODEL --omni --port 8091"
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?|[0-9a-f:.]*:[0-9a-f:.]*")
"""A name whose parts have 1 to 63 letters (RFC 1035), an IPv4 address among them, or an IPv6 address."""
_FORM = "write http://127.0.0.1:30000 or https://HOST:PORT"
NO_LATENT = "no latent comes back from a server, only the finished picture"
_NOTHING_HERE = "a server's model gets text and pictures and gives pictures: no weights, LoRAs or latents are here"


@dataclass(frozen=True)
class Engine:
    """A model that a server runs. It travels where a `PipelineHandle` does, and has none of its weights.

    Attributes:
        url: "http://HOST:PORT" or "https://...", with a path where the server is below one; no "/" at its end.
        server: "sglang", "vllm-omni", or "auto" to ask it.
        makes: "images", "video", or "auto": what the server says of its model, else what the request looks like.
        model: the name of the model that the server must have, "" for any.
        patience: seconds that one result may take, the time that it waits for others included.
    """

    url: str
    server: str = AUTO
    makes: str = AUTO
    model: str = ""
    patience: float = PATIENCE

    memory_mode: ClassVar[str] = AUTO
    vae: ClassVar[Any] = None
    decodes: ClassVar[bool] = True
    loras: ClassVar[tuple[Any, ...]] = ()

    def __post_init__(self) -> None:
        check_choice("server", self.server, SERVERS)
        check_choice("makes", self.makes, MAKES)
        if not 1 <= self.patience <= MOST_PATIENCE:
            reason = f"it must be between 1 and {MOST_PATIENCE:g} seconds"
            raise InputError("wait", self.patience, reason, f"use {PATIENCE:g}")
        if len(self.model) > 500 or not self.model.isprintable():
            raise InputError("model", self.model, "no model is called so", "give the name that the server shows")

    @property
    def key(self) -> NoReturn:
        """What a pipeline's weights are found by: there are none.

        Raises:
            InputError: always, so that every node that needs them says so in a line.
        """
        raise InputError(
            "pipeline", self.url, _NOTHING_HERE, "connect it to Diffusers Sampler alone, with text and pictures"
        )

    @property
    def parts(self) -> SplitResult:
        return urlsplit(self.url)

    @property
    def host(self) -> str:
        return self.parts.hostname or ""

    @property
    def encrypted(self) -> bool:
        return self.parts.scheme == "https"

    @property
    def is_here(self) -> bool:
        """Whether the address can be of this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_engine(
    url: str, server: str = AUTO, makes: str = AUTO, model: str = "", patience: float = PATIENCE
) -> Engine:
    """Read a server's address; a "/v1" at its end is left out.

    Raises:
        InputError: it is none, it holds a password, or something else is out of range.
    """
    text = url.strip()
    if "@" in text:
        scheme = f"{text.partition('://')[0]}://" if "://" in text.partition("@")[0] else ""
        shown = f"{scheme}...@{text.rpartition('@')[2]}"
        cure = f"leave it out, and set {KEY} in the environment"
        raise InputError("engine", shown, "a name or password does not belong into an address", cure)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InputError("engine", url, f"it is no address ({error})", _FORM) from None
    if parts.scheme not in ("http", "https"):
        raise InputError("engine", url, "it does not begin with http:// or https://", _FORM)
    if not _HOST.fullmatch(parts.hostname or "") or port == 0:
        raise InputError("engine", url, "it names no host", _FORM)
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    if parts.query or parts.fragment or not re.fullmatch(r"(/[\w.~%\-]+)*", path, re.ASCII) or text != parts.geturl():
        raise InputError("engine", url, "an address of a server ends before ? and #, and has no spaces", _FORM)
    return Engine(f"{parts.scheme}://{parts.netloc.lower()}{path}", server, makes, model.strip(), patience)


def check_host(engine: Engine) -> None:
    """Refuse another machine that only a workflow names: a file may be anybody's, and would send prompts there.

    Raises:
        InputError: it is not this machine, and the environment does not name it.
    """
    named = re.split(r"[,\s]+", os.environ.get(HOSTS, "").lower().strip())
    if not engine.is_here and engine.host not in named and engine.parts.netloc not in named:
        reason = "a workflow may send prompts and pictures to this machine alone, unless its user names others"
        raise InputError("url", engine.url, reason, f"start ComfyUI with {HOSTS}={engine.host} if you trust that host")


def api_key(engine: Engine) -> str:
    """The key from the environment, "" where there is none.

    Raises:
        InputError: it cannot be one, or would travel to another machine unencrypted. The key is not in the text.
    """
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise InputError(KEY, "(not shown)", "it holds a space or a letter that no key has", "set it again")
    if key and not engine.encrypted and not engine.is_here:
        cure = f"use https://, or a tunnel (ssh -L 30000:127.0.0.1:30000 {engine.host}), or unset {KEY}"
        raise InputError("engine", engine.url, "the API key would travel there unencrypted", cure)
    return key
