"""The pack's VAE nodes against ComfyUI's own, same VAE objects: `COMFYUI_PATH=folder python . benchmarks.core_nodes`.

VAE objects of ComfyUI's, full-size with random weights in float32 on a processor: ComfyUI chooses each network by the
names and shapes of a file's tensors, so it is given those that it looks at, and the network that it makes is filled.
VAE Decode (Fast) runs beside VAE Decode, its tiles beside VAE Decode (Tiled) with the same size and overlap, and the
encode nodes likewise, each pair in turns, and each in turn begins, since the second of two runs is the slower one; what
counts is the median of the ratios within a round. Largest difference is that between the two results, in pixels of 0..1
or in the latent's std. Two ways to blend tiles differ at seams, which random weights show most.

Run it with ComfyUI's own Python, or with one that has its requirements.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..callbacks import SILENT
from ..commands.libraries import declare_torchvision_ops, hush_libraries
from ..commands.paths import find_comfyui
from .common import store, table

Size = tuple[int, ...]
TILED_ROUNDS = 2
"""At most, of tiles: they take several times as long as the whole."""
SMALL = {2: (2, 2), 3: (1, 2, 2)}


@dataclass(frozen=True)
class Kind:
    """A kind of VAE.

    Attributes:
        tensors: those that ComfyUI knows it by: names and shapes.
        latent: (frames,) height, width of what is decoded; what is encoded has the size that it decodes to.
        tile: pixels; neighbours share a quarter.
        module: in ComfyUI's folder, which older versions may lack.
    """

    tensors: dict[str, Size]
    latent: Size
    tile: int = 64
    module: str = "comfy/sd.py"


def of_pictures(channels: int, **more: Size) -> dict[str, Size]:
    """The tensors of the autoencoder that Stable Diffusion began with."""
    quantizer = {"post_quant_conv.weight": (channels, channels, 1, 1)} if channels != 16 else {}
    down = {"encoder.down.2.downsample.conv.weight": (512, 512, 3, 3)}
    return {"decoder.conv_in.weight": (512, channels, 3, 3), **down, **quantizer, **more}


KINDS: dict[str, Kind] = {
    "SD 1.5, SDXL": Kind(of_pictures(4), (24, 24), 128),
    "FLUX.1": Kind(of_pictures(16), (24, 24), 128),
    "FLUX.2": Kind(of_pictures(32) | {"bn.running_mean": (128,)}, (12, 12), 128),
    "Wan 2.1, Qwen-Image": Kind(
        {
            "decoder.middle.0.residual.0.gamma": (384, 1, 1, 1),
            "decoder.head.0.gamma": (96, 1, 1, 1),
            "decoder.head.2.weight": (3, 96, 3, 3, 3),
            "encoder.conv1.weight": (96, 3, 3, 3, 3),
        },
        (2, 12, 12),
    ),
    "Wan 2.2 5B": Kind(
        {
            "decoder.middle.0.residual.0.gamma": (1024, 1, 1, 1),
            "decoder.upsamples.0.upsamples.0.residual.2.weight": (1024, 1024, 3, 3, 3),
        },
        (2, 6, 6),
    ),
    "LTX": Kind({"decoder.up_blocks.0.res_blocks.0.conv1.conv.weight": (1024, 1024, 3, 3, 3)}, (2, 6, 6), 128),
    "HunyuanVideo": Kind(
        {"decoder.conv_in.conv.weight": (512, 16, 3, 3, 3), "post_quant_conv.weight": (16, 16, 1, 1, 1)}, (2, 12, 12)
    ),
    "HunyuanVideo 1.5": Kind({"decoder.conv_in.conv.weight": (1024, 32, 3, 3, 3)}, (2, 6, 6)),
    "SeedVR2": Kind(
        {"decoder.up_blocks.2.upsamplers.0.upscale_conv.weight": (1024, 256, 1, 1, 1)},
        (2, 12, 12),
        module="comfy/ldm/seedvr/vae.py",
    ),
    "MiniMax-H3": Kind(
        {"decoder.transformer_blocks.0.scale1": (2048,), "encoder.down.5.block.0.conv1.weight": (1024, 512, 3, 3, 3)},
        (2, 6, 6),
        module="comfy/ldm/minimax/vae.py",
    ),
}


@dataclass
class Case:
    """One of the pack's nodes beside ComfyUI's. Attributes: own, theirs: give their results; scale: of a difference."""

    name: str
    own: Callable[[], torch.Tensor]
    theirs: Callable[[], torch.Tensor]
    scale: Callable[[torch.Tensor], float] = lambda _: 1.0
    seconds: list[tuple[float, float]] = field(default_factory=list)
    difference: float = 0.0


def import_comfyui(folder: Path) -> None:
    """Import ComfyUI's modules into this process, on the processor."""
    declare_torchvision_ops()
    sys.path.insert(0, str(folder))
    importlib.import_module("comfy.options").enable_args_parsing(False)
    importlib.import_module("comfy.cli_args").args.cpu = True
    # In main.py's order: `utils` first, before another package's module of that name can take its place.
    for name in ("utils.extra_config", "comfy.model_management", "comfy.model_patcher", "comfy.sd", "nodes"):
        importlib.import_module(name)


