"""FLUX.1-dev, 28 steps, one picture of 1024x1024: `python . benchmarks.flux_dev_1024`.

Plain against compiled blocks, attention kernels, fused projections, step caches, fp8, and what goes together, in one
process, interleaved. On a processor it runs a small model of the same shape, to try the script itself.
"""

from __future__ import annotations

from ..pipelines.types import SampleRequest
from .architectures import FLUX_DEV
from .compare_settings import main

PROMPT = "a lighthouse in the fog"
FULL = SampleRequest(PROMPT, steps=28, guidance=3.5, width=1024, height=1024)
SMALL = SampleRequest(PROMPT, steps=4, guidance=3.5, width=64, height=64)
COMPARE = (
    "compile,cudnn,compile+cudnn,compile-graphs,fused,fused+compile,cache-balanced,cache-fast,"
    "fp8,fp8+compile,fp8+compile+cudnn"
)

if __name__ == "__main__":
    main("flux_dev_1024", FLUX_DEV, FULL, SMALL, COMPARE)
