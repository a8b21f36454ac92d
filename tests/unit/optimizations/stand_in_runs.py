"""Run by `test_attention_stand_ins.py` in a process that finds the stand-in packages: prints one JSON object.

`python stand_in_runs.py families FAMILY ...`, `python stand_in_runs.py faults` or
`python stand_in_runs.py commands FOLDER FAULT ARGUMENT ...`: the command line with each of the faults ("a,b"; "" is
none) and `--attention xformers`, after each with `sdpa`, in one process. Writes FAULT.png, FAULT.json and sdpa.png.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for edit_pictures

import attention_stand_in as stand_in
import torch
from edit_pictures import make_edit_pictures_small

from fastdiffusers.commands.libraries import prepare_libraries

prepare_libraries(verbose=False)
torch.set_num_threads(1)

from fastdiffusers import cli  # noqa: E402 - after the libraries are ready
from fastdiffusers.callbacks import Callbacks  # noqa: E402
from fastdiffusers.optimizations import attention_backends  # noqa: E402
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings  # noqa: E402
from fastdiffusers.pipelines.generate import generate  # noqa: E402
from fastdiffusers.pipelines.loading import loader  # noqa: E402
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest, SampleResult  # noqa: E402

make_edit_pictures_small(setattr)

CHOICES = ("xformers", "flash", "sage")
NEGATIVE = "a dog and a fish, blurred, with far more words than the prompt has"
PLAIN = OptimizationSettings.plain()


def run(family: str, steps: int = 2, callbacks: Callbacks | None = None, **settings: Any) -> SampleResult:
    handle = PipelineHandle(loader.resolve(f"tiny:{family}", dtype="float32", device="cpu"))
    request = SampleRequest(prompt="a cat", steps=steps, width=64, height=64, seed=3)
    values: dict[str, Any] = {}
    if family in ("flux-kontext", "qwenimage-edit", "wan22-i2v", "ltx2-i2v"):
        values["images"] = (torch.full((64, 64, 3), 0.4),)
    if family in ("sdxl", "sd3", "zimage", "qwenimage"):
        values |= {"negative_prompt": NEGATIVE, "guidance": 3.0}
    if family.startswith(("wan", "ltx2")):
        values["num_frames"] = 9
    request = SampleRequest(**{**vars(request), **values})
    return generate(handle, request, OptimizationSettings(**{**vars(PLAIN), **settings}), callbacks or Callbacks())


def told(result: SampleResult) -> dict[str, Any]:
    record = result.report["attention"]
    return {"applied": record.applied, "reason": record.reason, "failed": record.failed}


def difference(one: SampleResult, other: SampleResult) -> float:
    assert one.frames is not None
    assert other.frames is not None
    return float((one.frames - other.frames).abs().max())


def families(names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"available": attention_backends.available("cpu", torch.float32)}
    for family in names:
        plain = run(family)
        rows = {}
        for choice in CHOICES:
            stand_in.calls.clear()
            result = run(family, attention=choice)
            packages = sorted({package for package, _ in stand_in.calls})
            rows[choice] = {**told(result), "difference": difference(result, plain), "packages": packages}
        rows["rounding"] = {"difference": difference(run(family, attention="math"), plain)}
        rows["afterwards"] = {"difference": difference(run(family), plain)}
        found[family] = rows
    return found


def faults() -> dict[str, Any]:
    """Each kind of fault at the first call and in the third of four steps, on a model with masks and one without."""
    found: dict[str, Any] = {}
    for family in ("flux", "zimage", "sdxl"):
        plain = run(family, 4)
        stand_in.calls.clear()
        run(family, 4, attention="xformers")
        total = len(stand_in.calls)
        run(family)  # lets go of the backend
        for kind in ("raise", "nan"):
            for where, number in (("first", 1), ("third step", total // 2 + 2)):
                stand_in.calls.clear()
                stand_in.FAULT = (kind, number)
                result = run(family, 4, attention="xformers")
                stand_in.FAULT = None
                run(family)
                again = run(family, 4, attention="xformers")
                run(family)
                found[f"{family}, {kind} at {where}"] = {
                    **told(result),
                    "difference": difference(result, plain),
                    "afterwards": told(again),
                    "difference afterwards": difference(again, plain),
                }
    stand_in.calls.clear()
    stand_in.FAULT = ("memory", 3)
    try:
        run("flux", attention="xformers")
    except torch.OutOfMemoryError as error:
        found["memory"] = str(error)
    stand_in.FAULT = None
    plain = run("flux")
    eager = CompileSettings(backend="eager")
    compiled = run("flux", attention="xformers", torch_compile="on", compile=eager)
    found["compiled"] = {**told(compiled), "difference": difference(compiled, plain)}
    found["compiled"]["compile"] = compiled.report["torch_compile"].applied
    return found


def commands(folder: str, faults: str, *arguments: str) -> dict[str, int]:
    """The exit codes, by fault and "sdpa". What the command prints goes to standard error."""
    codes = {}
    plain = [*arguments, "--attention", "sdpa", "--output", str(Path(folder, "sdpa.png"))]
    with contextlib.redirect_stdout(sys.stderr):
        for fault in faults.split(","):
            stand_in.calls.clear()
            stand_in.FAULT = stand_in.parse(fault)
            name = Path(folder, fault or "none")
            results = ["--report", f"{name}.json", "--output", f"{name}.png"]
            codes[fault] = cli.main([*arguments, "--attention", "xformers", *results])
            stand_in.FAULT = None
            codes["sdpa"] = codes.get("sdpa", 0) or cli.main(plain)  # also lets go of a backend that failed
    return codes


if __name__ == "__main__":
    what, *names = sys.argv[1:]
    doing = {"families": lambda: families(names), "faults": faults, "commands": lambda: commands(*names)}
    print(json.dumps(doing[what]()))
