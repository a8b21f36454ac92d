"""A server that answers as SGLang-Diffusion and vLLM-Omni publish that they do, and can be told to fail as servers do.

Written from their documentation and routes: `/v1/models` with its owner (and SGLang's task), `/models` of older SGLang,
`/v1/images/generations` (JSON), `/v1/images/edits` (a form), `/v1/videos` (JSON or a form at SGLang, a form at
vLLM-Omni), `/v1/videos/ID`, its `/content`, and DELETE. A picture's pixels follow from its seed and prompt, so a test
knows what must come.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import ssl
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MODEL = "Tongyi-MAI/Z-Image-Turbo"
DEFAULT_SIZE = "64x48"
FRAMES, RATE = 5, 8
SAMPLE_RATE = 16_000


@dataclass
class Asked:
    """One request as it came. Attributes: files, the bytes of each uploaded file with the name of its field."""

    method: str
    path: str
    headers: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)
    files: list[tuple[str, bytes]] = field(default_factory=list)


Fault = Callable[["Handler"], None]


def pixels(seed: int, prompt: str, size: str = DEFAULT_SIZE) -> np.ndarray[Any, Any]:
    """The picture of a seed and a prompt, uint8 [H, W, 3], smooth, so that a video codec keeps it."""
    width, height = map(int, size.split("x"))
    noise = np.random.default_rng([seed, zlib.crc32(prompt.encode())]).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))


def clip_pixels(fields: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The frames of a job, uint8 [T, H, W, 3]: frame i is the picture of its seed + i."""
    size, seed = str(fields.get("size", DEFAULT_SIZE)), int(fields["seed"])
    count = int(fields.get("num_frames", FRAMES))
    return np.stack([pixels(seed + index, str(fields["prompt"]), size) for index in range(count)])


