"""How near each stage comes to what the card can do: `python . benchmarks.roofline`.

The video VAE's decoder, in a steady slice of a clip of 1248x720, and FLUX.1-dev's transformer at 1024x1024, both in
full size with random weights, both as they run by default. A row gives a stage's time, its share of the whole, its
arithmetic, the bytes that have to be moved at the least, and both as shares of the ceilings that `kernels.py` measures:
a stage that is near neither has something to gain. Attention alone is part of the blocks' rows, and timed by itself.

With it goes the list of the kernels that take the most time; on a card also of the compiled transformer's.
On a processor, or with --small, sizes are tiny: to try the script, not to measure anything; nothing is stored.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..commands.libraries import prepare_libraries
from ..comparison.architectures import FLUX_DEV, NOTE, build
from ..comparison.choices import settings_of
from ..comparison.presets import MODEL_BENCHMARKS
from ..fallback import describe
from ..optimizations.apply import active, apply
from ..optimizations.settings import OptimizationSettings
from ..pipelines.generate import run_loaded
from ..pipelines.loading.devices import default_dtype
from ..pipelines.loading.loader import resolve_dtype
from ..pipelines.types import LoadedPipeline, PipelineHandle, SampleRequest
from ..vae import VaeConfig, VideoVAE, from_state_dict
from ..vae.checkpoint import choose_device, choose_dtype
from ..vae.kernels.conv_choice import rules
from ..vae.network.execution import CarriedFrames, Execution, Layout
from ..vae.planner import TAILS
from .common import store, table
from .kernels import Bench, Ceilings, measure_ceilings
from .stages import ALL, AttentionCalls, Stage, Stages, measure_stages
from .top_kernels import top_kernels

LATENT, SMALL_LATENT = (90, 156), (4, 4)
"""Height and width of the video VAE's latents: an eighth of the pixels."""
SMALL_VAE = VaeConfig(block_out_channels=(32, 32, 64, 64))


@dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
        name, dtype: for the table.
        run: one run, the same every time; it has been run before.
        stages: its parts.
        around: what is in force while it runs.
        pipeline: what it is part of, where it can be compiled.
    """

    name: str
    dtype: str
    run: Callable[[], object]
    stages: Stages
    around: Callable[[], AbstractContextManager[object]] = torch.no_grad
    pipeline: LoadedPipeline | None = None


def video_vae(device: torch.device, small: bool) -> Network:
    """The decoder in the middle of a clip: one latent frame, frames carried from the slice before and to the next."""
    dtype = choose_dtype("auto", device)
    with torch.random.fork_rng(), torch.device(device), default_dtype(dtype):
        torch.manual_seed(0)
        weights = VideoVAE(SMALL_VAE if small else VaeConfig()).state_dict()
        height, width = SMALL_LATENT if small else LATENT
        z = torch.randn(1, 16, 3, height, width)
    vae = from_state_dict(weights, dtype=dtype, device=device)
    run = Execution(CarriedFrames(), carry=True, layout=Layout(tail_frames=TAILS[0]))
    steady = partial(vae.decode_slice, z[:, :, :1], run)
    with as_decoded():
        vae.decode_slice(z[:, :, :2], run)  # the beginning of a clip is another case
        steady()
        steady()
    decoder = vae.decoder
    stages: dict[str, list[nn.Module]] = {"conv_in": [decoder.conv_in], "mid block": [decoder.mid_block]}
    blocks: Any = decoder.up_blocks
    for level, block in enumerate(blocks):
        stages[f"up block {level}, resnets"] = list(block.resnets)
        stages[f"up block {level}, upsampler"] = list(block.upsamplers)
    stages = {name: modules for name, modules in stages.items() if modules} | {"conv_out": [decoder.conv_out]}
    name = f"video VAE decoder, steady slice of {8 * width}x{8 * height}"
    return Network(name, str(dtype).removeprefix("torch."), steady, stages, as_decoded)


@contextmanager
def as_decoded() -> Iterator[None]:
    """What is in force during a decode of the video VAE."""
    with torch.inference_mode(), rules(alternatives=True):
        yield


def flux(device: torch.device, small: bool) -> Network:
    """The transformer with the inputs of a first step, by kinds of blocks."""
    dtype = resolve_dtype("auto", str(device))
    loaded = build(FLUX_DEV, str(device), dtype, full=not small)
    transformer: nn.Module = loaded.pipeline.transformer
    inputs: list[tuple[Any, Any]] = []

    def note(_: nn.Module, arguments: Any, options: Any) -> None:
        inputs.append((arguments, options))

    hook = transformer.register_forward_pre_hook(note, with_kwargs=True)
    flux, prompt = MODEL_BENCHMARKS["flux_dev_1024"], SampleRequest("a lighthouse in the fog")
    request = replace(flux.small(prompt) if small else flux.apply(prompt), steps=1, decode=False)
    run_loaded(loaded, PipelineHandle(loaded.key, memory_mode="gpu"), request, OptimizationSettings.plain())
    hook.remove()
    arguments, options = inputs[0]
    kinds = {
        name.replace("_", " "): list(child)
        for name, child in transformer.named_children()
        if isinstance(child, nn.ModuleList)
    }
    name = f"FLUX.1-dev transformer, {request.width}x{request.height}"
    return Network(name, dtype, partial(transformer, *arguments, **options), kinds, pipeline=loaded)


NETWORKS = {"vae": video_vae, "flux": flux}


def measure(network: Network, bench: Bench, ceilings: Ceilings) -> dict[str, Any]:
    """The stages' rows and the slowest kernels; compiled, too, where the network can be and there is a card."""
    with network.around():
        stages = measure_stages(network.run, network.stages, bench.device, bench.runs)
        kernels = {"plain": top_kernels(network.run, bench.device)}
        stages += attention_alone(network.run, bench)
        whole = next(stage for stage in stages if stage.name == ALL)
        problem = ""
        if network.pipeline is not None and bench.device.type == "cuda":
            try:
                seconds, kernels["compiled"] = compiled(network.pipeline, network.run, bench)
                stages.append(replace(whole, name=f"{ALL}, compiled", seconds=seconds))
            except Exception as error:  # noqa: BLE001 - what was measured before it is worth keeping
                problem = describe(error)
    rows = [row(stage, whole.seconds, ceilings) for stage in stages]
    return {"case": network.name, "dtype": network.dtype, "rows": rows, "kernels": kernels, "problem": problem}


