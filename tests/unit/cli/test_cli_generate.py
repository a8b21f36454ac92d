"""`generate` and `decode` from a shell: every family, every kind of output, every kind of bad input."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastdiffusers import cli
from fastdiffusers.commands.latent_file import read_latent
from fastdiffusers.commands.media import read_frames
from fastdiffusers.pipelines import tiny

VIDEO = ("wan22-t2v", "wan22-i2v")
NEEDS_IMAGE = ("flux-kontext", "qwenimage-edit", "wan22-i2v")
FAST = ("--steps", "2", "--width", "64", "--height", "64", "--dtype", "float32", "--device", "cpu", "--quiet")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "reference.png"
    pixels = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def generate(model: str, output: Path, *more: str) -> int:
    return cli.main(["generate", "--model", model, "--prompt", "a fox", "--output", str(output), *FAST, *more])


@pytest.mark.usefixtures("small_edit_pictures")
@pytest.mark.parametrize("family", tiny.TINY_FAMILIES)
def test_every_family_generates(family: str, tmp_path: Path, picture: Path) -> None:
    more = ["--image", str(picture)] if family in NEEDS_IMAGE else []
    more += ["--num-frames", "5"] if family in VIDEO else []
    output = tmp_path / ("out.mp4" if family in VIDEO else "out.png")
    report = tmp_path / "report.json"
    assert generate(f"tiny:{family}", output, "--report", str(report), *more) == 0
    frames, _ = read_frames(output)
    assert frames.shape[0] == (5 if family in VIDEO else 1)
    assert frames.shape[-1] == 3
    assert min(frames.shape[1:3]) >= 32
    assert frames.std() > 0.01, "a flat picture"
    written = json.loads(report.read_text())
    assert {record["name"] for record in written["optimizations"]} >= {"attention", "torch_compile", "vae_tiling"}


def test_the_prompt_is_read_to_so_many_tokens(tmp_path: Path) -> None:
    made = []
    for name, options in {"all": [], "cut": ["--max-sequence-length", "4"]}.items():
        text, report, output = "a fox in the snow at night", tmp_path / f"{name}.json", tmp_path / f"{name}.png"
        assert generate("tiny:zimage", output, "--prompt", text, "--report", str(report), *options) == 0
        made.append((output.read_bytes(), report.read_text()))
    (whole, _), (cut, said) = made
    assert cut != whole
    assert "reads 4 tokens, not the end" in said


def test_a_saved_folder_generates_what_the_embedded_one_does(tmp_path: Path) -> None:
    folder = tiny.save("flux", tmp_path / "modèle")
    (tmp_path / "x").mkdir()
    assert generate(str(tmp_path / "x" / ".." / folder.name), tmp_path / "a.png") == 0
    assert generate("tiny:flux", tmp_path / "b.png") == 0
    # Weights mapped from a file lie at other addresses than built ones, and some kernels sum in another order there:
    # rounding to 8 bits moves a value by one level at most.
    saved, embedded = read_frames(tmp_path / "a.png")[0], read_frames(tmp_path / "b.png")[0]
    torch.testing.assert_close(saved, embedded, atol=1.01 / 255, rtol=0)


def test_a_kept_latent_decodes_to_the_same_picture(tmp_path: Path) -> None:
    assert generate("tiny:flux", tmp_path / "direct.png") == 0
    assert generate("tiny:flux", tmp_path / "latent.safetensors") == 0
    assert read_latent(tmp_path / "latent.safetensors")[0].ndim == 4
    command = ["decode", "--model", "tiny:flux", "--latents", str(tmp_path / "latent.safetensors"), "--quiet"]
    options = ["--output", str(tmp_path / "decoded.png"), "--dtype", "float32", "--device", "cpu"]
    assert cli.main([*command, *options]) == 0
    difference = read_frames(tmp_path / "direct.png")[0] - read_frames(tmp_path / "decoded.png")[0]
    assert difference.abs().max() <= 1.5 / 255


def test_a_batch_is_numbered_and_each_has_its_own_seed(tmp_path: Path) -> None:
    assert generate("tiny:flux", tmp_path / "out.png", "--batch", "2", "--seed", "5") == 0
    assert generate("tiny:flux", tmp_path / "second.png", "--seed", "6") == 0
    assert not torch.equal(read_frames(tmp_path / "out_0.png")[0], read_frames(tmp_path / "out_1.png")[0])
    difference = read_frames(tmp_path / "out_1.png")[0] - read_frames(tmp_path / "second.png")[0]
    assert difference.abs().max() <= 1.5 / 255


def test_video_goes_into_a_folder_of_png(tmp_path: Path) -> None:
    assert generate("tiny:wan22-t2v", tmp_path / "frames", "--num-frames", "5") == 0
    assert len(list((tmp_path / "frames").glob("frame_*.png"))) == 5


def test_the_report_is_printed_unless_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny:flux", "--prompt", "x", "--output", str(tmp_path / "out.png"), *FAST[:-1]]
    assert cli.main(["generate", *arguments]) == 0
    assert "attention" in capsys.readouterr().out
    assert cli.main(["generate", *arguments, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_cancelling_leaves_no_file_and_says_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastdiffusers.callbacks import Callbacks, Progress

    def interrupt(self: object) -> Callbacks:
        def stop(progress: Progress) -> None:
            if progress.stage == "denoise" and progress.done == 1:
                raise KeyboardInterrupt

        return Callbacks(on_progress=stop)

    monkeypatch.setattr("fastdiffusers.commands.terminal.TerminalProgress.__enter__", interrupt)
    assert generate("tiny:flux", tmp_path / "out.png") == 130
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "fastdiffusers generate: cancelled\n"
    monkeypatch.undo()
    assert generate("tiny:flux", tmp_path / "out.png") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_at_a_terminal_ends_a_run_with_130(tmp_path: Path) -> None:
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # a new one is 0 columns wide
    command = [sys.executable, "-m", "fastdiffusers", "generate", "--model", "tiny:flux", "--prompt", "a fox"]
    command += ["--output", str(tmp_path / "out.png"), *FAST[:-1], "--steps", "1000"]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        while b"denoise" not in shown:  # ends at the latest when the process does: reading then raises
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # Linux reports the other end's closing as an error
            pass
        assert process.wait(60) == 130
    os.close(ours)
    assert shown.rstrip().endswith(b"fastdiffusers generate: cancelled")
    assert list(tmp_path.iterdir()) == []


class Broken:
    """Models that must be refused, made on demand from one good tiny folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def good(self) -> Path:
        return tiny.save("flux", self.folder / "model")

    def missing(self) -> str:
        return str(self.folder / "nowhere" / "model")

    def without_index(self) -> str:
        (self.good() / "model_index.json").unlink()
        return str(self.folder / "model")

    def half_downloaded(self) -> str:
        next((self.good() / "transformer").glob("*.safetensors")).unlink()
        return str(self.folder / "model")

    def corrupt(self) -> str:
        weights = next((self.good() / "transformer").glob("*.safetensors"))
        weights.write_bytes(b"\xff" * 1000)
        return str(self.folder / "model")

    def pickled(self) -> str:
        path = self.folder / "model.ckpt"
        path.write_bytes(b"\x80\x04")
        return str(path)

    def pickled_weights(self) -> str:
        weights = next((self.good() / "transformer").glob("*.safetensors"))
        weights.rename(weights.with_suffix(".bin"))
        return str(self.folder / "model")


