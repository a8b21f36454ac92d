"""Downloads through the real huggingface_hub, from a server on loopback that breaks off in the middle of a file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines.loading import loader

COMMIT = "c0ffee" + "0" * 34
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
FETCH = """
import sys
from pathlib import Path
from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines.loading import components, hub
components.find_class = lambda library, name: None  # importing the libraries takes seconds, and these names tell
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # what has not filled a chunk is lost, and these files are small
try:
    commit, folder = hub.fetch("owner/model", "", Callbacks(), Path(sys.argv[1]) if sys.argv[1] else None)
    print(commit, folder)
except ModelFileError as error:
    print(error)
"""


class Hub(ThreadingHTTPServer):
    """As much of the Hub's interface as a download needs. `cut` is where it ends the connection, in bytes of a file."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.others: dict[str, Path] = {}
        self.cut: dict[str, int] = {}
        self.ranges: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        served = {"owner/model": self.server.folder, **self.server.others}
        repository = next((name for name in served if self.path.startswith(f"/api/models/{name}")), "")
        if repository:
            folder = served[repository]
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            siblings = [
                {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size} for path in files
            ]
            self.send(json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode(), body)
            return
        before, _, name = self.path.partition(f"/resolve/{COMMIT}/")
        name = name.partition("?")[0]
        path = served.get(before.strip("/"), self.server.folder) / name
        if not name or not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        wanted = self.headers.get("Range", "")
        begin = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if body:
            self.server.ranges.append((name, wanted))
        self.send(data, body, etag, begin, self.server.cut.get(name) if body else None)

    def send(self, data: bytes, body: bool, etag: str = "", begin: int = 0, cut: int | None = None) -> None:
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data[begin:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def server(tiny_folder) -> Iterator[Hub]:
    with Hub(tiny_folder("sdxl")) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server: Hub, cache: Path, models: str) -> str:
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run([sys.executable, "-c", FETCH, models], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_a_download_that_stops_half_way_goes_on_from_there(server: Hub, tmp_path: Path) -> None:
    into = lambda: fetch(server, tmp_path / "cache", str(tmp_path / "models"))
    whole = (server.folder / WEIGHTS).read_bytes()
    server.cut[WEIGHTS] = len(whole) // 2
    said = into()
    assert f"the download stopped at {WEIGHTS}" in said
    assert "run again: what has arrived is kept" in said.lower()
    assert "\n" not in said

    folder = tmp_path / "models" / "owner" / "model"
    assert not (folder / "model_index.json").exists()
    assert not (folder / WEIGHTS).exists()

    server.cut.clear()
    server.ranges.clear()
    assert into() == f"{COMMIT} {folder}"
    kept = len(whole) // 2 // (1 << 16) * (1 << 16)
    assert kept
    assert [wanted for name, wanted in server.ranges if name == WEIGHTS] == [f"bytes={kept}-"]
    assert (folder / WEIGHTS).read_bytes() == whole

    server.ranges.clear()
    assert into() == f"{COMMIT} {folder}"
    assert server.ranges == [], "what is there is not fetched again"


def test_the_hubs_own_cache_gets_its_own_layout(server: Hub, tmp_path: Path) -> None:
    whole = (server.folder / WEIGHTS).read_bytes()
    server.cut[WEIGHTS] = len(whole) // 2
    assert f"the download stopped at {WEIGHTS}" in fetch(server, tmp_path, "")
    server.cut.clear()
    server.ranges.clear()
    folder = tmp_path / "hub" / "models--owner--model" / "snapshots" / COMMIT
    assert fetch(server, tmp_path, "") == f"{COMMIT} {folder}"
    assert [wanted[:6] for name, wanted in server.ranges if name == WEIGHTS] == ["bytes="], "it goes on half-way"
    for path in (path for path in server.folder.rglob("*") if path.is_file()):
        copy = folder / path.relative_to(server.folder)
        assert copy.read_bytes() == path.read_bytes()
        if copy.is_symlink():
            assert copy.resolve().name == hashlib.sha256(path.read_bytes()).hexdigest()
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache("owner/model", WEIGHTS, cache_dir=tmp_path / "hub", revision=COMMIT)
    assert found == str(folder / WEIGHTS)
    server.ranges.clear()
    assert fetch(server, tmp_path, "") == f"{COMMIT} {folder}"
    assert server.ranges == []


@pytest.fixture
def modular_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A modular model whose VAE and scheduler are in another repository, on a Hub of its own, in this process."""
    from huggingface_hub import constants

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "modular"))
    from modular_twins import save_twin

    model, parts = save_twin("zimage", tmp_path / "served" / "model"), tmp_path / "served" / "parts"
    index = json.loads((model / "modular_model_index.json").read_text())
    for name, folder in (("vae", "sub/vae"), ("scheduler", "scheduler")):
        index[name][2] |= {"pretrained_model_name_or_path": "else/parts", "subfolder": folder}
        shutil.move(model / name, parts / folder)
    (model / "modular_model_index.json").write_text(json.dumps(index))
    (parts / "sub" / "vae" / "other.bin").write_bytes(b"a pickle")
    shutil.copytree(model / "transformer", parts / "transformer")
    with Hub(model) as server:
        server.others["else/parts"] = parts
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kept", [False, True])
def test_components_in_another_repository_come_with_the_model(
    kept: bool, modular_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is needed of both repositories, and nothing else; and from then on without the network."""
    from huggingface_hub import constants

    library = tmp_path / "models" if kept else None
    key = loader.resolve("owner/model", library=library)
    fetched = {name for name, _ in modular_server.ranges}
    there = {path.relative_to(modular_server.folder).as_posix() for path in modular_server.folder.rglob("*.*")}
    assert fetched == there | {
        "sub/vae/config.json",
        "sub/vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    }
    modular_server.ranges.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert loader.resolve("owner/model", library=library) == key
    assert type(loader.load(key).pipeline.vae).__name__ == "AutoencoderKL"
    assert modular_server.ranges == []


def test_a_component_that_is_in_no_repository_is_one_line(modular_server: Hub, tmp_path: Path) -> None:
    parts = modular_server.others["else/parts"]
    shutil.rmtree(parts / "sub")
    with pytest.raises(ModelFileError, match="its scheduler, vae are in another repository, else/parts") as caught:
        loader.resolve("owner/model")
    assert "where there is no sub/vae" in str(caught.value)
    assert "\n" not in str(caught.value)
    del modular_server.others["else/parts"]
    with pytest.raises(ModelFileError, match="else/parts, and the Hub gives no answer") as caught:
        loader.resolve("owner/model")
    assert "\n" not in str(caught.value)
    assert not any("transformer" in name for name, _ in modular_server.ranges), "it is said before anything large comes"
