"""The embedded tiny Z-Image in parts: it is the embedded one as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from original_layout import original_vae
from safetensors.torch import load_file
from test_parts_families import assert_same

from fastdiffusers.cache_folder import filled
from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.parts import embedded_parts


def test_it_is_the_embedded_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDIFFUSERS_CACHE", str(tmp_path / "cache"))
    files = embedded_parts()
    encoder, vae = str(files["text_encoder"]), str(files["vae"])
    options = {"in_parts": True, "text_encoders": [encoder], "vae": vae, "device": "cpu", "dtype": "float32"}
    key = loader.resolve(str(files["transformer"]), **options)
    whole = tiny.build("zimage")
    assert_same(loader.load(key).pipeline, whole)
    assert load_file(files["vae"]).keys() == original_vae(whole.vae.state_dict()).keys()
    stamps = [file.stat().st_mtime_ns for file in files.values()]
    assert [file.stat().st_mtime_ns for file in embedded_parts().values()] == stamps, "written once"
    files["vae"].unlink()
    assert all(file.is_file() for file in embedded_parts().values())


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTDIFFUSERS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelFileError, match="FASTDIFFUSERS_CACHE"):
        embedded_parts()


def test_of_two_processes_that_write_at_once_the_first_one_s_folder_stays(tmp_path: Path) -> None:
    place, names = tmp_path / "cache" / "parts", ("a", "b/c")

    def fill(folder: Path, text: str) -> None:
        (folder / "b").mkdir()
        for name in names:
            (folder / name).write_text(text)

    with filled(place, *names) as slow:
        fill(slow, "slow")
        with filled(place, *names) as fast:
            fill(fast, "fast")
    assert [(place / name).read_text() for name in names] == ["fast", "fast"]
    (place / "a").unlink()
    with filled(place, *names) as again:
        fill(again, "again")
    assert [(place / name).read_text() for name in names] == ["again", "again"], "what is not whole is made anew"
    assert [each.name for each in place.parent.iterdir()] == ["parts"]
    with pytest.raises(OSError, match="space"), filled(place, *names) as third:
        raise OSError(28, "No space left on device", str(third))
    assert [each.name for each in place.parent.iterdir()] == ["parts"]
