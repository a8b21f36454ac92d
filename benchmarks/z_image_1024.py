"""Z-Image-Turbo, 9 steps, one picture of 1024x1024: `python . benchmarks.z_image_1024`.

Without guidance, as it is published. Plain against compiled blocks, also as CUDA graphs, and against quantized weights,
in one process, interleaved. Step caches are for models with many steps, and left out. On a processor it runs a small
model of the same shape, to try the script itself.
"""

from __future__ import annotations

from ..pipelines.types import SampleRequest
from .architectures import Z_IMAGE
from .compare_settings import main

PROMPT = "a lighthouse in the fog"
FULL = SampleRequest(PROMPT, steps=9, guidance=0.0, width=1024, height=1024)
SMALL = SampleRequest(PROMPT, steps=4, guidance=0.0, width=64, height=64)
COMPARE = (
    "compile,cudnn,compile+cudnn,compile-graphs,fp8,fp8+compile,fp8+compile+cudnn,int8,int8+compile,uint4,uint4+compile"
)

if __name__ == "__main__":
    main("z_image_1024", Z_IMAGE, FULL, SMALL, COMPARE)
