"""Downloads from the Hub: pinned, whole, resumed, cancelled, into its cache or a folder of models."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines.loading import hub, loader
from fastdiffusers.pipelines.loading.hub_client import HuggingFace, RemoteFile
from fastdiffusers.pipelines.types import LoadKey

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny SDXL folder that a test may break."""
    return Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))


class FakeHub:
    """The Hub in a folder: files are copied into a snapshot as they are asked for."""

    def __init__(self, source, cache, online=True, extra=()):
        self.source, self.cache, self.online, self.extra = source, cache, online, extra
        self.newest = "c0ffee"
        self.downloaded, self.fail_at, self.failure = [], None, OSError("connection reset")

    def commit_and_files(self, repository, revision):
        if not self.online:
            raise OSError("no route to host\nsecond line")
        files = [p for p in self.source.rglob("*") if p.is_file()]
        listed = [RemoteFile(p.relative_to(self.source).as_posix(), p.stat().st_size) for p in files]
        return revision or self.newest, [*listed, *(RemoteFile(name, 10**9) for name in self.extra)]

    def cached_folder(self, repository, revision):
        folder = self.cache / (revision or "c0ffee")
        there = any((folder / name).is_file() for name in ("model_index.json", "modular_model_index.json"))
        return (folder.name, folder) if there else None

    def cache_place(self):
        return self.cache

    def arrived(self, repository, name, commit, folder):
        path = (folder or self.cache / commit) / name
        return path.stat().st_size if path.is_file() else 0

    def note_revision(self, repository, revision, commit):
        pass

    def download(self, repository, name, commit, folder, on_bytes):
        if name == self.fail_at:
            raise self.failure
        target = (folder or self.cache / commit) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.source / name, target)
        on_bytes(target.stat().st_size)
        self.downloaded.append(name)
        return target


@pytest.fixture
def fake_hub(folder, tmp_path, monkeypatch):
    client = FakeHub(folder, tmp_path / "hub")
    monkeypatch.setattr(hub, "HuggingFace", lambda: client)
    return client


def test_a_hub_id_is_downloaded_once_pinned_and_loaded(fake_hub):
    unwanted = ("unet/diffusion_pytorch_model.bin", "unet/openvino/a.bin", "big.safetensors", "unet/x.fp16.safetensors")
    fake_hub.extra = unwanted
    ticks = []
    key = loader.resolve("owner/model", callbacks=Callbacks(ticks.append))
    assert (key.source, key.revision) == ("owner/model", "c0ffee")
    assert not set(fake_hub.downloaded) & set(unwanted)
    assert "model_index.json" in fake_hub.downloaded
    assert {tick.stage for tick in ticks} == {"download"}
    assert [tick.done for tick in ticks] == sorted(tick.done for tick in ticks)
    assert ticks[-1].done == ticks[-1].total
    loaded = loader.load(key)
    assert loaded.facts["revision"] == "c0ffee"
    assert loader.family_of_key(key).name == "sdxl"

    fake_hub.online = False
    assert loader.resolve("owner/model") == key


def test_a_modular_repository_is_downloaded_without_what_it_does_not_name(fake_hub, folder, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "modular"))
    from modular_twins import save_twin

    shutil.rmtree(folder)
    save_twin("zimage", folder)
    (folder / "examples").mkdir()
    (folder / "examples" / "big.safetensors").write_bytes(b"0" * 1000)
    key = loader.resolve("owner/model")
    assert {name.split("/")[0] for name in fake_hub.downloaded} == {
        "modular_model_index.json",
        *(f.name for f in folder.iterdir() if f.is_dir() and f.name != "examples"),
    }
    assert type(loader.load(key).pipeline).__name__ == "ZImageModularPipeline"
    fake_hub.newest = "decaf"
    (folder / "block.py").write_text("raise SystemExit")
    with pytest.raises(ModelFileError, match=r"owner/model.*blocks of its own \(block.py\)"):
        loader.resolve("owner/model")


def test_a_half_finished_download_is_an_error_and_not_a_model(fake_hub):
    fake_hub.fail_at = WEIGHTS
    with pytest.raises(ModelFileError, match="stopped at vae/") as caught:
        loader.resolve("owner/model")
    assert "\n" not in str(caught.value)
    fake_hub.online = False
    with pytest.raises(ModelFileError):
        loader.resolve("owner/model")
    fake_hub.online, fake_hub.fail_at = True, None
    assert loader.resolve("owner/model").revision == "c0ffee"


def test_a_download_into_a_folder_of_models_is_a_local_model_from_then_on(fake_hub, tmp_path):
    library = tmp_path / "diffusers"
    key = loader.resolve("owner/model", library=library)
    assert (key.source, key.revision) == (str(library / "owner" / "model"), "")
    assert not (fake_hub.cache / "c0ffee" / WEIGHTS).exists()
    assert loader.resolve(key.source) == key
    fake_hub.online = False
    assert loader.resolve("owner/model", library=library) == key
    assert loader.load(key).pipeline.unet is not None

    fake_hub.online = True
    branch = loader.resolve("owner/model", revision="refs/pr/1", library=library)
    assert branch.source == str(library / "owner" / "model@refs-pr-1")


def test_what_the_cache_has_whole_is_not_fetched_into_a_folder_of_models(fake_hub, tmp_path):
    cached = loader.resolve("owner/model")
    before = list(fake_hub.downloaded)
    assert loader.resolve("owner/model", library=tmp_path / "diffusers") == cached
    assert fake_hub.downloaded == before


