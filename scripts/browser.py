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
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.RightSidePanel.IsOpen": False,
}
CLASSIC, NODES_2 = {"Comfy.VueNodes.Enabled": False}, {"Comfy.VueNodes.Enabled": True}
"""The two ways in which the editor draws nodes: on a canvas, and as elements of the page (Nodes 2.0)."""
DARK, LIGHT = {"Comfy.ColorPalette": "dark"}, {"Comfy.ColorPalette": "light"}
BAR = 90
"""Height in pixels of what floats above the canvas."""
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
  id: String(n.id), type: n.type, title: n.title, pos: [...n.pos], size: [...n.size],
  minimum: [...n.computeSize()],
  missing: !(n.type in LiteGraph.registered_node_types),
  errors: !!n.has_errors,
  widgets: (n.widgets ?? []).map(w => ({ name: w.name, value: w.value })),
  unlinked: (n.inputs ?? []).filter(i => i.link == null && !i.widget).map(i => i.name),
})))()
"""


ADD = """
(async () => {
  const graph = window.app.graph, last = graph.last_node_id;
  graph.clear();
  graph.last_node_id = last;  // the editor remembers values by the node's number
  %s.forEach((type, index) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = [600 * index, 0];
    graph.add(node);
  });
  await new Promise(done => setTimeout(done, 500));
})()
"""
BOX = """
(() => {
  const node = window.app.graph.nodes.find(n => n.id == %s), canvas = window.app.canvas;
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  if (element) {
    const box = element.getBoundingClientRect();
    return { x: box.x, y: box.y, width: box.width, height: box.height };
  }
  const area = canvas.canvas.getBoundingClientRect(), scale = canvas.ds.scale, title = 30;
  return {
    x: area.x + (node.pos[0] + canvas.ds.offset[0]) * scale,
    y: area.y + (node.pos[1] - title + canvas.ds.offset[1]) * scale,
    width: node.size[0] * scale, height: (node.size[1] + title) * scale,
  };
})()
"""
HELP = """
(async () => {
  window.app.canvas.deselectAll();
  window.app.canvas.selectNode(window.app.graph.nodes[0]);
  const wait = async find => {
    for (let i = 0; i < 100; i++) {
      const found = find();
      if (found) return found;
      await new Promise(done => setTimeout(done, 100));
    }
  };
  (await wait(() => document.querySelector('[data-testid=info-button]')))?.click();
  return !!(await wait(() => document.querySelector('%s')));
})()
"""
RUN = """
(async () => {
  const api = window.app.api;
  const over = new Promise((done, fail) => {
    api.addEventListener('execution_success', done, { once: true });
    api.addEventListener('execution_error', event => fail(event.detail.exception_message), { once: true });
  });
  await window.app.queuePrompt(0);
  await over;
  await new Promise(done => setTimeout(done, 1000));
})()
"""
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
        deadline = time.monotonic() + 60
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

    def command(self, method: str, timeout: float = 120, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its result."""
        return self._loop.run_until_complete(self._send(method, parameters, timeout))

    def evaluate(self, script: str, timeout: float = 120) -> Any:
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
        self.command("Page.navigate", url=url)
        ready = "!!(window.app && window.app.graph && window.app.extensionManager && window.LiteGraph)"
        deadline = time.monotonic() + 120
        while not self.evaluate(ready):
            if time.monotonic() > deadline:
                raise BrowserError("the editor did not start")
            time.sleep(0.3)
        time.sleep(2)  # it loads its default graph once it is ready

    def load(self, workflow: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Put a workflow on the canvas, fit the view to it, and return what its nodes look like."""
        self.evaluate(LOAD % json.dumps(workflow))
        self.fit()
        return self.nodes()

    def add(self, *node_types: str) -> list[dict[str, Any]]:
        """Put new nodes, with their default values and sizes, on an empty canvas; return what they look like."""
        self.evaluate(ADD % json.dumps(node_types))
        self.fit()
        return self.nodes()

    def box(self, node_id: str) -> dict[str, float]:
        """Where a node is drawn, in pixels of the window: x, y, width, height."""
        return dict(self.evaluate(BOX % json.dumps(node_id)))

    def show_help(self) -> str:
        """Open the help of the first node in the panel beside the canvas, as its button does, and return the text."""
        if not self.evaluate(HELP % HELP_TEXT):
            raise BrowserError("no help came up")
        time.sleep(1)
        return str(self.evaluate(f"document.querySelector('{HELP_TEXT}').innerText"))

    def run(self) -> None:
        """Press Run and wait until the graph has run."""
        self.evaluate(RUN)

    def resize(self, width: int, height: int) -> None:
        """Give the page another size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        time.sleep(0.5)

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
        time.sleep(1)

    def screenshot(self, path: Path, clip: Mapping[str, float] | None = None) -> Path:
        """Save what is seen as a PNG."""
        extra: dict[str, Any] = {"clip": {**clip, "scale": 1}} if clip else {}
        picture = self.command("Page.captureScreenshot", format="png", **extra)["data"]
        path.write_bytes(base64.b64decode(picture))
        return path