def attention_alone(run: Callable[[], object], bench: Bench) -> list[Stage]:
    """PyTorch's attention on random tensors of the shapes that the run has, one row per shape."""
    with AttentionCalls() as calls:
        run()
    found = []
    for (query, key), count in calls.shapes.items():
        batch, heads, tokens, channels = query
        made = partial(torch.randn, dtype=calls.dtype, device=bench.device)
        # Tokens before heads in memory, as the models have them.
        q, k, v = (made(b, t, h, c).transpose(1, 2) for b, h, t, c in (query, key, key))
        seconds = bench.seconds(partial(F.scaled_dot_product_attention, q, k, v, enable_gqa=query[1] != key[1]))
        flops = 4 * batch * heads * tokens * key[2] * channels
        name = f"attention alone, {heads} heads of {channels}, {tokens} x {key[2]} tokens"
        found.append(Stage(name, count, count * seconds, count * flops, count * (2 * q.nbytes + 2 * k.nbytes)))
    return found


def compiled(loaded: LoadedPipeline, run: Callable[[], object], bench: Bench) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a run with compiled blocks, and its slowest kernels.

    Raises:
        RuntimeError: the blocks were not compiled.
    """
    settings = settings_of("compile", OptimizationSettings.plain(memory_mode="gpu"))
    report = apply(loaded.pipeline, settings, device=bench.device)
    with active(loaded.pipeline, settings, report):
        seconds, kernels = bench.seconds(run), top_kernels(run, bench.device)
    if report["torch_compile"].applied == "off":
        raise RuntimeError(report["torch_compile"].reason)
    return seconds, kernels


def row(stage: Stage, whole: float, ceilings: Ceilings) -> dict[str, Any]:
    """A stage as data: milliseconds, TFLOP, GB, rates, and shares of the whole time and of the ceilings."""
    seconds = max(stage.seconds, 1e-9)
    arithmetic, traffic = stage.flops / seconds, stage.bytes / seconds
    return {
        "stage": stage.name,
        "calls": stage.calls or "",
        "ms": stage.seconds * 1e3,
        "share_of_time": round(stage.seconds / whole, 4),
        "tflop": stage.flops / 1e12,
        "least_gb": stage.bytes / 1e9 or "",
        "tflop_per_s": arithmetic / 1e12,
        "tb_per_s": traffic / 1e12 or "",
        "of_matmul": round(arithmetic / ceilings.matmul, 4),
        "of_copy": round(traffic / ceilings.copy, 4) or "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=10, help="counted runs of each network (default: 10)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--small", action="store_true", help="tiny sizes, stored nowhere; always so on a processor")
    args = parser.parse_args()
    prepare_libraries(verbose=False)
    device = choose_device(args.device)
    small = args.small or device.type == "cpu"
    if device.type == "cpu":
        torch.set_num_threads(1)
    bench = Bench(device, args.runs)
    with torch.inference_mode():
        ceilings = measure_ceilings(bench, small)
    cases = []
    for name in args.networks:
        network = NETWORKS[name](device, small)
        cases.append(measure(network, bench, ceilings))
        del network  # before the next one is built
        print(f"{cases[-1]['case']}, {cases[-1]['dtype']}\n{table(cases[-1]['rows'])}", flush=True)
        for form, kernels in cases[-1]["kernels"].items():
            print(f"{form}: the slowest kernels\n{table(kernels[:8])}", flush=True)
        if cases[-1]["problem"]:
            print(f"compiled: {cases[-1]['problem']}")
    peaks = {"copy_tb_per_s": ceilings.copy / 1e12, "matmul_tflop_per_s": ceilings.matmul / 1e12}
    print(peaks)
    data = {"note": NOTE, "ceilings": peaks, "runs": args.runs, "cases": cases}
    print("tiny sizes: nothing was stored" if small else f"stored: {store('roofline', data, str(device))}")


if __name__ == "__main__":
    main()
