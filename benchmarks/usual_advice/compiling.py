"""torch.compile by repeated blocks and as a whole, channels-last weights: a narrow transformer of FLUX.1's depth."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import torch

from .interleave import Way, measure

BLOCKS = {"num_layers": 19, "num_single_layers": 38}
"""As FLUX.1 has them; they are narrow here."""
TOKENS, TEXT, WIDTH = 256, 32, 64


def run(rounds: int, small: bool) -> dict[str, Any]:
    """Rows with warm times; the compiled ones also with the processor's seconds of their first call, g++ included."""
    import torch._inductor.config
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_inductor_cache

    plain = transformer()
    inputs = inputs_of(64 if small else TOKENS)

    def step(model: Any) -> Way:
        return lambda: model(**inputs, return_dict=False)[0]

    channels_last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    models = {"plain": plain, "channels_last": channels_last}
    first, graphs = {}, {}
    with fresh_inductor_cache(), torch.no_grad(), torch._inductor.config.patch(compile_threads=1):
        torch.compile(torch.nn.Linear(8, 8))(torch.randn(2, 8))  # what any first compilation pays
        for name, compile_model in () if small else WAYS_TO_COMPILE.items():
            models[name] = compile_model(copy.deepcopy(plain))
            before, known = processor_seconds(), counters["stats"]["unique_graphs"]
            step(models[name])()
            first[name] = round(processor_seconds() - before, 1)
            graphs[name] = counters["stats"]["unique_graphs"] - known
        rows = measure({name: step(model) for name, model in models.items()}, rounds, frozenset(first))
    rows = [{**row, "first_call_s": first.get(row["row"], ""), "graphs": graphs.get(row["row"], "")} for row in rows]
    result: dict[str, Any] = {"size": f"{sum(BLOCKS.values())} blocks, {TOKENS} + {TEXT} tokens", "rows": rows}
    if first:
        ratio = first["compiled, whole model"] / first["compiled, blocks"]
        result["compile_time"] = {"row": "blocks against whole", "times_faster": round(ratio, 2)}
    result["layout"] = {"row": "layout", **relaid(plain, channels_last)}
    return result


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def by_blocks(model: Any) -> Any:
    """Its repeated blocks compiled, each kind once."""
    model.compile_repeated_blocks(fullgraph=True)
    return model


WAYS_TO_COMPILE: dict[str, Callable[[Any], Any]] = {
    "compiled, blocks": by_blocks,
    "compiled, whole model": lambda model: torch.compile(model, fullgraph=True),
}


def transformer() -> Any:
    """A transformer with random weights."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model: Any = FluxTransformer2DModel(
        **BLOCKS,
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=64,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    return model.eval()


def inputs_of(tokens: int) -> dict[str, torch.Tensor]:
    """One step's inputs."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, tokens, 64, generator=generator),
        "encoder_hidden_states": torch.randn(1, TEXT, WIDTH, generator=generator),
        "pooled_projections": torch.randn(1, WIDTH, generator=generator),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def relaid(before: torch.nn.Module, after: torch.nn.Module) -> dict[str, int]:
    """How many weights `.to(memory_format=torch.channels_last)` laid out in another way."""
    pairs = list(zip(before.parameters(), after.parameters(), strict=True))
    return {"weights": len(pairs), "relaid": sum(a.stride() != b.stride() for a, b in pairs)}
