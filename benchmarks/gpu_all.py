"""Everything that needs a card, in one call: `python benchmarks/gpu_all.py [part ...]`.

For a machine that is rented by the minute and holds nothing of ours: it needs no installation (the pack is linked into
a temporary folder; wheels in `.whl/` are unpacked beside it: diffusers, and for Wan ftfy), runs part after part within
the time that is left, keeps every log and result in one folder, and prints a short table last. A part that fails or
runs out of time stops nothing; the benchmarks that take minutes are told how many they have, and store what they got
done. Where the minutes do not suffice, name one part per call, and with `--options` what it shall measure.

    tests         the tests in tests/gpu, and the kernels' own tests on the card
    kernels       each kernel against the card's copy and matrix rates
    vae_decode    the video VAE against a plain decoder of the same weights
    roofline      each stage of the video VAE and of FLUX.1's transformer against those rates, and the slowest kernels
    cold_start    the first picture, compiled for in a first and in a second process
    flux_dev_1024, z_image_1024, qwen_image_1024, wan22_i2v_480p, wan22_i2v
                  whole models: settings, step caches and fp8 against plain

Only the standard library is needed here, so that a missing package is a line in a log; without a card it says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KERNEL_TESTS = "tests/unit/kernels/interpreted"
MODELS = ("flux_dev_1024", "z_image_1024", "qwen_image_1024", "wan22_i2v_480p", "wan22_i2v")
PARTS = ("tests", "kernels", "vae_decode", "roofline", "cold_start", *MODELS)
BENCHMARKS = frozenset(PARTS[1:])
TIMED = frozenset((*MODELS, "vae_decode", "cold_start"))
GRACE_SECONDS = 5.0
BUILDING_SECONDS = 60.0
"""Of the time that is left, what is kept for imports and for building a model; the rest is a benchmark's own limit."""


@dataclass(frozen=True)
class Outcome:
    """What came of one command.

    Attributes:
        part: the part it belongs to.
        state: "passed", "failed (exit status)", "out of time" or "not run".
        seconds: it took. last: the last line it wrote.
    """

    part: str
    state: str
    seconds: float = 0.0
    last: str = ""

    @property
    def ok(self) -> bool:
        return self.state == "passed"


def commands(part: str, *, small: bool, seconds: float = 0.0) -> list[list[str]]:
    """The commands of a part, to be run in the repository's root.

    Args:
        seconds: that are left; 0 when that is no matter.
    """
    python = [sys.executable, "-m"]
    if part in BENCHMARKS:
        options = ["--small"] if small else []
        if seconds and part in TIMED:
            options += ["--time-limit", f"{max(seconds - BUILDING_SECONDS, seconds / 2):.0f}"]
        script = ["compare_settings", part] if part in MODELS else [part]
        return [[*python, f"fastdiffusers.benchmarks.{script[0]}", *script[1:], *options]]
    pytest = [*python, "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=short"]
    # The tests' common fixtures need diffusers; those of the kernels do without.
    alone = [] if importlib.util.find_spec("diffusers") else ["--confcutdir=tests/gpu"]
    return [[*pytest, f"--confcutdir={KERNEL_TESTS}", KERNEL_TESTS], [*pytest, *alone, "tests/gpu"]]


def prepare(folder: Path, wheels: Path) -> dict[str, str]:
    """An environment in which `fastdiffusers` can be imported from this checkout, with the wheels that came along."""
    packages = folder / "packages"
    packages.mkdir()
    (folder / "fastdiffusers").symlink_to(ROOT, target_is_directory=True)
    found = sorted(str(path) for path in wheels.glob("*.whl"))
    if found:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(packages)]
        subprocess.run([*pip, *found], check=True)
    path = os.pathsep.join([str(folder), str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Where installed packages cannot be written to, every process would compile them anew: 20 seconds of each.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **kept,
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "FASTDIFFUSERS_CACHE": str(folder / "cache"),
    }


def run(part: str, command: list[str], limit: float, log: Path, environment: dict[str, str]) -> Outcome:
    """Run one command for at most `limit` seconds; what it started ends with it."""
    if limit <= 0:
        return Outcome(part, "not run", last="no time was left")
    start = time.monotonic()
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
            state = "passed" if status == 0 else f"failed ({status})"
        except subprocess.TimeoutExpired:
            state = "out of time"
        finally:
            stop(process)
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return Outcome(part, state, time.monotonic() - start, lines[-1][:160] if lines else "")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it started, gently first: an interrupted benchmark stores what it has."""
    for gravity, patience in (
        (signal.SIGINT, 2 * GRACE_SECONDS),
        (signal.SIGTERM, GRACE_SECONDS),
        (signal.SIGKILL, None),
    ):
        try:
            os.killpg(process.pid, gravity)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def no_card() -> str:
    """Why nothing can be measured on a card here, in one line; "" where there is one."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA card here"


def _end(number: int, frame: object) -> None:
    """Asked to end: as an exception, so that what was started ends too."""
    raise SystemExit(128 + number)


def keep_results(folder: Path, since: float) -> list[Path]:
    """Copy the result files that were written since then."""
    new = [path for path in RESULTS.rglob("*") if path.is_file() and path.stat().st_mtime >= since]
    for path in new:
        target = folder / "results" / path.relative_to(RESULTS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return new


def main(arguments: list[str] | None = None) -> int:
    """0 when every part passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all when none is given")
    parser.add_argument("--limit", type=float, default=540, help="seconds for everything (default: 540)")
    parser.add_argument("--output", type=Path, help="folder for logs and results (default: $OUT, or ./gpu_output)")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl", help="folder of wheels to bring (default: .whl)")
    parser.add_argument("--options", default="", metavar="TEXT", help='for the benchmarks: "--compare fp8 --runs 3"')
    parser.add_argument("--small", action="store_true", help="tiny sizes: to try it without a card")
    options = parser.parse_args(arguments)
    parts = options.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    missing = "" if options.small else no_card()
    if missing:
        print(f"nothing to measure: {missing}. Try --small, which needs no card.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _end)
    output = options.output or Path(os.environ.get("OUT") or "gpu_output")
    output.mkdir(parents=True, exist_ok=True)
    started, deadline = time.time(), time.monotonic() + options.limit
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        environment = prepare(Path(folder), options.wheels)
        for part in parts:
            left = deadline - time.monotonic()
            for command in commands(part, small=options.small, seconds=max(left, 1.0)):
                left = deadline - time.monotonic()
                command += shlex.split(options.options) if part in BENCHMARKS else []
                outcomes.append(run(part, command, left, output / f"{part}.log", environment))
                keep_results(output, started)
    width = max(len(outcome.part) for outcome in outcomes)
    for outcome in outcomes:
        print(f"{outcome.part.ljust(width)}  {outcome.state.ljust(12)}  {outcome.seconds:6.1f} s  {outcome.last}")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
