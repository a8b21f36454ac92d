"""A real ComfyUI, started for a test or a demo and stopped again.

Everything it writes goes to a base directory of its own (a temporary one by default) in which this pack is linked as
the only custom node; the checkout itself is only read. It listens on loopback, on a free port.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..commands.paths import PACK, find_comfyui

__all__ = ["ComfyServer", "ServerError", "find_comfyui"]

BASE_FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models")


class ServerError(RuntimeError):
    """ComfyUI did not start, refused a workflow, or failed while running it."""


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_gpu() -> bool:
    """Whether torch sees an accelerator; ComfyUI must be told `--cpu` where it does not."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()


class ComfyServer:
    """`with ComfyServer() as server: server.run(workflow)`.

    Args:
        base: base directory (models, input, output, custom_nodes); a temporary one, removed at the end, when None.
        comfyui: the ComfyUI checkout; the one that `find_comfyui` finds when None.
        arguments: further arguments for ComfyUI's main.py.
        environment: variables set on top of this process's own.
        startup_seconds: how long it may take until it answers.
        port: the port on loopback; a free one when 0.

    Attributes:
        url: "http://127.0.0.1:<port>", set while it runs.
        base: the base directory.
        log_path: file that receives everything it prints.
    """

    def __init__(
        self,
        base: Path | None = None,
        comfyui: Path | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        startup_seconds: float = 300,
        port: int = 0,
    ) -> None:
        found = comfyui or find_comfyui()
        if found is None:
            raise ServerError("no ComfyUI found: set COMFYUI_PATH to its folder")
        self.comfyui = found
        self._temporary = tempfile.TemporaryDirectory(prefix="fastdiffusers_comfyui_") if base is None else None
        self.base = Path(self._temporary.name) if self._temporary else Path(base or "")
        self.log_path = self.base / "comfyui.log"
        self.url = ""
        self._arguments = list(arguments)
        self._environment = dict(environment or {})
        self._startup_seconds = startup_seconds
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> ComfyServer:
        """Start it and wait until it answers. Raises ServerError, with the end of its log, when it does not."""
        for name in BASE_FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        example, copy = self.comfyui / "input" / "example.png", self.base / "input" / "example.png"
        if example.is_file() and not copy.exists():  # the picture that ComfyUI's own examples and these begin with
            shutil.copyfile(example, copy)
        link = self.base / "custom_nodes" / "fastdiffusers"
        if not link.exists():
            link.symlink_to(PACK, target_is_directory=True)
        port = self._port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(PACK), "scripts.start_comfyui", str(self.comfyui)]
        command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"]
        command += ["--disable-auto-launch", "--disable-api-nodes"]
        command += [] if has_gpu() else ["--cpu"]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the command is built here, from paths alone
                [*command, *self._arguments],
                cwd=self.base,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that stopping it reaches whatever it started
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._startup_seconds
        while time.monotonic() < deadline:
            if not self.running:
                raise ServerError(f"ComfyUI ended while starting. The end of its log:\n{self.log_tail()}")
            try:
                self.get("/system_stats", timeout=5)
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.25)
        raise ServerError(f"ComfyUI did not answer in {self._startup_seconds:.0f} s:\n{self.log_tail()}")

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the process and everything it started; remove the base directory if it was a temporary one."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            self._signal(process, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                self._signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
                process.wait(10)
        if self._temporary is not None:
            self._temporary.cleanup()

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- talk -----------------------------------------------------------------------------------------------------

    def log(self) -> str:
        """Everything it has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def request(self, path: str, payload: object = None, timeout: float = 60) -> bytes:
        """GET `path`, or POST `payload` to it as JSON. Raises urllib's HTTPError on a refusal."""
        data = None if payload is None else json.dumps(payload).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        query = urllib.request.Request(self.url + path, data=data, headers=headers)  # noqa: S310 - loopback only
        with urllib.request.urlopen(query, timeout=timeout) as answer:  # noqa: S310 - loopback only
            return bytes(answer.read())

    def get(self, path: str, timeout: float = 60) -> Any:
        return json.loads(self.request(path, timeout=timeout) or b"null")

    def post(self, path: str, payload: object, timeout: float = 60) -> Any:
        return json.loads(self.request(path, payload, timeout) or b"null")

    def object_info(self) -> dict[str, Any]:
        """Every registered node's description, as the frontend gets it."""
        info: dict[str, Any] = self.get("/object_info")
        return info

    def queue(self, prompt: Mapping[str, Any], client_id: str = "fastdiffusers") -> str:
        """Queue a workflow in API format and return its prompt id. Raises ServerError when it does not validate."""
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client_id})
        except urllib.error.HTTPError as error:
            raise ServerError(f"ComfyUI refused the workflow: {error.read().decode(errors='replace')}") from error
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """The history entry of a prompt once it is over, whether it succeeded, failed or was interrupted."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                entry: dict[str, Any] = history[prompt_id]
                return entry
            if not self.running:
                raise ServerError(f"ComfyUI ended during the run. The end of its log:\n{self.log_tail()}")
            time.sleep(0.1)
        raise ServerError(f"the workflow was not over after {timeout:.0f} s:\n{self.log_tail()}")

    def run(self, prompt: Mapping[str, Any], timeout: float = 600) -> dict[str, Any]:
        """Queue a workflow, wait for it, and return its history entry. Raises ServerError unless it succeeded."""
        entry = self.wait(self.queue(prompt), timeout)
        if entry["status"]["status_str"] != "success":
            raise ServerError(f"the workflow failed: {json.dumps(entry['status']['messages'])}\n{self.log_tail()}")
        return entry

    def interrupt(self) -> None:
        self.request("/interrupt", {})

    def view(self, file: Mapping[str, str]) -> bytes:
        """The bytes of an output file, given as in a history entry: filename, subfolder, type."""
        wanted = {key: file[key] for key in ("filename", "subfolder", "type") if key in file}
        return self.request("/view?" + urllib.parse.urlencode(wanted))