@pytest.mark.parametrize(
    "kind", ["missing", "without_index", "half_downloaded", "corrupt", "pickled", "pickled_weights"]
)
def test_a_bad_model_is_one_clear_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").mkdir()
    model = getattr(Broken(tmp_path / "models"), kind)()
    output = tmp_path / "out.png"
    assert generate(model, output) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "model" in err
    assert not output.exists()


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        ("tiny:flux", ["--width", "0"], "width = 0"),
        ("tiny:flux", ["--width", "99999"], "width = 99999"),
        ("tiny:flux", ["--height", "-64"], "height = -64"),
        ("tiny:wan22-t2v", ["--num-frames", "1000000"], "num-frames = 1000000"),
        ("tiny:flux", ["--scheduler", "NoSuchScheduler"], "scheduler = 'NoSuchScheduler'"),
        ("tiny:flux", ["--scheduler", "DDIMScheduler"], "scheduler = 'DDIMScheduler'"),
        ("tiny:flux", ["--steps", "0"], "steps = 0"),
        ("tiny:flux", ["--seed", "-1"], "seed = -1"),
        ("tiny:flux", ["--image", "nowhere.png"], "image = 'nowhere.png'"),
        ("tiny:wan22-t2v", ["--image", "{picture}"], "image"),
        ("tiny:wan22-i2v", [], "image"),
        ("tiny:nothing", [], "tiny"),
        ("tiny:flux", ["--device", "toaster"], "device = 'toaster'"),
        ("tiny:flux", ["--quantization", "uint1"], "quantization = 'uint1'"),
        ("tiny:flux", ["--tile-size", "8"], "tile-size = 8"),
        (
            "tiny:flux",
            ["--vae-tiling", "off", "--tile-size", "64"],
            "--tile-size = 64: --vae-tiling is off, so it would",
        ),
        ("tiny:flux", ["--vae-tiling", "off", "--tile-overlap", "8"], "Leave it out, or add --vae-tiling on."),
        (
            "tiny:flux",
            ["--torch-compile", "off", "--compile-scope", "model"],
            "--compile-scope = 'model': --torch-comp",
        ),
        (
            "tiny:flux",
            ["--torch-compile", "off", "--no-memory-check"],
            "--no-memory-check = True: --torch-compile is off",
        ),
        ("tiny:flux", ["--lora", "nowhere.safetensors"], "nowhere.safetensors"),
        ("tiny:flux", ["--lora", "a.safetensors", "strong"], "lora strength = 'strong'"),
        ("tiny:flux", ["--lora", "a.safetensors", "1", "both", "b.safetensors"], "lora = "),
        ("tiny:flux", ["--report", "nowhere/report.json"], "report = 'nowhere/report.json'"),
    ],
)
def test_a_bad_option_is_one_clear_line(
    model: str, options: list[str], named: str, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / ("out.mp4" if "wan22" in model else "out.png")
    options = [option.replace("{picture}", str(picture)) for option in options]
    assert generate(model, output, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert named in err
    assert sorted(tmp_path.iterdir()) == [picture]


@pytest.mark.parametrize("name", ["missing/out.png", "out.mp4", "out.gif"])
def test_a_bad_output_is_refused_before_anything_runs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("tiny:flux", tmp_path / name) == 2
    assert "output = " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that even root cannot write to")
def test_an_output_without_permission_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("tiny:flux", Path("/proc/out.png")) == 2
    assert "no file can be written there" in capsys.readouterr().err


def test_a_negative_prompt_that_the_model_has_not_is_reported_and_ignored(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--negative-prompt", "blurry", "--report", str(report)]
    assert generate("tiny:flux2-klein", tmp_path / "out.png", *options) == 0
    assert any("negative" in note for note in json.loads(report.read_text())["notes"])


def test_an_empty_prompt_and_a_size_that_is_nearly_right_make_a_picture(tmp_path: Path) -> None:
    output, report = tmp_path / "out.png", tmp_path / "report.json"
    options = ["--model", "tiny:flux", "--output", str(output), "--report", str(report), *FAST, "--width", "74"]
    assert cli.main(["generate", "--prompt", "", *options]) == 0
    assert read_frames(output)[0].shape[1:3] == (64, 80)
    assert "width: 80 instead of 74; flux takes multiples of 16." in json.loads(report.read_text())["notes"]


def test_a_latent_of_another_model_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"samples": torch.zeros(1, 5, 8, 8)}, tmp_path / "l.safetensors")
    command = ["decode", "--model", "tiny:flux", "--latents", str(tmp_path / "l.safetensors"), "--quiet"]
    assert cli.main([*command, "--output", str(tmp_path / "out.png"), "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "latent" in err
