"""What is usually advised, measured on a processor: `python . benchmarks.usual_advice [case ...]`.

Each case is small, runs its ways interleaved on one thread and keeps a data file of its own, `advice_CASE_...json`.
docs/claims.md says which sentence each of them belongs to. What only a card can show is not here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch

from ...commands.libraries import prepare_libraries
from ..common import store, table

CASES: Mapping[str, str] = {
    "attention": "torch's attention against its math kernel, scores written out and attention slicing",
    "compiling": "torch.compile by blocks and as a whole, channels_last weights, at FLUX.1's depth",
    "image_vae": "tiling, slicing and channels_last on the image VAE of FLUX.1",
    "operations": "single rewrites in the video VAE: pixel shuffle, concatenation, GroupNorm with SiLU",
    "clips": "the video VAE: memory by size of tiles and length of clips, time per frame",
    "stages": "the video VAE: where a plain decode has most memory in use",
    "switches": "quantize_dynamic, dynamo's limit and suppress_errors, TF32 by the environment",
    "vae_weights": "the video VAE with half-precision, int8 and fp8 weights, random and trained",
}
Run = Callable[[int, bool], dict[str, Any]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.usual_advice",
        description=(__doc__ or "").split("\n")[0],
        epilog="\n".join(f"{name}: {text}" for name, text in CASES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)}; all when none is given")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each way (default: 5)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, stored nowhere: does it run at all")
    parser.add_argument("--no-store", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args(arguments)
    if unknown := [case for case in args.cases if case not in CASES]:
        parser.error(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
    prepare_libraries(verbose=False)
    torch.set_num_threads(1)
    for case in args.cases or CASES:
        run: Run = import_module(f".{case}", __package__).run
        data = run(1 if args.small else args.rounds, args.small)
        print(f"{case}: {CASES[case]}")
        show(data)
        if not (args.small or args.no_store):
            print(f"stored in {store(f'advice_{case}', {'threads': 1, 'rounds': args.rounds, **data}, 'cpu')}")


def show(data: Mapping[str, Any]) -> None:
    """Lists of rows as tables, the rest as it is."""
    for name, value in data.items():
        if isinstance(value, list) and value:
            print(table(value))
        else:
            print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
