"""Headless Chromium, driven over its DevTools protocol: looks at a graph in ComfyUI's editor as a person would.

The tests and `screenshots.py` use it. It needs aiohttp, which ComfyUI brings.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .editor_scripts import ADD, BOUNDS, BOX, CALM, COUNT_REQUESTS, HELP, LOAD, LOOK, RUN, SETTLED, STARTED

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # a container's /dev/shm is often too small for it
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the template browser opens over the graph
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.RightSidePanel.IsOpen": False,
}
CLASSIC, NODES_2 = {"Comfy.VueNodes.Enabled": False}, {"Comfy.VueNodes.Enabled": True}
"""The two ways in which the editor draws nodes: on a canvas, and as elements of the page (Nodes 2.0)."""
DARK, LIGHT = {"Comfy.ColorPalette": "dark"}, {"Comfy.ColorPalette": "light"}
BAR = 90
"""Height in pixels of what floats above the canvas."""
HANG = 300.0
"""Seconds after which something that never comes is given up; a loaded machine may take long."""
HELP_TEXT = "[data-testid=properties-panel] .node-help-content"


class BrowserError(RuntimeError):
    """Chromium did not start, or the page did not do what was asked of it."""


def find_chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """`with Browser(program) as page: page.open(url); page.load(workflow); page.screenshot(path)`."""

    def __init__(self, program: str, width: int = 1600, height: int = 1000) -> None:
        self._program, self._size = program, (width, height)
        self._numbers = itertools.count(1)
        self._counts = False

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="fastdiffusers_browser_")
        folder = Path(self._profile.name)
        command = [self._program, *FLAGS, f"--user-data-dir={folder}", "--window-size={},{}".format(*self._size)]
        self._process = subprocess.Popen(  # noqa: S603 - the command is built here, from paths alone
            [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(self._connect(self._port(folder)))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "_session"):
            self._loop.run_until_complete(self._session.close())
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._loop.close()
        shutil.rmtree(self._profile.name, ignore_errors=True)  # its helpers may still be writing for a moment

    def _port(self, folder: Path) -> int:
        note = folder / "DevToolsActivePort"
        deadline = time.monotonic() + HANG
        while not note.exists() or not note.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BrowserError("Chromium did not open its DevTools port")
            time.sleep(0.1)
        return int(note.read_text().splitlines()[0])

    async def _connect(self, port: int) -> None:
        targets: list[dict[str, Any]] = []
        while not targets:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                targets = [target for target in json.load(answer) if target["type"] == "page"]
        import aiohttp

        self._session = aiohttp.ClientSession()
        url = targets[0]["webSocketDebuggerUrl"]
        self._socket = await self._session.ws_connect(url, max_msg_size=0)

    async def _send(self, method: str, parameters: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), timeout)
            if message.get("id") == number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']}")
                return dict(message["result"])

    def command(self, method: str, timeout: float = HANG, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its result."""
        return self._loop.run_until_complete(self._send(method, parameters, timeout))

    def evaluate(self, script: str, timeout: float = HANG) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.command("Runtime.evaluate", timeout, expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def open(self, url: str, **settings: Any) -> None:
        """Go to ComfyUI's editor and wait until it is there. `settings` are on top of `SETTINGS`."""
        body = json.dumps({**SETTINGS, **settings}).encode()
        query = urllib.request.Request(url + "/settings", body, method="POST")  # noqa: S310 - loopback only
        urllib.request.urlopen(query).close()  # noqa: S310 - loopback only
        self.command("Page.enable")
        if not self._counts:
            self.command("Page.addScriptToEvaluateOnNewDocument", source=COUNT_REQUESTS)
            self._counts = True
        self.command("Page.navigate", url=url)
        deadline = time.monotonic() + HANG
        while not self.evaluate(STARTED):  # it loads its default graph once it is ready
            if time.monotonic() > deadline:
                raise BrowserError("the editor did not start")
            time.sleep(0.3)
        self.settle()

    def settle(self) -> None:
        """Wait until frames are drawn, ComfyUI has answered, and nothing on the page moves or appears any more."""
        if not self.evaluate(SETTLED % (HANG / 2, CALM)):
            raise BrowserError("the page does not come to rest")

    def load(self, workflow: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Put a workflow on the canvas, fit the view to it, and return what its nodes look like."""
        self.evaluate(LOAD % json.dumps(workflow))
        self.settle()
        self.fit()
        return self.nodes()

    def add(self, *node_types: str) -> list[dict[str, Any]]:
        """Put new nodes, with their default values and sizes, on an empty canvas; return what they look like."""
        self.evaluate(ADD % json.dumps(node_types))
        self.settle()
        self.fit()
        return self.nodes()

    def box(self, node_id: str) -> dict[str, float]:
        """Where a node is drawn, in pixels of the window: x, y, width, height."""
        return dict(self.evaluate(BOX % json.dumps(node_id)))

    def show_help(self) -> str:
        """Open the help of the first node in the panel beside the canvas, as its button does, and return the text."""
        if not self.evaluate(HELP % HELP_TEXT):
            raise BrowserError("no help came up")
        self.settle()
        return str(self.evaluate(f"document.querySelector('{HELP_TEXT}').innerText"))

    def run(self, timeout: float = HANG) -> str:
        """Press Run and wait, at most so many seconds, until the graph has run; its prompt id."""
        prompt_id = str(self.evaluate(RUN, timeout))
        self.settle()
        return prompt_id

    def resize(self, width: int, height: int) -> None:
        """Give the page another size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        if self.evaluate(STARTED):  # before the first `open` there is nothing to settle
            self.settle()

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes on the canvas: type, place, size, widgets, and whether they are in error.

        Ids are strings, whichever the editor keeps: numbers up to frontend 1.42, strings from 1.49 on.
        """
        return list(self.evaluate(LOOK))

    def fit(self, margin: float = 30) -> None:
        """Move and scale the canvas so that all nodes and groups fill the window."""
        bounds = self.evaluate(BOUNDS)
        self.evaluate(
            """(() => {{
              const c = window.app.canvas, m = {margin};
              const area = {{ x: 60, y: {bar}, w: innerWidth - 60, h: innerHeight - {bar} - 60 }};
              const w = {right} - {left}, h = {bottom} - {top};
              const s = Math.min((area.w - 2 * m) / w, (area.h - 2 * m) / h, 1.2);
              c.ds.scale = s;
              c.ds.offset[0] = (area.x + (area.w - w * s) / 2) / s - {left};
              c.ds.offset[1] = (area.y + (area.h - h * s) / 2) / s - {top};
              c.setDirty(true, true);
            }})()""".format(margin=margin, bar=BAR, **bounds)
        )
        self.settle()

    def screenshot(self, path: Path, clip: Mapping[str, float] | None = None) -> Path:
        """Save what is seen as a PNG."""
        path.write_bytes(self.picture(clip))
        return path

    def picture(self, clip: Mapping[str, float] | None = None) -> bytes:
        """What is seen, or a part of it in pixels of the window, as a PNG."""
        extra: dict[str, Any] = {"clip": {**clip, "scale": 1}} if clip else {}
        return base64.b64decode(self.command("Page.captureScreenshot", format="png", **extra)["data"])
