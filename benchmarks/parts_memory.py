"""Host memory that loading a model in parts takes: `python . benchmarks.parts_memory`.

A diffusion model of 2 GiB with random weights (Z-Image's layers, fewer of them) is written once in each precision, and
loaded in a process of its own. Components are loaded one after the other, so the largest one decides. What counts is
the most memory that the process ever held, pages of mapped files included, above what it held before the load,
against the bytes of the largest component as loaded; and the bytes that the load wrote to disk.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..commands.libraries import declare_torchvision_ops
from ..pipelines import tiny
from ..pipelines.loading.parts import zimage
from ..pipelines.loading.parts.header import read_part
from ..pipelines.loading.parts.plan import empty_network
from ..pipelines.loading.parts.read import read_component
from .common import store, table

ROOT = Path(__file__).resolve().parents[1]
FP8 = torch.float8_e4m3fn
LAYERS = 5
CASES = {
    "bf16 file, bf16": ("bf16", "bfloat16", False),
    "bf16 file, float32": ("bf16", "float32", False),
    "fp8 file, bf16": ("fp8", "bfloat16", False),
    "fp8 file, kept": ("fp8", "bfloat16", True),
    "scaled fp8 file, bf16": ("scaled", "bfloat16", False),
}
"""Row -> file, dtype, whether fp8 is kept."""


def write_model(place: Path) -> None:
    """The diffusion model in each precision."""
    from diffusers import ZImageTransformer2DModel

    sizes = {"dim": 3840, "n_heads": 30, "n_kv_heads": 30, "n_layers": LAYERS, "n_refiner_layers": 1}
    with torch.device("meta"):
        model: Any = ZImageTransformer2DModel(**sizes, axes_dims=[32, 48, 48])
    block = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    state: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        name = key.replace("all_final_layer.2-1.", "final_layer.").replace("all_x_embedder.2-1.", "x_embedder.")
        name = name.replace(".to_out.0.", ".out.").replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")
        shape = list(value.shape)
        if ".to_q." in name:
            shape[0] *= 3
        if ".to_k." not in name and ".to_v." not in name:
            state[name.replace(".to_q.", ".qkv.")] = (
                block.repeat(-(-prod(shape) // len(block)))[: prod(shape)].view(shape).clone()
            )
    save_file(state, place / "bf16.safetensors")
    matrices = [key for key, value in state.items() if value.ndim == 2 and key.endswith(".weight")]
    fp8 = {key: value.to(FP8) if key in matrices else value for key, value in state.items()}
    save_file(fp8, place / "fp8.safetensors")
    scales = {key.removesuffix("weight") + "scale_weight": torch.ones(()) for key in matrices}
    save_file({**fp8, **scales, "scaled_fp8": torch.zeros(0, dtype=FP8)}, place / "scaled.safetensors")


def status(name: str) -> int:
    """A size that the kernel keeps of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def written() -> int:
    return int(
        next(line for line in Path("/proc/self/io").read_text().splitlines() if "write_bytes" in line).split()[1]
    )


def measure(case: str, place: Path) -> dict[str, Any]:
    """Load one row in this process: bytes above the baseline."""
    file, dtype, keep_fp8 = CASES[case]
    component = zimage.FAMILIES[0].components["transformer"]
    tiny.build("zimage")  # imports whatever a load does
    part = read_part(place / f"{file}.safetensors", "diffusion_model")
    config = component.config(part.shapes)
    empty_network(component, config)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest size that the process had starts anew
    before, disk = status("VmRSS"), written()
    model = read_component(component, part, config, getattr(torch, dtype), keep_fp8)
    peak = status("VmHWM")
    size = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    return {
        "case": case,
        "component_mib": round(size / 2**20),
        "peak_mib": round((peak - before) / 2**20),
        "peak_per_component": round((peak - before) / size, 3),
        "written_mib": round((written() - disk) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    declare_torchvision_ops()
    if args.case:
        print(json.dumps(measure(args.case, args.place)))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_model(place)
        rows = []
        for case in CASES:
            command = [sys.executable, str(ROOT), "benchmarks.parts_memory", "--case", case, "--place", str(place)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(table(rows))
    print(store("parts_memory", {"rows": rows}, "cpu"))


if __name__ == "__main__":
    main()
