"""Headless Chromium, driven over its DevTools protocol: looks at a graph in ComfyUI's editor as a person would."""

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

import aiohttp

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
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the template browser opens over the graph
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Notification.ShowVersionUpdates": False,
}
LOAD = """
(async () => {
  await window.app.loadGraphData(%s);
  await new Promise(done => setTimeout(done, 1500));
})()
"""
BOUNDS = """
(() => {
  const boxes = [
    ...window.app.graph.nodes.map(n => [n.pos[0], n.pos[1] - 40, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]),
    ...window.app.graph.groups.map(g => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]]),
  ];
  return {
    left: Math.min(...boxes.map(b => b[0])), top: Math.min(...boxes.map(b => b[1])),
    right: Math.max(...boxes.map(b => b[2])), bottom: Math.max(...boxes.map(b => b[3])),
  };
})()
"""
LOOK = """
(() => window.app.graph.nodes.map(n => ({
  id: n.id, type: n.type, title: n.title, pos: [...n.pos], size: [...n.size],
  minimum: [...n.computeSize()],
  missing: !(n.type in LiteGraph.registered_node_types),
  errors: !!n.has_errors,
  widgets: (n.widgets ?? []).map(w => ({ name: w.name, value: w.value })),
  unlinked: (n.inputs ?? []).filter(i => i.link == null && !i.widget).map(i => i.name),
})))()
"""


def find_chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """`with Browser(program) as page: page.open(url); page.load(workflow); page.screenshot(path)`."""

    def __init__(self, program: str, width: int = 1600, height: int = 1000) -> None:
        self._program, self._size = program, (width, height)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="fastdiffusers_browser_")
        folder = Path(self._profile.name)
        command = [self._program, *FLAGS, f"--user-data-dir={folder}", "--window-size={},{}".format(*self._size)]
        self._process = subprocess.Popen(
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
        deadline = time.monotonic() + 60
        while not note.exists() or not note.read_text():
            assert self._process.poll() is None, "Chromium ended while starting"
            assert time.monotonic() < deadline, "Chromium did not open its DevTools port"
            time.sleep(0.1)
        return int(note.read_text().splitlines()[0])

    async def _connect(self, port: int) -> None:
        targets: list[dict[str, Any]] = []
        while not targets:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                targets = [target for target in json.load(answer) if target["type"] == "page"]
        self._session = aiohttp.ClientSession()
        url = targets[0]["webSocketDebuggerUrl"]
        self._socket = await self._session.ws_connect(url, max_msg_size=0)

    async def _send(self, method: str, parameters: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), timeout)
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])

    def command(self, method: str, timeout: float = 120, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its result."""
        return self._loop.run_until_complete(self._send(method, parameters, timeout))

    def evaluate(self, script: str, timeout: float = 120) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.command("Runtime.evaluate", timeout, expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, url: str, **settings: Any) -> None:
        """Go to ComfyUI's editor and wait until it is there. `settings` are on top of `SETTINGS`."""
        body = json.dumps({**SETTINGS, **settings}).encode()
        urllib.request.urlopen(urllib.request.Request(url + "/settings", body, method="POST")).close()
        self.command("Page.enable")
        self.command("Page.navigate", url=url)
        ready = "!!(window.app && window.app.graph && window.app.extensionManager && window.LiteGraph)"
        deadline = time.monotonic() + 120
        while not self.evaluate(ready):
            assert time.monotonic() < deadline, "the editor did not start"
            time.sleep(0.3)
        time.sleep(2)  # it loads its default graph once it is ready

    def load(self, workflow: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Put a workflow on the canvas, fit the view to it, and return what its nodes look like."""
        self.evaluate(LOAD % json.dumps(workflow))
        self.fit()
        return self.nodes()

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes on the canvas: type, place, size, widgets, and whether they are in error."""
        return list(self.evaluate(LOOK))

    def fit(self, margin: float = 30) -> None:
        """Move and scale the canvas so that all nodes and groups fill the window."""
        bounds = self.evaluate(BOUNDS)
        self.evaluate(
            """(() => {{
              const c = window.app.canvas, m = {margin};
              const area = {{ x: 60, y: 90, w: innerWidth - 60, h: innerHeight - 90 }};
              const w = {right} - {left}, h = {bottom} - {top};
              const s = Math.min((area.w - 2 * m) / w, (area.h - 2 * m) / h, 1.2);
              c.ds.scale = s;
              c.ds.offset[0] = (area.x + (area.w - w * s) / 2) / s - {left};
              c.ds.offset[1] = (area.y + (area.h - h * s) / 2) / s - {top};
              c.setDirty(true, true);
            }})()""".format(margin=margin, **bounds)
        )
        time.sleep(1)

    def screenshot(self, path: Path, clip: Mapping[str, float] | None = None) -> Path:
        """Save what is seen as a PNG."""
        extra = {"clip": {**clip, "scale": 1}} if clip else {}
        picture = self.command("Page.captureScreenshot", format="png", **extra)["data"]
        path.write_bytes(base64.b64decode(picture))
        return path