def test_half_a_download_is_not_offered_as_a_model_and_goes_on_when_asked_for_again(fake_hub, tmp_path):
    from fastdiffusers.pipelines.loading.local_models import find_local_pipelines

    library = tmp_path / "diffusers"
    fake_hub.fail_at = WEIGHTS
    with pytest.raises(ModelFileError, match=f"stopped at {WEIGHTS}.*what has arrived is kept"):
        loader.resolve("owner/model", library=library)
    assert find_local_pipelines([library]) == []
    fake_hub.fail_at, fake_hub.newest = None, "deadbeef"
    key = loader.resolve("owner/model", library=library)
    assert key.source == str(library / "owner" / "model")
    assert loader.load(key).facts["revision"] == "c0ffee", "finished with the commit it was begun with"
    assert find_local_pipelines([library]) == [library / "owner" / "model"]


def test_a_full_disk_is_said_before_and_during_a_download(fake_hub, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
        with pytest.raises(ModelFileError, match=r"takes 0\.\d GB.*room for 0\.0 GB.*Free some space") as caught:
            loader.resolve("owner/model", library=tmp_path / "diffusers")
    assert "\n" not in str(caught.value)
    assert fake_hub.downloaded == ["model_index.json"]

    fake_hub.fail_at, fake_hub.failure = WEIGHTS, OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ModelFileError, match=r"No space left on device.*Free some space, then run again"):
        loader.resolve("owner/model", library=tmp_path / "diffusers")
    fake_hub.fail_at = None
    assert loader.load(loader.resolve("owner/model", library=tmp_path / "diffusers")).pipeline.vae is not None


def test_a_folder_of_models_that_cannot_be_written_is_said(fake_hub, tmp_path):
    (tmp_path / "diffusers").write_text("a file in its place")
    with pytest.raises(ModelFileError, match="cannot be written") as caught:
        loader.resolve("owner/model", library=tmp_path / "diffusers")
    assert "\n" not in str(caught.value)
    assert loader.resolve("owner/model", library=tmp_path / "elsewhere").source.endswith("owner/model")


def test_a_cancel_stops_a_download(fake_hub):
    class Interrupted(Exception):
        pass

    def cancel():
        if len(fake_hub.downloaded) > 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        loader.resolve("owner/model", callbacks=Callbacks(check_cancel=cancel))
    assert len(fake_hub.downloaded) == 4


def test_what_the_hub_cannot_give_is_said(fake_hub, folder):
    fake_hub.online = False
    with pytest.raises(ModelFileError, match="no route to host"):
        loader.resolve("owner/model")
    fake_hub.online = True
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelFileError, match="pickle"):
        loader.resolve("owner/model")
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelFileError, match="no diffusers pipeline"):
        loader.resolve("owner/model")
    with pytest.raises(ModelFileError, match="not in the Hub cache"):
        loader.load(LoadKey("owner/other", revision="abc", dtype="float32", device="cpu"))


def test_without_a_network_the_real_client_says_so():
    with pytest.raises(ModelFileError, match="HF_HUB_OFFLINE"):
        loader.resolve("owner/never-downloaded")
    client = HuggingFace()
    with pytest.raises(OSError, match=r"."):
        client.download("owner/never-downloaded", "model_index.json", "main", None, lambda count: None)


class FakeResponses:
    """Stands in for the functions of huggingface_hub that the real client calls."""

    def __init__(self, monkeypatch, folder):
        import huggingface_hub
        from huggingface_hub import constants

        self.folder, self.failure = folder, None
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", self.get_hf_file_metadata)
        monkeypatch.setattr(huggingface_hub.file_download, "http_get", self.http_get)

    def model_info(self, repository, revision, files_metadata):
        from types import SimpleNamespace

        if self.failure:
            raise self.failure
        files = [SimpleNamespace(rfilename="model_index.json", size=7), SimpleNamespace(rfilename="a", size=None)]
        return SimpleNamespace(sha="abc", siblings=files)

    def get_hf_file_metadata(self, url, headers):
        from types import SimpleNamespace

        return SimpleNamespace(etag="123", size=10)

    def http_get(self, url, file, resume_size, headers, expected_size, tqdm_class=None):
        bar = tqdm_class(total=expected_size, unit="B", desc=url, name="some.logger")
        for part in (b"four", b"andsix"):
            file.write(part)
            bar.update(len(part))
        bar.close()


def test_the_real_client_speaks_to_huggingface_hub(monkeypatch, folder):
    answers = FakeResponses(monkeypatch, folder)
    client = HuggingFace()
    commit, files = client.commit_and_files("owner/model", "")
    assert commit == "abc"
    assert files == [RemoteFile("model_index.json", 7), RemoteFile("a", 0)]
    arrived = []
    path = client.download("owner/model", "model_index.json", "abc", None, arrived.append)
    assert path == folder / "hub" / "models--owner--model" / "snapshots" / "abc" / "model_index.json"
    assert path.read_bytes() == b"fourandsix"
    assert arrived == [4, 6]

    class ConnectError(Exception):
        pass

    ConnectError.__module__ = "httpx._exceptions"
    for failure in (ConnectError("refused\nmore"), OSError("unplugged")):
        answers.failure = failure
        with pytest.raises(OSError, match=r"refused|unplugged"):
            client.commit_and_files("owner/model", "")
    answers.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        client.commit_and_files("owner/model", "")