def png(array: np.ndarray[Any, Any]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(array).save(target, format="PNG")
    return target.getvalue()


def status(code: int, said: Any = None, **headers: str) -> Fault:
    """Answer with a status, and JSON or text."""

    def fault(handler: Handler) -> None:
        is_text = isinstance(said, str)
        data = said.encode() if is_text else json.dumps(said if said is not None else {"detail": "no"}).encode()
        handler.send(code, "text/plain" if is_text else "application/json", data, **headers)

    return fault


def as_type(kind: str, data: bytes, code: int = 200) -> Fault:
    """Answer with other bytes of another type."""
    return lambda handler: handler.send(code, kind, data)


def truncated_png(handler: Handler) -> None:
    handler.images([png(pixels(1, "cut"))[:-40]])


def hang_up(handler: Handler) -> None:
    """Announce more than is sent."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data": [')
    handler.close_connection = True


def endless(handler: Handler) -> None:
    """An answer of unknown length that does not end."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.server.ended.is_set():
            handler.wfile.write(b" " * (1 << 16))
    handler.close_connection = True


def slow(seconds: float) -> Fault:
    """Say nothing for a while, then hang up; ends early with the server, and notices a caller that hung up."""

    def fault(handler: Handler) -> None:
        handler.server.waiting.set()
        handler.connection.settimeout(seconds)
        with contextlib.suppress(OSError):
            handler.server.hung_up = handler.connection.recv(1) == b""
        handler.close_connection = True

    return fault


class EngineServer(ThreadingHTTPServer):
    """Attributes:
    kind: "sglang", "sglang-old" (no /v1/models), "vllm-omni" or "other".
    task: of SGLang's model, "T2I", "T2V", ...
    key: the API key it wants, "" for none.
    faults: path -> what to do instead of the next answers there, in their order; `None` is the usual answer.
    polls: how often a job is asked after before it is done.
    held: jobs are never done.
    sound: clips have some.
    asked: every request.
    """

    daemon_threads = True

    def __init__(self, kind: str = "sglang", task: str = "T2I", tls: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kind, self.task, self.key = kind, task, ""
        self.faults: dict[str, list[Fault | None]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.polls, self.held, self.sound = 2, False, False
        self.asked: list[Asked] = []
        self.ended, self.waiting, self.hung_up = threading.Event(), threading.Event(), False
        self.scheme = "http" if tls is None else "https"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def to(self, path: str, method: str = "POST") -> list[Asked]:
        """What was asked at a path."""
        return [asked for asked in self.asked if asked.path == path and asked.method == method]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up is no error here."""


class Handler(BaseHTTPRequestHandler):
    server: EngineServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        asked = self._read()
        self.server.asked.append(asked)
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            self.send(401, "application/json", json.dumps({"error": f"Unauthorized: {given}"}).encode())
            return
        faults = self.server.faults.get(f"{asked.method} {asked.path}") or self.server.faults.get(asked.path, [])
        fault = faults.pop(0) if faults else None
        if fault is not None:
            fault(self)
            return
        routes: dict[str, Callable[[Asked], None]] = {
            "GET /v1/models": self._models,
            "GET /models": self._old_models,
            "POST /v1/images/generations": self._generations,
            "POST /v1/images/edits": self._edits,
            "POST /v1/videos": self._create,
        }
        route = routes.get(f"{asked.method} {asked.path}")
        job, _, rest = asked.path.removeprefix("/v1/videos/").partition("/")
        if route is not None:
            route(asked)
        elif asked.path.startswith("/v1/videos/"):
            self._job(asked.method, job, rest)
        else:
            self.send(404, "application/json", b'{"detail": "Not Found"}')

    def _read(self) -> Asked:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = Asked(self.command, self.path, dict(self.headers))
        kind = self.headers.get("Content-Type", "")
        if kind == "application/json":
            asked.fields = json.loads(body)
        elif kind.startswith("multipart/form-data"):
            whole = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
            for part in whole.get_payload():
                name = part.get_param("name", header="Content-Disposition")
                if part.get_filename() is not None:
                    asked.files.append((name, part.get_payload(decode=True)))
                else:
                    asked.fields[name] = part.get_payload(decode=True).decode()
        return asked

    def send(self, code: int, kind: str, data: bytes, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def json(self, said: Any, code: int = 200) -> None:
        self.send(code, "application/json", json.dumps(said).encode())

    def images(self, files: list[bytes]) -> None:
        data = [{"b64_json": base64.b64encode(file).decode(), "url": None, "revised_prompt": None} for file in files]
        self.json({"created": int(time.time()), "data": data})

    def _models(self, asked: Asked) -> None:
        kind = self.server.kind
        if kind == "sglang-old":
            self.json({"detail": "Not Found"}, 404)
            return
        card = {"id": MODEL, "object": "model", "created": 1, "root": MODEL}
        card["owned_by"] = {"sglang": "sglang", "vllm-omni": "vllm"}.get(kind, "somebody")
        if kind == "sglang":
            card |= {"num_gpus": 1, "task_type": self.server.task, "pipeline_class": "ZImagePipeline"}
        self.json({"object": "list", "data": [card]})

    def _old_models(self, asked: Asked) -> None:
        if self.server.kind == "sglang-old":
            self.json({"model_path": MODEL, "task_type": self.server.task, "pipeline_class": "ZImagePipeline"})
        else:
            self.json({"detail": "Not Found"}, 404)

    def _checked(self, fields: dict[str, Any]) -> bool:
        """What both refuse of a request for pictures."""
        if not fields.get("prompt"):
            self.json({"detail": [{"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"}]}, 422)
        elif not 1 <= int(fields.get("n", 1)) <= 10:
            self.json({"detail": [{"loc": ["body", "n"], "msg": "Input should be 1 to 10"}]}, 422)
        elif self.server.kind == "vllm-omni" and int(fields.get("num_inference_steps", 1)) > 200:
            message = "Input should be less than or equal to 200"
            self.json({"detail": [{"loc": ["body", "num_inference_steps"], "msg": message, "type": "x"}]}, 422)
        elif self.server.kind == "vllm-omni" and fields.get("model", MODEL) != MODEL:
            self.json({"detail": f"Model mismatch: the server is running '{MODEL}'."}, 400)
        else:
            return True
        return False

    def _generations(self, asked: Asked) -> None:
        fields = asked.fields
        if not self._checked(fields):
            return
        if fields.get("response_format", "url" if self.server.kind != "vllm-omni" else "b64_json") != "b64_json":
            self.json({"created": 1, "data": [{"url": "/v1/images/x/content", "b64_json": None}]})
            return
        seed = int(fields.get("seed", 1024))
        size = fields.get("size", DEFAULT_SIZE)
        self.images([png(pixels(seed + n, fields["prompt"], size)) for n in range(int(fields.get("n", 1)))])

    def _edits(self, asked: Asked) -> None:
        pictures = [data for name, data in asked.files if name in ("image", "image[]")]
        if not pictures:
            self.json({"detail": "Field 'image' or 'url' is required"}, 422)
        elif self._checked(asked.fields):
            with Image.open(io.BytesIO(pictures[-1])) as last:
                turned = 255 - np.asarray(last.convert("RGB"))
            self.images([png(turned)])

    def _create(self, asked: Asked) -> None:
        is_form = self.headers.get("Content-Type", "").startswith("multipart/")
        if self.server.kind == "vllm-omni" and not is_form:
            self.json({"detail": [{"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"}]}, 422)
            return
        if self.server.kind == "sglang-old" and is_form and not asked.files:
            self.json({"detail": "input_reference file is required"}, 400)
            return
        if not self._checked(asked.fields):
            return
        job = f"video_gen_{len(self.server.jobs)}"
        self.server.jobs[job] = {"fields": asked.fields, "polls": 0}
        self.json({"id": job, "object": "video", "status": "queued", "progress": 0, "seconds": "4"})

    def _job(self, method: str, name: str, rest: str) -> None:
        job = self.server.jobs.get(name)
        if job is None:
            self.json({"detail": "Video not found"}, 404)
            return
        if method == "DELETE":
            del self.server.jobs[name]
            self.json({"id": name, "deleted": True, "object": "video.deleted"})
            return
        if rest == "content":
            self.send(200, "video/mp4", self._mp4(job["fields"]))
            return
        job["polls"] += 1
        done = job["polls"] >= self.server.polls and not self.server.held
        progress = 100 if done else min(90, 40 * job["polls"])
        self.json({"id": name, "status": "completed" if done else "in_progress", "progress": progress})

    def _mp4(self, fields: dict[str, Any]) -> bytes:
        import torch

        from fastdiffusers.commands.media import write_mp4

        frames = torch.from_numpy(clip_pixels(fields)).float() / 255
        rate = float(fields.get("fps", RATE))
        sound = None
        if self.server.sound:
            times = torch.arange(int(len(frames) / rate * SAMPLE_RATE)) / SAMPLE_RATE
            sound = ((torch.sin(times * 2 * torch.pi * 440) * 0.5).expand(2, -1), SAMPLE_RATE)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            write_mp4(frames, path, rate, sound, crf=1)
            return path.read_bytes()


@contextmanager
def serving(kind: str = "sglang", task: str = "T2I", tls: Path | None = None) -> Iterator[EngineServer]:
    """A server that answers on this machine, until the block ends."""
    with EngineServer(kind, task, tls) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
