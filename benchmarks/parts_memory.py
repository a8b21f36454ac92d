"""Host memory that loading a model in parts takes: `python . benchmarks.parts_memory`.

A diffusion model of 2 GiB with random weights (Z-Image's layers, fewer of them) is written once in each precision, and
loaded in a process of its own, alone and as a pipeline with its text encoder (Qwen3-4B, two of its layers) and its
VAE. Components are loaded one after the other, so the largest one decides. What counts is the most memory that the
process ever held, pages of mapped files included, above what it held before the load and what the other components
take once they are loaded, against the bytes of the largest component as loaded; and the bytes that the load wrote to
disk.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..callbacks import Callbacks
from ..commands.libraries import declare_torchvision_ops
from ..commands.paths import find_comfyui
from ..fallback import Signals
from ..pipelines import tiny
from ..pipelines.loading.parts.header import read_part
from ..pipelines.loading.parts.models import zimage
from ..pipelines.loading.parts.plan import empty_network, locate_parts
from ..pipelines.loading.parts.read import read_component, read_parts
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
PIPELINES = {
    "pipeline, bf16 files, bf16": ("bf16", "bfloat16"),
    "pipeline, bf16 files, float32": ("bf16", "float32"),
    "pipeline, scaled fp8 model, bf16": ("scaled", "bfloat16"),
}
"""Row -> file of the diffusion model, dtype."""
TEXT_LAYERS = 2


def random_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """bf16 tensors, all cut out of the same random numbers."""
    block = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    return {
        key: block.repeat(-(-prod(shape) // len(block)))[: prod(shape)].view(shape).clone()
        for key, shape in shapes.items()
    }


def write_model(place: Path, heads: int = 30, layers: int = LAYERS) -> None:
    """The diffusion model in each precision.

    Args:
        heads: of its attention, 128 channels each.
    """
    from diffusers import ZImageTransformer2DModel

    sizes = {"dim": 128 * heads, "n_heads": heads, "n_kv_heads": heads, "n_layers": layers, "n_refiner_layers": 1}
    with torch.device("meta"):
        model: Any = ZImageTransformer2DModel(**sizes, axes_dims=[32, 48, 48])
    shapes: dict[str, list[int]] = {}
    for key, value in model.state_dict().items():
        name = key.replace("all_final_layer.2-1.", "final_layer.").replace("all_x_embedder.2-1.", "x_embedder.")
        name = name.replace(".to_out.0.", ".out.").replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")
        shape = list(value.shape)
        if ".to_q." in name:
            shape[0] *= 3
        if ".to_k." not in name and ".to_v." not in name:
            shapes[name.replace(".to_q.", ".qkv.")] = shape
    state = random_weights(shapes)
    save_file(state, place / "bf16.safetensors")
    matrices = [key for key, value in state.items() if value.ndim == 2 and key.endswith(".weight")]
    fp8 = {key: value.to(FP8) if key in matrices else value for key, value in state.items()}
    save_file(fp8, place / "fp8.safetensors")
    scales = {key.removesuffix("weight") + "scale_weight": torch.ones(()) for key in matrices}
    save_file({**fp8, **scales, "scaled_fp8": torch.zeros(0, dtype=FP8)}, place / "scaled.safetensors")


def write_companions(place: Path) -> None:
    """The text encoder and the VAE, under the names that are read."""
    components = zimage.FAMILIES[0].components
    text = components["text_encoder"]
    probe = {f"model.layers.{layer}.mlp.up_proj.weight": (1, 1) for layer in range(TEXT_LAYERS)}
    network = empty_network(text, text.config(probe))
    save_file(
        random_weights({f"model.{key}": list(value.shape) for key, value in network.state_dict().items()}),
        place / "text.safetensors",
    )
    vae = components["vae"]
    shapes = {key: list(value.shape) for key, value in empty_network(vae, vae.config({})).state_dict().items()}
    save_file(random_weights(shapes), place / "vae.safetensors")


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
    tiny.build("zimage")  # imports whatever a load does
    load = load_pipeline(case, place) if case in PIPELINES else load_component(case, place)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest size that the process had starts anew
    before, disk = status("VmRSS"), written()
    models = load()
    peak, after = status("VmHWM"), status("VmRSS")
    largest = max(sum(value.nbytes for value in (*model.parameters(), *model.buffers())) for model in models)
    others = max(0, after - before - largest)  # weights that stay in their mapped files take nothing
    return {
        "case": case,
        "component_mib": round(largest / 2**20),
        "other_resident_mib": round(others / 2**20),
        "peak_mib": round((peak - before) / 2**20),
        "peak_per_component": round((peak - before - others) / largest, 3),
        "written_mib": round((written() - disk) / 2**20, 1),
    }


def load_component(case: str, place: Path) -> Callable[[], list[Any]]:
    """What loads the diffusion model alone."""
    file, dtype, keep_fp8 = CASES[case]
    component = zimage.FAMILIES[0].components["transformer"]
    part = read_part(place / f"{file}.safetensors", "diffusion_model")
    config = component.config(part.shapes)
    empty_network(component, config)
    return lambda: [read_component(component, part, config, getattr(torch, dtype), keep_fp8)]


def load_pipeline(case: str, place: Path) -> Callable[[], list[Any]]:
    """What loads the pipeline. Its tokenizer is ComfyUI's."""
    file, dtype = PIPELINES[case]
    model, text, vae = (str(place / f"{name}.safetensors") for name in (file, "text", "vae"))
    parts, _ = locate_parts(model, [text], vae)

    def load() -> list[Any]:
        pipeline, _ = read_parts(parts, str(find_comfyui() or ""), getattr(torch, dtype), Signals(Callbacks()))
        return [component for component in pipeline.components.values() if isinstance(component, torch.nn.Module)]

    return load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=(*CASES, *PIPELINES), action="append", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    declare_torchvision_ops()
    for case in args.case or ():
        print(json.dumps(measure(case, args.place)))
    if args.case:
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_model(place)
        write_companions(place)
        rows = []
        for case in (*CASES, *PIPELINES):
            command = [sys.executable, str(ROOT), "benchmarks.parts_memory", "--case", case, "--place", str(place)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(table(rows))
    print(store("parts_memory", {"rows": rows}, "cpu"))


if __name__ == "__main__":
    main()