@torch.inference_mode(mode=False)
def made(kind: Kind) -> Any:
    """ComfyUI's VAE object around the network that it makes for a kind, with random weights."""
    core = importlib.import_module("comfy.sd")
    file = {name: torch.zeros(shape) for name, shape in kind.tensors.items()}
    vae = core.VAE(sd=file, dtype=torch.float32)
    torch.manual_seed(0)
    for name, tensor in vae.first_stage_model.state_dict().items():  # shares memory; ComfyUI leaves it unset
        if not tensor.is_floating_point():
            continue
        last = name.rsplit(".", 1)[-1]
        if tensor.ndim > 1 and last != "gamma":
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            tensor.fill_(1.0 if last in ("weight", "gamma", "running_var") or "std" in last else 0.0)
    return vae


def cases(vae: Any, size: Size, tile: int) -> Iterator[Case]:
    """Decode and encode, whole and in tiles."""
    from ..nodes import vae_engines
    from ..nodes.vae_choices import VaeChoices

    core = sys.modules["nodes"]
    clip = vae.latent_dim == 3
    samples = torch.randn((1, vae.latent_channels, *size))
    pixels = torch.rand_like(flat(core.VAEDecode().decode(vae, {"samples": samples})[0])[..., :3])
    overlap = tile // 4
    tiles = {"tile_size": tile, "overlap": overlap}
    times = {"temporal_size": 64, "temporal_overlap": 8} if clip else {}
    whole, tiled = VaeChoices(), VaeChoices(tiling="tiles", tile_size=tile, overlap=overlap)
    decode = lambda choices: flat(vae_engines.decode(vae, {"samples": samples}, choices, SILENT)[0])
    encode = lambda choices: vae_engines.encode(vae, pixels, choices, SILENT)[0]["samples"]
    std = lambda latent: float(latent.std())
    yield Case("decode", partial(decode, whole), lambda: flat(core.VAEDecode().decode(vae, {"samples": samples})[0]))
    yield Case(
        "decode in tiles",
        partial(decode, tiled),
        lambda: flat(core.VAEDecodeTiled().decode(vae, {"samples": samples}, **tiles, **times)[0]),
    )
    yield Case("encode", partial(encode, whole), lambda: core.VAEEncode().encode(vae, pixels)[0]["samples"], std)
    yield Case(
        "encode in tiles",
        partial(encode, tiled),
        lambda: core.VAEEncodeTiled().encode(vae, pixels, **tiles, **times)[0]["samples"],
        std,
    )


def flat(frames: torch.Tensor) -> torch.Tensor:
    """Frames [N, H, W, C] of pictures or clips."""
    return frames.flatten(0, 1) if frames.ndim == 5 else frames


def measure(case: Case, rounds: int) -> None:
    """Fill a case: one run each for the difference, then the rounds, in each of which the other begins."""
    torch.manual_seed(0)  # a decoder may add noise
    own = case.own()
    torch.manual_seed(0)
    theirs = case.theirs()
    if own.shape != theirs.shape:
        raise ValueError(f"{case.name}: {list(own.shape)} here, {list(theirs.shape)} by ComfyUI's node")
    case.difference = float((own - theirs).abs().max()) / case.scale(theirs)
    for index in range(rounds):
        pair = {}
        for run in (case.own, case.theirs) if index % 2 else (case.theirs, case.own):
            started = time.perf_counter()
            run()
            pair[run] = time.perf_counter() - started
        case.seconds.append((pair[case.own], pair[case.theirs]))


def row(case: Case) -> dict[str, Any]:
    """A measured case as data. The ratios are ComfyUI's time over ours: above 1, the pack's node is faster."""
    ratios = [theirs / own for own, theirs in case.seconds]
    return {
        "case": case.name,
        "seconds": round(statistics.median(own for own, _ in case.seconds), 3),
        "core_seconds": round(statistics.median(theirs for _, theirs in case.seconds), 3),
        "core_over_ours": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "largest": round(max(ratios), 3),
        "max_difference": float(f"{case.difference:.2e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", nargs="+", choices=KINDS, default=list(KINDS), help="which kinds")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--small", action="store_true", help="tiny latents, stored nowhere: does it run at all")
    parser.add_argument("--no-store", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    folder = find_comfyui()
    if folder is None:
        parser.error("no ComfyUI found: COMFYUI_PATH=folder names one")
    hush_libraries()
    logging.getLogger().setLevel(logging.ERROR)  # ComfyUI lists every tensor that a file lacks
    try:
        import_comfyui(folder)
    except ImportError as error:
        parser.error(f"{folder} cannot be imported: {error}. Run this with ComfyUI's own Python")
    torch.set_num_threads(args.threads)
    results = []
    for name in args.vae:
        kind = KINDS[name]
        if not (folder / kind.module).is_file():
            print(f"{name}: left out: this ComfyUI has no {kind.module}", flush=True)
            continue
        vae = made(kind)
        with torch.inference_mode():
            found = list(cases(vae, SMALL[len(kind.latent)] if args.small else kind.latent, kind.tile))
            for case in found:
                measure(case, min(args.rounds, TILED_ROUNDS) if "tiles" in case.name else args.rounds)
        rows = [row(case) for case in found]
        results.append({"vae": name, "latent": list(kind.latent), "rows": rows})
        print(f"{name}\n{table(rows)}", flush=True)
        if not (args.no_store or args.small):
            version = getattr(importlib.import_module("comfyui_version"), "__version__", "")
            facts = {"comfyui": version, "threads": args.threads, "rounds": args.rounds}
            print(f"stored in {store('core_nodes', {**facts, 'vaes': results}, 'cpu')}")


if __name__ == "__main__":
    main()
