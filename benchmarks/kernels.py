"""The kernels of the video VAE against the card's own ceilings: `python . benchmarks.kernels`.

First the ceilings: one large copy (bytes read and written) and one large bfloat16 matrix product, both on random data.
Then each operation at the sizes of a full decode: the textbook formulation, the eager twin, the fused kernels, and for
convolutions every way the pack may choose. A row gives the median time, what that is in TB/s (of the bytes that have
to be moved at the least) or TFLOP/s, and the share of the ceiling. What cannot run says why.

On a processor, or with --small, sizes are tiny: to try the script, not to measure anything; nothing is stored.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from ..optimizations.tuning.meters import stopwatch, synchronize
from .common import store, table
from .kernel_cases import Case, Run, all_cases

SETTLE_SECONDS = 0.05


@dataclass(frozen=True)
class Ceilings:
    """What the device can do at most. Attributes: copy: bytes/s, read and written; matmul: bfloat16 FLOP/s."""

    copy: float
    matmul: float


class Bench:
    """Times on one device."""

    def __init__(self, device: torch.device, runs: int) -> None:
        self.device = device
        self.runs = runs
        self._watch = stopwatch(device)

    def seconds(self, run: Run) -> float:
        """Median seconds of a run, after enough uncounted ones for clocks and caches to settle."""
        run()
        start = self._watch.mark()
        run()
        once = max(self._watch.between(start, self._watch.mark()), 1e-6)
        for _ in range(min(20, int(SETTLE_SECONDS / once))):
            run()
        marks = [self._watch.mark()]
        for _ in range(self.runs):
            run()
            marks.append(self._watch.mark())
        synchronize(self.device)
        return median(self._watch.between(start, end) for start, end in pairwise(marks))

    def row(self, case: Case, ceilings: Ceilings) -> dict[str, Any]:
        """The measured case, or why it could not be measured."""
        row: dict[str, Any] = {"operation": case.operation, "size": case.size, "way": case.way}
        blank = {"microseconds": None, "rate": "", "share_of_ceiling": None, "extra_bytes": None, "problem": ""}
        try:
            run = case.prepare()
            extra = self._extra_bytes(run)
            seconds = self.seconds(run)
        except torch.OutOfMemoryError:
            return row | blank | {"problem": "out of memory"}
        except Exception as error:  # noqa: BLE001 - a way that does not work is a finding, not the end of the table
            return row | blank | {"problem": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        finally:
            run = None  # type: ignore[assignment]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if case.flops:
            rate, share = f"{case.flops / seconds / 1e12:.1f} TFLOP/s", case.flops / seconds / ceilings.matmul
        else:
            rate, share = f"{case.bytes / seconds / 1e12:.3f} TB/s", case.bytes / seconds / ceilings.copy
        measured = {"microseconds": seconds * 1e6, "rate": rate, "share_of_ceiling": round(share, 4)}
        return row | blank | measured | {"extra_bytes": extra}

    def _extra_bytes(self, run: Run) -> int | None:
        """Most memory a run takes beside its inputs, its result included; None where the device does not tell."""
        if self.device.type != "cuda":
            return None
        run()
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def measure_ceilings(bench: Bench, small: bool) -> Ceilings:
    """The two numbers that everything is held against."""
    elements, edge = (1 << 20, 256) if small else (1 << 30, 8192)
    source = torch.empty(elements, dtype=torch.bfloat16, device=bench.device).normal_()
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / bench.seconds(partial(target.copy_, source))
    a, b = (torch.empty(edge, edge, dtype=torch.bfloat16, device=bench.device).normal_() for _ in range(2))
    return Ceilings(copy, 2 * edge**3 / bench.seconds(partial(torch.mm, a, b)))


def measure(device: torch.device, dtype: torch.dtype, *, small: bool, runs: int, only: str = "") -> dict[str, Any]:
    """The ceilings and one row per case.

    Args:
        only: measure operations whose name contains this.
    """
    bench = Bench(device, runs)
    with torch.inference_mode():
        ceilings = measure_ceilings(bench, small)
        rows = [bench.row(c, ceilings) for c in all_cases(device, dtype, small) if only in c.operation]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "ceilings": {"copy_tb_per_s": ceilings.copy / 1e12, "matmul_tflop_per_s": ceilings.matmul / 1e12},
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--runs", type=int, default=20, help="counted runs of each case (default: 20)")
    parser.add_argument("--only", default="", metavar="TEXT", help="operations whose name contains this")
    parser.add_argument("--small", action="store_true", help="tiny sizes, stored nowhere; always so on a processor")
    args = parser.parse_args()
    small = args.small or args.device == "cpu"
    data = measure(torch.device(args.device), getattr(torch, args.dtype), small=small, runs=args.runs, only=args.only)
    shown = [
        {name: "" if value is None else value for name, value in row.items() if name != "extra_bytes"}
        for row in data["rows"]
    ]
    if shown:
        print(table(shown))
    for name, value in data["ceilings"].items():
        print(f"{name}: {value:.2f}")
    if small:
        print("tiny sizes: nothing was stored")
    else:
        print(f"stored: {store('kernels', data, args.device)}")


if __name__ == "__main__":
    main()
